"""Published data sets: those that TensorFlow Datasets (TFDS) prepares, and files of their authors.

Prepared data sets are read without TFDS and TensorFlow, from ArrayRecord or TFRecord files of
tf.train.Example with encoded images, with the same result as `tfds.data_source`. Preparing a data
set requires both packages (`prepare`).
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import ml_collections
import numpy as np

from errors import InputError, check_name, expand_home, printable
from readers import authors, cache, preprocessing
from readers.array_records import ArrayRecords
from readers.batches import Images
from readers.files import check_labels, read_json, reading
from readers.image_sizes import square_side
from readers.preprocessing import celeba, lsun, resize
from readers.tfrecords import TFRecords, parse_example

INFO = "dataset_info.json"
INFO_SCHEMA = {
    "name?": str,
    "fileFormat?": str,
    "splits?": [{"name": str, "shardLengths?": [(str, int)]}],
}
PACKAGES = {  # Modules that `prepare` requires, and the packages to install for them.
    "tensorflow": "tensorflow",
    "tensorflow_datasets": "tensorflow-datasets",
    "importlib_resources": "importlib_resources",
}
LSUN_CATEGORIES = ("bedroom", "church_outdoor")
Config = ml_collections.ConfigDict


class Prepared(NamedTuple):
    """A data set: its name in TFDS, the name of its held-out split there, and the preprocessing.

    `exists` and `read` are those of the files of its authors; `classes` is 0 without labels.
    """

    name: str
    test: str
    resize: preprocessing.Resize
    exists: Callable[[Path], bool]
    read: Callable[[str, Config, Path], authors.Content]
    classes: int = 0


PREPARED = {  # By data.dataset in lower case. The name of LSUN depends on data.category.
    "cifar10": Prepared("cifar10", "test", resize, authors.exists_cifar, authors.read_cifar, 10),
    "svhn": Prepared("svhn_cropped", "test", resize, authors.exists_svhn, authors.read_svhn, 10),
    "celeba": Prepared("celeb_a", "validation", celeba, authors.exists_celeba, authors.read_celeba),
    "fashion_mnist": Prepared(
        "fashion_mnist", "test", resize, authors.exists_idx, authors.read_idx, 10
    ),
    "lsun": Prepared("lsun/", "validation", lsun, authors.exists_lsun, authors.read_lsun),
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
    check_name(config.get("category", ""), LSUN_CATEGORIES, "data.category")
    return prepared._replace(name=f"lsun/{config.category}")


def read(split: str, config: Config) -> Images:
    """Return the images of a split, 'train' or 'test', of a published data set.

    Without a copy that TFDS has prepared, the files of the authors are read, if they are in
    data.path. Raises InputError if the data set is missing or damaged.
    """
    prepared = of_tfds(config)
    square_side(config)  # Rectangles are an error before files are looked for.
    versions = [info.parent for info in (data_dir(config) / prepared.name).glob(f"*/{INFO}")]
    if not versions:
        return _read_files(split, config, prepared)
    folder = max(versions, key=_version)
    records = _records(folder, prepared.name, "train" if split == "train" else prepared.test)
    labels = _labels(records, folder, split, prepared.classes) if prepared.classes else None
    files = preprocessing.Files(
        len(records),
        lambda index: parse_example(records[index]).data["image"],
        lambda index: f"{folder}: record {index} of {split}",
        "Prepare it again.",
    )
    return Images(preprocessing.prepared(files, config, prepared.resize), labels)


def _read_files(split: str, config: Config, prepared: Prepared) -> Images:
    """Return the images of a split from the files of the authors."""
    default = authors.DEBIAN if prepared.name == "fashion_mnist" else None
    place = expand_home(config.path, "data.path") if config.path else default
    if not place or not prepared.exists(place):
        raise InputError(
            f"data.dataset = {config.dataset!r} is not in {data_dir(config)}; name the folder of "
            f"TensorFlow Datasets that contains {prepared.name} with --config.data.path=DIR, or "
            f"get it with --mode=prepare_data. docs/data.md lists other files that are read."
        )
    with reading(place, "Download it again."):
        images, labels = prepared.read(split, config, place)
        return Images(preprocessing.prepared(images, config, prepared.resize), labels)


def data_dir(config: Config) -> Path:
    """Return the folder of TFDS: data.path, TFDS_DATA_DIR or ~/tensorflow_datasets."""
    if config.path:
        return expand_home(config.path, "data.path")
    return expand_home(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets"), "TFDS_DATA_DIR")


def _version(folder: Path) -> tuple[int, ...]:
    return tuple(int(part) if part.isdecimal() else -1 for part in folder.name.split("."))


def _reading(folder: Path, part: str) -> AbstractContextManager[None]:
    return reading(f"{folder}: {part}", "Prepare it again.")


def _labels(
    records: ArrayRecords | TFRecords, folder: Path, split: str, classes: int
) -> np.ndarray:
    """Return the classes (N,). Reading them requires a pass over all records: they are cached."""

    def collect() -> dict[str, np.ndarray]:
        with _reading(folder, f"a label of {split}"):
            labels = [parse_example(record).integers["label"][0] for record in records]
            return {"labels": np.array(labels, np.int64)}

    key = " ".join(map(cache.fingerprint, [folder / INFO, *records.paths]))
    labels = cache.arrays(f"labels_{split}", folder, key, collect)["labels"]
    return check_labels(labels, len(records), classes, folder)


def _records(folder: Path, name: str, split: str) -> ArrayRecords | TFRecords:
    """Return the records of a split. Raises InputError if a file is missing or damaged."""
    info = read_json(folder / INFO, INFO_SCHEMA)
    with _reading(folder, INFO):
        lengths = {
            each["name"]: list(map(int, each.get("shardLengths", ())))
            for each in info.get("splits", ())
        }
        stem = info.get("name", name.split("/")[0])
        if not stem.isidentifier():
            raise ValueError(f"it names files outside of its folder: {stem[:50]!r}")
    if not lengths.get(split):
        splits = [printable(name) for name in lengths if lengths[name]]
        raise InputError(f"{folder} has no split {split!r}; it has: {', '.join(splits) or 'none'}.")
    kinds = {"array_record": ArrayRecords, "tfrecord": TFRecords}
    kind = info.get("fileFormat", "tfrecord")
    check_name(kind, kinds, f"fileFormat in {folder / INFO}")
    count = len(lengths[split])
    paths = [folder / f"{stem}-{split}.{kind}-{shard:05d}-of-{count:05d}" for shard in range(count)]
    missing = [path.name for path in paths if not path.exists()]
    if missing:
        raise InputError(
            f"{folder} lacks {len(missing)} of {count} files of {split!r}, such as {missing[0]}."
        )
    records = kinds[kind](paths)
    if len(records) != sum(lengths[split]):
        raise InputError(
            f"{folder} contains {len(records)} records of {split!r}, but its {INFO} states "
            f"{sum(lengths[split])}. Prepare it again."
        )
    return records


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
