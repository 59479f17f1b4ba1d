"""Published data sets: those that TensorFlow Datasets (TFDS) prepares, and files of their authors.

Prepared data sets are read without TFDS and TensorFlow, from ArrayRecord or TFRecord files of
tf.train.Example with encoded images, with the same result as `tfds.data_source`. Preparing a data
set requires both packages (`prepare`). Other modules read the files of the authors.
"""

from __future__ import annotations

import importlib.util
import os
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import ml_collections
import numpy as np

from errors import InputError, check_name, expand_home, printable
from readers import cache, celeba, cifar, idx, lsun, preprocessing, svhn
from readers.array_records import ArrayRecords
from readers.batches import Images
from readers.files import check_labels, read_json, reading
from readers.image_sizes import square_side
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
Records = ArrayRecords | TFRecords
LSUN_CATEGORIES = ("bedroom", "church_outdoor")


class Prepared(NamedTuple):
    """A data set of TFDS.

    Attributes:
      name: its name in TFDS.
      test: the name of its held-out split.
      resize: the preprocessing of the official code, (image, size) -> image.
      files: the module that reads the files of its authors.
      classes: the number of classes; 0 for a data set without labels.
    """

    name: str
    test: str
    resize: preprocessing.Resize
    files: ModuleType
    classes: int = 0


PREPARED = {  # By data.dataset in lower case. LSUN depends on further fields.
    "cifar10": Prepared("cifar10", "test", preprocessing.resize, cifar, 10),
    "svhn": Prepared("svhn_cropped", "test", preprocessing.resize, svhn, 10),
    "celeba": Prepared("celeb_a", "validation", preprocessing.celeba, celeba),
    "fashion_mnist": Prepared("fashion_mnist", "test", preprocessing.resize, idx, 10),
}


def of_tfds(config: ml_collections.ConfigDict) -> Prepared:
    """Return the data set of TFDS that data.dataset names.

    Raises InputError if it is not in TFDS.
    """
    if config.dataset.lower() == "lsun":
        check_name(config.get("category", ""), LSUN_CATEGORIES, "data.category")
        return Prepared(f"lsun/{config.category}", "validation", preprocessing.lsun, lsun)
    if config.dataset.lower() not in PREPARED:
        raise InputError(
            f"data.dataset = {config.dataset!r} is not a set of TensorFlow Datasets; see "
            f"docs/data.md."
        )
    return PREPARED[config.dataset.lower()]


# --- reading ---


def read(split: str, config: ml_collections.ConfigDict) -> Images:
    """Return the images of a split, 'train' or 'test', of a published data set.

    Without a copy that TFDS has prepared, the files of the authors are read, if they are in
    data.path. Raises InputError if the data set is missing or damaged.
    """
    prepared = of_tfds(config)
    square_side(config)  # Rectangles are an error before files are looked for.
    if not _versions(config, prepared):
        default = idx.DEBIAN if prepared.files is idx else None
        place = expand_home(config.path, "data.path") if config.path else default
        if place and prepared.files.exists(place):
            with reading(place, "Download it again."):
                return prepared.files.read(split, config, place)
    folder = find(config, prepared)
    records = _records(folder, prepared.name, "train" if split == "train" else prepared.test)
    labels = _labels(records, folder, split, prepared.classes) if prepared.classes else None
    pixels = preprocessing.from_files(
        len(records),
        lambda index: parse_example(records[index]).data["image"],
        config,
        prepared.resize,
        lambda index: _reading(folder, f"record {index} of {split}"),
    )
    return Images(pixels, labels)


