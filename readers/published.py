"""Published data sets: those of TensorFlow Datasets (TFDS), Fashion-MNIST's IDX files, TFRecords of FFHQ and CelebA-HQ.

Sets that TFDS has prepared are read without TFDS and TensorFlow: from ArrayRecord or TFRecord files of tf.train.Example
with encoded images, the same as `tfds.data_source` reads. Preparing them takes both (`prepare`).
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import math
import os
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from PIL import Image

from errors import InputError, brief, check_name
from readers import cache, preprocessing
from readers.preprocessing import Decoded
from readers.tfrecords import TFRecords, parse_example

Pixels = Sequence[np.ndarray]
"""(N, H, W, C) uint8"""

PACKAGES = {
    "tensorflow": "tensorflow",
    "tensorflow_datasets": "tensorflow-datasets",
    "importlib_resources": None,
}
IDX = {"train": "train", "test": "t10k"}


class Prepared(NamedTuple):
    """A set of TFDS: its name there, its held-out split, and the official preprocessing."""

    name: str
    test: str
    resize: Callable[[Image.Image, int], Image.Image]


def of_tfds(config: ml_collections.ConfigDict) -> Prepared | None:
    """What data.dataset is in TFDS, or None if it is not from there."""
    if config.dataset.lower() == "lsun":
        check_name(config.get("category", ""), ("bedroom", "church_outdoor"), "data.category")
        resize = preprocessing.small_crop if config.image_size == 128 else preprocessing.crop_resize
        return Prepared(f"lsun/{config.category}", "validation", resize)
    return {
        "cifar10": Prepared("cifar10", "test", preprocessing.resize),
        "svhn": Prepared("svhn_cropped", "test", preprocessing.resize),
        "celeba": Prepared("celeb_a", "validation", preprocessing.celeba),
        "fashion_mnist": Prepared("fashion_mnist", "test", preprocessing.resize),
    }.get(config.dataset.lower())


def read(split: str, config: ml_collections.ConfigDict) -> tuple[Pixels, np.ndarray | None]:
    """Pixels and labels of a split, 'train' or 'test', of a data set of TFDS.

    Fashion-MNIST is read from IDX files instead, where data.path is a folder that holds them. Raises InputError if the
    set is not there, or damaged.
    """
    prepared = of_tfds(config)
    if list(Path(config.path).glob("*-idx3-ubyte*")) and prepared.name == "fashion_mnist":
        return read_idx(split, config)
    folder = find(config, prepared)
    records = _records(folder, prepared.name, "train" if split == "train" else prepared.test)

    def decode(index: int) -> np.ndarray:
        record = records[index]
        try:
            image = preprocessing.decode(parse_example(record)["image"][0], config.num_channels)
        except (ValueError, KeyError, IndexError, OSError) as error:
            raise InputError(
                f"{folder} is damaged: record {index} of {split}: {brief(error)}. Prepare it again."
            ) from error
        return preprocessing.to_array(prepared.resize(image, config.image_size))

    shape = (config.image_size, config.image_size, config.num_channels)
    return Decoded(decode, len(records), shape), _labels(records, folder, split)


def _labels(records: Sequence[bytes], folder: Path, split: str) -> np.ndarray | None:
    """The classes, if the set has any; kept in the cache, as they are strewn over all records."""
    if "label" not in parse_example(records[0]):
        return None
    collect = lambda: {
        "labels": np.array([parse_example(record)["label"][0] for record in records], np.int32)
    }
    return cache.arrays(
        f"labels_{split}", folder, f"{len(records)} {cache.fingerprint(folder)}", collect
    )["labels"]


# --- TFDS -------------------------------------------------------------------------------------------------------------


def data_dir(config: ml_collections.ConfigDict) -> Path:
    """Where TFDS keeps its sets: data.path, else the environment's TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    return Path(
        config.path or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    ).expanduser()


