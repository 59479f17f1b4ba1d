"""Published data sets: those that TensorFlow Datasets (TFDS) prepares, and files of their authors.

Prepared data sets are read without TFDS and TensorFlow, from ArrayRecord or TFRecord files of
tf.train.Example with encoded images, with the same result as `tfds.data_source`. Preparing a data
set requires both packages (`prepare`). Files of the authors are read by the modules in `RELEASES`.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from PIL import Image

from errors import InputError, brief, check_name, expand_home, printable
from readers import cache, celeba, cifar, idx, lsun, preprocessing, svhn
from readers.files import read_json
from readers.image_sizes import image_shape, square_side
from readers.preprocessing import Decoded, Pixels
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


class Prepared(NamedTuple):
    """A data set of TFDS.

    Attributes:
      name: its name in TFDS.
      test: the name of its held-out split.
      resize: the preprocessing of the official code, (image, size) -> image.
    """

    name: str
    test: str
    resize: Callable[[Image.Image, int], Image.Image]


PREPARED = {  # By data.dataset in lower case. LSUN depends on further fields.
    "cifar10": Prepared("cifar10", "test", preprocessing.resize),
    "svhn": Prepared("svhn_cropped", "test", preprocessing.resize),
    "celeba": Prepared("celeb_a", "validation", preprocessing.celeba),
    "fashion_mnist": Prepared("fashion_mnist", "test", preprocessing.resize),
}


class Release(NamedTuple):
    """The files of the authors of a data set.

    Attributes:
      exists: whether a file or folder contains them.
      read: (split, config.data, this file or folder) -> pixels and labels.
      default: where they are if data.path is empty.
    """

    exists: Callable[[Path], bool]
    read: Callable[[str, ml_collections.ConfigDict, Path], tuple[Pixels, np.ndarray | None]]
    default: Path | None = None


RELEASES = {  # By the name in TFDS, without the category of LSUN.
    "cifar10": Release(cifar.exists, cifar.read),
    "svhn_cropped": Release(svhn.exists, svhn.read),
    "celeb_a": Release(celeba.exists, celeba.read),
    "lsun": Release(lsun.exists, lsun.read),
    "fashion_mnist": Release(idx.exists, idx.read, idx.DEBIAN),
}


def of_tfds(config: ml_collections.ConfigDict) -> Prepared:
    """Return the data set of TFDS that data.dataset names.

    Raises InputError if it is not in TFDS.
    """
    if config.dataset.lower() == "lsun":
        check_name(config.get("category", ""), LSUN_CATEGORIES, "data.category")
        return Prepared(f"lsun/{config.category}", "validation", preprocessing.lsun)
    if config.dataset.lower() not in PREPARED:
        raise InputError(
            f"data.dataset = {config.dataset!r} is not a set of TensorFlow Datasets; see "
            f"docs/data.md."
        )
    return PREPARED[config.dataset.lower()]


# --- reading ---


def read(split: str, config: ml_collections.ConfigDict) -> tuple[Pixels, np.ndarray | None]:
    """Return pixels and labels of a split, 'train' or 'test', of a published data set.

    Without a copy that TFDS has prepared, the files of the authors are read, if they are in
    data.path. Raises InputError if the data set is missing or damaged.
    """
    prepared, size = of_tfds(config), square_side(config)
    release = RELEASES.get(prepared.name.partition("/")[0])
    if release and not _versions(config, prepared):
        place = expand_home(config.path, "data.path") if config.path else release.default
        if place and release.exists(place):
            return release.read(split, config, place)
    folder = find(config, prepared)
    records = _records(folder, prepared.name, "train" if split == "train" else prepared.test)

    def decode(index: int) -> np.ndarray:
        record = records[index]
        try:
            image = preprocessing.decode(parse_example(record)["image"][0], config.num_channels)
        except Exception as error:  # Decoders raise many exception types for damaged files.
            raise _damaged(folder, f"record {index} of {split}: {brief(error)}") from error
        return preprocessing.to_array(prepared.resize(image, size))

    return Decoded(decode, len(records), image_shape(config)), _labels(records, folder, split)


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
    return tuple(int(part) if part.isdigit() else -1 for part in folder.name.split("."))


def _damaged(folder: Path, problem: str) -> InputError:
    return InputError(f"{folder} is damaged: {problem}. Prepare it again.")


def _labels(records: Records, folder: Path, split: str) -> np.ndarray | None:
    """Return the classes (N,), or None if the data set has none.

    Reading them requires a pass over all records, so they are cached.
    """
    try:
        if "label" not in parse_example(records[0]):
            return None
    except (ValueError, IndexError) as error:
        raise _damaged(folder, f"record 0 of {split}: {brief(error)}") from error

    def collect() -> dict[str, np.ndarray]:
        try:
            labels = [parse_example(record)["label"][0] for record in records]
            return {"labels": np.array(labels, np.int32)}
        except (ValueError, KeyError, IndexError, OverflowError, TypeError) as error:
            raise _damaged(folder, f"a label of {split} cannot be read: {brief(error)}") from error

    def is_valid(entry: dict[str, np.ndarray]) -> bool:
        labels = entry.get("labels", np.array([]))
        return labels.shape == (len(records),) and labels.dtype == np.int32

    key = " ".join(map(cache.fingerprint, [folder / INFO, *records.paths]))
    return cache.arrays(f"labels_{split}", folder, key, collect, is_valid)["labels"]


def _records(folder: Path, name: str, split: str) -> Records:
    """Return the records of a split. Raises InputError if a file is missing or damaged."""
    try:
        info = read_json(folder / INFO, INFO_SCHEMA)
        lengths = {
            each["name"]: [int(length) for length in each.get("shardLengths", ())]
            for each in info.get("splits", ())
        }
    except ValueError as error:
        raise _damaged(folder, f"{INFO}: {brief(error)}") from error
    if "/" in info.get("name", ""):
        raise _damaged(folder, f"{INFO} names files outside of it: {info['name']!r}")
    if not lengths.get(split):
        splits = [printable(name) for name in lengths if lengths[name]]
        raise InputError(f"{folder} has no split {split!r}; it has: {', '.join(splits) or 'none'}.")
    file_format = info.get("fileFormat", "tfrecord")
    check_name(file_format, ("array_record", "tfrecord"), f"fileFormat in {folder / INFO}")
    stem = f"{info.get('name', name.split('/')[0])}-{split}.{file_format}"
    count = len(lengths[split])
    paths = [folder / f"{stem}-{shard:05d}-of-{count:05d}" for shard in range(count)]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise InputError(
            f"{folder} lacks {len(missing)} of {count} files of {split!r}, such as {missing[0]}."
        )
    records = ArrayRecords(paths) if file_format == "array_record" else ChainedTFRecords(paths)
    if len(records) != sum(lengths[split]):
        raise InputError(
            f"{folder} contains {len(records)} records of {split!r}, but its {INFO} states "
            f"{sum(lengths[split])}. Prepare it again."
        )
    return records


class ArrayRecords(Sequence):
    """The records of ArrayRecord files. Raises InputError where a checksum is wrong."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self._folder = paths[0].parent
        self._source = self._call(ArrayRecordDataSource, [str(path) for path in paths])

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> bytes:
        return self._call(self._source.__getitem__, range(len(self))[index])

    def _call(self, function: Callable, argument: Any) -> Any:
        try:
            return function(argument)
        except RuntimeError as error:
            raise _damaged(self._folder, brief(error)) from error


class ChainedTFRecords(Sequence):
    """The records of several TFRecord files as one sequence."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self._files = [TFRecords(path) for path in paths]
        self._ends = np.cumsum([len(file) for file in self._files])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> bytes:
        index = range(len(self))[index]
        number = int(np.searchsorted(self._ends, index, "right"))
        start = int(self._ends[number - 1]) if number else 0
        return self._files[number][index - start]


Records = ArrayRecords | ChainedTFRecords


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