def data_dir(config: ml_collections.ConfigDict) -> Path:
    """Return the folder of TFDS: data.path, TFDS_DATA_DIR or ~/tensorflow_datasets."""
    if config.path:
        return expand_home(config.path, "data.path")
    return expand_home(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets"), "TFDS_DATA_DIR")


def find(config: ml_collections.ConfigDict, prepared: Prepared) -> Path:
    """Return the folder of the newest prepared version. Raises InputError if there is none."""
    versions = _versions(config, prepared)
    if not versions:
        raise InputError(
            f"data.dataset = {config.dataset!r} is not in {data_dir(config)}; name the folder of "
            f"TensorFlow Datasets that contains {prepared.name} with --config.data.path=DIR, or "
            f"get it with --mode=prepare_data. docs/data.md lists other files that are read."
        )
    return max(versions, key=_version)


def _versions(config: ml_collections.ConfigDict, prepared: Prepared) -> list[Path]:
    """Return the folders of the prepared versions."""
    infos = (data_dir(config) / prepared.name).glob(f"*/{INFO}")
    return [info.parent for info in infos]


def _version(folder: Path) -> tuple[int, ...]:
    return tuple(int(part) if part.isdecimal() else -1 for part in folder.name.split("."))


def _reading(folder: Path, part: str) -> AbstractContextManager[None]:
    return reading(f"{folder}: {part}", "Prepare it again.")


def _labels(records: Records, folder: Path, split: str, classes: int) -> np.ndarray:
    """Return the classes (N,). Reading them requires a pass over all records: they are cached."""

    def collect() -> dict[str, np.ndarray]:
        with _reading(folder, f"a label of {split}"):
            labels = [parse_example(record).integers["label"][0] for record in records]
            return {"labels": np.array(labels, np.int64)}

    key = " ".join(map(cache.fingerprint, [folder / INFO, *records.paths]))
    labels = cache.arrays(f"labels_{split}", folder, key, collect)["labels"]
    return check_labels(labels, len(records), classes, folder)


def _records(folder: Path, name: str, split: str) -> Records:
    """Return the records of a split. Raises InputError if a file is missing or damaged."""
    info = read_json(folder / INFO, INFO_SCHEMA)
    with _reading(folder, INFO):
        lengths = {
            each["name"]: [int(length) for length in each.get("shardLengths", ())]
            for each in info.get("splits", ())
        }
        stem = info.get("name", name.split("/")[0])
        if not stem.isidentifier():
            raise ValueError(f"it names files outside of its folder: {stem[:50]!r}")
    if not lengths.get(split):
        splits = [printable(name) for name in lengths if lengths[name]]
        raise InputError(f"{folder} has no split {split!r}; it has: {', '.join(splits) or 'none'}.")
    kind = info.get("fileFormat", "tfrecord")
    check_name(kind, ("array_record", "tfrecord"), f"fileFormat in {folder / INFO}")
    count = len(lengths[split])
    paths = [folder / f"{stem}-{split}.{kind}-{shard:05d}-of-{count:05d}" for shard in range(count)]
    missing = [path.name for path in paths if not path.exists()]
    if missing:
        raise InputError(
            f"{folder} lacks {len(missing)} of {count} files of {split!r}, such as {missing[0]}."
        )
    records = ArrayRecords(paths) if kind == "array_record" else TFRecords(paths)
    if len(records) != sum(lengths[split]):
        raise InputError(
            f"{folder} contains {len(records)} records of {split!r}, but its {INFO} states "
            f"{sum(lengths[split])}. Prepare it again."
        )
    return records


# --- preparation ---


def prepare(config: ml_collections.ConfigDict) -> None:
    """Run `--mode=prepare_data`: download data.dataset, and write ArrayRecord files to `data_dir`.

    Raises InputError if the data set is not in TFDS, or if required packages are missing.
    """
    prepared = of_tfds(config)
    missing = [
        package for module, package in PACKAGES.items() if importlib.util.find_spec(module) is None
    ]
    if missing:
        raise InputError(
            f"Preparing {prepared.name} requires packages that training does not: pip install "
            f"{' '.join(missing)}. A separate environment will do, as only the prepared files "
            f"matter."
        )
    import tensorflow_datasets as tfds

    print(f"preparing {prepared.name} in {data_dir(config)}", flush=True)
    builder = tfds.builder(
        prepared.name, data_dir=str(data_dir(config)), file_format="array_record"
    )
    builder.download_and_prepare()
    print(f"done: {builder.data_path}")