def find(config: ml_collections.ConfigDict, prepared: Prepared) -> Path:
    """The folder of the newest prepared version. Raises InputError, saying how to get one, if there is none."""
    versions = list((data_dir(config) / prepared.name).glob("*/dataset_info.json"))
    if not versions:
        raise InputError(
            f"data.dataset = {config.dataset!r} is not in {data_dir(config)}; name the folder of TensorFlow Datasets "
            f"that has {prepared.name} with --config.data.path=DIR, or get it with --mode=prepare_data."
        )
    newest = lambda path: tuple(
        int(part) if part.isdigit() else -1 for part in path.parent.name.split(".")
    )
    return max(versions, key=newest).parent


def _records(folder: Path, name: str, split: str) -> Sequence[bytes]:
    """The records of a split, whose files must all be there."""
    try:
        info = json.loads((folder / "dataset_info.json").read_text())
    except ValueError as error:
        raise InputError(
            f"{folder / 'dataset_info.json'} is damaged: {brief(error)}. Prepare it again."
        ) from error
    lengths = {
        each["name"]: [int(n) for n in each.get("shardLengths", ())]
        for each in info.get("splits", ())
    }
    if not lengths.get(split):
        raise InputError(
            f"{folder} has no split {split!r}; it has: {', '.join(filter(lengths.get, lengths)) or 'none'}."
        )
    kind, count = info.get("fileFormat", "tfrecord"), len(lengths[split])
    check_name(kind, ("array_record", "tfrecord"), f"fileFormat in {folder / 'dataset_info.json'}")
    stem = f"{info.get('name', name.split('/')[0])}-{split}.{kind}"
    paths = [folder / f"{stem}-{shard:05d}-of-{count:05d}" for shard in range(count)]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise InputError(
            f"{folder} lacks {len(missing)} of {count} files of {split!r}, such as {missing[0]}."
        )
    records = ArrayRecords(paths) if kind == "array_record" else Chain(paths)
    if len(records) != sum(lengths[split]):
        raise InputError(
            f"{folder} holds {len(records)} records of {split!r}; its dataset_info.json says {lengths[split]}."
        )
    return records


class ArrayRecords(Sequence):
    """The records of ArrayRecord files, which have checksums. Raises InputError for a damaged file."""

    def __init__(self, paths: list[Path]) -> None:
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
            raise InputError(
                f"{self._folder} is damaged: {brief(error)}. Prepare it again."
            ) from error


class Chain(Sequence):
    """The records of several TFRecord files as one sequence."""

    def __init__(self, paths: list[Path]) -> None:
        self._files = [TFRecords(path) for path in paths]
        self._ends = np.cumsum([len(file) for file in self._files])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> bytes:
        index = range(len(self))[index]
        file = int(np.searchsorted(self._ends, index, "right"))
        return self._files[file][index - (int(self._ends[file - 1]) if file else 0)]


def prepare(config: ml_collections.ConfigDict) -> None:
    """`--mode=prepare_data`: downloads and prepares data.dataset with TFDS, as ArrayRecord files under `data_dir`.

    Raises InputError for sets that are not from TFDS, and if packages for it are missing.
    """
    prepared = of_tfds(config)
    if prepared is None:
        raise InputError(
            f"data.dataset = {config.dataset!r} is not a set of TensorFlow Datasets; see docs/data.md."
        )
    missing = [
        package or module
        for module, package in PACKAGES.items()
        if importlib.util.find_spec(module) is None
    ]
    if missing:
        raise InputError(
            f"Preparing {prepared.name} needs packages that training does not: pip install {' '.join(missing)} (in an "
            f"environment of its own, if you like: only the prepared files matter)."
        )
    import tensorflow_datasets as tfds

    print(f"preparing {prepared.name} in {data_dir(config)}", flush=True)
    builder = tfds.builder(
        prepared.name, data_dir=str(data_dir(config)), file_format="array_record"
    )
    builder.download_and_prepare()
    print(f"done: {builder.data_path}")


