"""Published data sets: those that TensorFlow Datasets (TFDS) prepares, and files of their authors.

Prepared data sets are read without TFDS and TensorFlow, from ArrayRecord or TFRecord files of
tf.train.Example with encoded images, with the same result as `tfds.data_source`. Preparing a data
set requires both packages (`prepare`).
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import ml_collections
import numpy as np

from errors import InputError, expand_home
from options import Name, check
from readers import authors, cache, preprocessing
from readers.batches import Images
from readers.files import check_labels, read_json, reading
from readers.image_sizes import square_side
from readers.preprocessing import celeba, lsun, resize
from readers.records import ArrayRecords, TFRecords, parse_example

INFO, AGAIN = "dataset_info.json", "Prepare it again."
INFO_SCHEMA = {
    "name?": str,
    "fileFormat?": str,
    "splits?": [{"name": str, "shardLengths?": [(str, int)]}],
}
RECORDS = {"array_record": ArrayRecords, "tfrecord": TFRecords}  # by fileFormat
PACKAGES = {  # Modules that `prepare` requires, and the packages to install for them.
    "tensorflow": "tensorflow",
    "tensorflow_datasets": "tensorflow-datasets",
    "importlib_resources": "importlib_resources",
}
LSUN_CATEGORIES = ("bedroom", "church_outdoor")
Config = ml_collections.ConfigDict


class Prepared(NamedTuple):
    """A data set: its name in TFDS, the name of its held-out split there, and the preprocessing.

    `read` returns images and labels from the files of its authors, or None if there are none;
    `classes` is 0 without labels.
    """

    name: str
    test: str
    resize: preprocessing.Resize
    read: Callable[[str, Config, Path], authors.Content | None]
    classes: int = 0


PREPARED = {  # By data.dataset in lower case. The name of LSUN depends on data.category.
    "cifar10": Prepared("cifar10", "test", resize, authors.read_cifar, 10),
    "svhn": Prepared("svhn_cropped", "test", resize, authors.read_svhn, 10),
    "celeba": Prepared("celeb_a", "validation", celeba, authors.read_celeba),
    "fashion_mnist": Prepared("fashion_mnist", "test", resize, authors.read_idx, 10),
    "lsun": Prepared("lsun/", "validation", lsun, authors.read_lsun),
}


def of_tfds(config: Config) -> Prepared:
    """Return the data set that data.dataset names. Raise InputError if it is not in TFDS."""
    prepared = PREPARED.get(config.dataset.lower())
    if prepared is None:
        raise InputError(
            f"data.dataset = {config.dataset!r} is not a set of TensorFlow Datasets; see "
            f"docs/data.md."
        )
    if prepared.name != "lsun/":
        return prepared
    check("data.category", config.get("category", ""), Name(LSUN_CATEGORIES, exact=True))
    return prepared._replace(name=f"lsun/{config.category}")


def read(split: str, config: Config) -> Images:
    """Return the images of a split, 'train' or 'test', of a published data set.

    Without a copy that TFDS has prepared, the files of the authors are read, if they are in
    data.path. Raises InputError if the data set is missing or damaged.
    """
    prepared = of_tfds(config)
    square_side(config)  # Rectangles are an error before files are looked for.
    versions = [info.parent for info in (data_dir(config) / prepared.name).glob(f"*/{INFO}")]
    if versions:
        content = _read_prepared(split, prepared, max(versions, key=_version))
    else:
        default = authors.DEBIAN if prepared.name == "fashion_mnist" else ""
        where = str(config.path or default)
        place = expand_home(where, "data.path")
        with reading(place, "Download it again."):
            content = prepared.read(split, config, place) if where else None
    if content is None:
        raise InputError(
            f"data.dataset = {config.dataset!r} is not in {data_dir(config)}; name the folder of "
            f"TensorFlow Datasets that contains {prepared.name} with --config.data.path=DIR, or "
            f"get it with --mode=prepare_data. docs/data.md lists other files that are read."
        )
    images, labels = content
    return Images(preprocessing.prepared(images, config, prepared.resize), labels)


def data_dir(config: Config) -> Path:
    """Return the folder of TFDS: data.path, TFDS_DATA_DIR or ~/tensorflow_datasets."""
    if config.path:
        return expand_home(config.path, "data.path")
    return expand_home(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets"), "TFDS_DATA_DIR")


def _version(folder: Path) -> tuple[int, ...]:
    return tuple(int(part) if part.isdecimal() else -1 for part in folder.name.split("."))


def _read_prepared(split: str, prepared: Prepared, folder: Path) -> authors.Content:
    """Return the images and labels of a split in a folder of TFDS."""
    info = read_json(folder / INFO, INFO_SCHEMA)
    name = "train" if split == "train" else prepared.test
    with reading(f"{folder}: split {name!r}", AGAIN):
        lengths = {each["name"]: each.get("shardLengths", ()) for each in info.get("splits", ())}
        lengths = list(map(int, lengths.get(name, ())))
        stem, kind = info.get("name", prepared.name.split("/")[0]), info.get("fileFormat")
        if not lengths or not stem.isidentifier() or kind not in (*RECORDS, None):
            raise ValueError(f"{INFO} does not describe its files")  # Or names others.
        kind, end = kind or "tfrecord", f"of-{len(lengths):05d}"
        names = [f"{stem}-{name}.{kind}-{shard:05d}-{end}" for shard in range(len(lengths))]
        records = RECORDS[kind]([folder / each for each in names])
        if len(records) != sum(lengths):
            raise ValueError(f"it has {len(records)} of {sum(lengths)} records")

    def encoded(index: int) -> bytes:
        return parse_example(records[index]).data["image"]

    files = preprocessing.Files(len(records), encoded, f"{folder}: split {name!r}")
    return files, _labels(records, folder, split, prepared.classes) if prepared.classes else None


def _labels(
    records: ArrayRecords | TFRecords, folder: Path, split: str, classes: int
) -> np.ndarray:
    """Return the classes (N,). Reading them requires a pass over all records: they are cached."""

    def collect() -> dict[str, np.ndarray]:
        with reading(f"{folder}: a label of {split}", AGAIN):
            labels = [parse_example(record).integers["label"][0] for record in records]
            return {"labels": np.array(labels, np.int64)}

    key = " ".join(map(cache.fingerprint, [folder / INFO, *records.paths]))
    labels = cache.arrays(f"labels_{split}", folder, collect, key)["labels"]
    return check_labels(labels, len(records), classes, folder)


def prepare(config: Config) -> None:
    """Run `--mode=prepare_data`: download data.dataset, and write ArrayRecord files."""
    name, where = of_tfds(config).name, data_dir(config)
    missing = [
        package for module, package in PACKAGES.items() if importlib.util.find_spec(module) is None
    ]
    if missing:
        raise InputError(
            f"Preparing {name} requires packages that training does not: pip install "
            f"{' '.join(missing)}. A separate environment will do, as only the prepared files "
            f"matter."
        )
    import tensorflow_datasets as tfds

    print(f"preparing {name} in {where}", flush=True)
    builder = tfds.builder(name, data_dir=str(where), file_format="array_record")
    builder.download_and_prepare()
    print(f"done: {builder.data_path}")