# --- IDX --------------------------------------------------------------------------------------------------------------


def read_idx(split: str, config: ml_collections.ConfigDict) -> tuple[Pixels, np.ndarray]:
    """Images and labels from the IDX files of (Fashion-)MNIST in the folder data.path, compressed or not."""
    images, labels = (
        idx_array(Path(config.path), f"{IDX[split]}-{kind}-ubyte")
        for kind in ("images-idx3", "labels-idx1")
    )
    if len(images) != len(labels):
        raise InputError(
            f"{config.path} has {len(images)} images and {len(labels)} labels of {split!r}."
        )
    if images.shape[1:] == (config.image_size, config.image_size) and config.num_channels == 1:
        return images[..., None], labels.astype(np.int32)
    mode = preprocessing.MODES[config.num_channels]

    def decode(index: int) -> np.ndarray:
        image = Image.fromarray(images[index]).convert(mode)
        return preprocessing.to_array(preprocessing.resize(image, config.image_size))

    shape = (config.image_size, config.image_size, config.num_channels)
    return Decoded(decode, len(images), shape), labels.astype(np.int32)


def idx_array(folder: Path, name: str) -> np.ndarray:
    """The array of bytes in FOLDER/NAME or NAME.gz. Raises InputError if it is not there, or is damaged."""
    path = next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
    if path is None:
        raise InputError(f"{folder} holds neither {name} nor {name}.gz.")
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        zeros, kind, rank = struct.unpack_from(">HBB", data)
        shape = struct.unpack_from(f">{rank}I", data, 4)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise InputError(f"{path} is damaged: {brief(error)}.") from error
    if (zeros, kind) != (0, 8) or len(data) != 4 + 4 * rank + math.prod(shape):
        raise InputError(f"{path} is no IDX file of bytes, or is cut off.")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)


# --- FFHQ and CelebA-HQ -----------------------------------------------------------------------------------------------


def read_tfrecords(split: str, config: ml_collections.ConfigDict) -> tuple[Pixels, None]:
    """FFHQ or CelebA-HQ from the official TFRecord file of one resolution; as officially, both splits are all of it.

    The file is data.path, or the one of this resolution in the folder data.path, or data.tfrecords_path. Raises
    InputError if it is not there, damaged, or of another resolution.
    """
    path, size = _tfrecords_path(config), config.image_size
    records = TFRecords(path)

    def decode(index: int) -> np.ndarray:
        record = records[index]
        try:
            example = parse_example(record)
            planes = np.frombuffer(example["data"][0], np.uint8).reshape(example["shape"])
        except (ValueError, KeyError, IndexError) as error:
            raise InputError(f"{path}: record {index} is no image: {brief(error)}.") from error
        if planes.shape != (config.num_channels, size, size):
            ending = f"*-r{size.bit_length() - 1:02d}.tfrecords"
            raise InputError(
                f"{path}: image {index} is {planes.shape}, channels first; data.image_size = {size} and "
                f"data.num_channels = {config.num_channels} ask for another. That is {ending}."
            )
        return np.ascontiguousarray(planes.transpose(1, 2, 0))

    return Decoded(decode, len(records), (size, size, config.num_channels)), None


def _tfrecords_path(config: ml_collections.ConfigDict) -> Path:
    ending = f"r{config.image_size.bit_length() - 1:02d}.tfrecords"
    path = Path(config.path or config.get("tfrecords_path", "")).expanduser()
    if path.is_dir():
        path = next(iter(sorted(path.glob(f"*{ending}"))), path / f"*-{ending}")
    if not path.is_file():
        raise InputError(
            f"data.dataset = {config.dataset!r}: there is no file {path}. Name the TFRecord file of this resolution "
            f"(*-{ending}), or its folder, with --config.data.path=PATH; docs/data.md says where to get it."
        )
    return path
