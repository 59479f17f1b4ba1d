"""CIFAR-10 from the files of its authors, "CIFAR-10 python version"."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from errors import InputError, brief
from readers import pickles, preprocessing
from readers.files import check_md5, mismatch, read_verified
from readers.image_sizes import square_side
from readers.preprocessing import Pixels

ARCHIVE = "cifar-10-python.tar.gz"
FOLDER = "cifar-10-batches-py"
BATCHES = {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]}
MD5 = {
    ARCHIVE: "c58f30108f718f92721af3b95e74349a",
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
"""The published checksums."""
SCHEMA = {"data": object, "labels": [int]}
SIDE, CLASSES = 32, 10
NAMES: pickles.Names = dict.fromkeys(
    ("numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype")
)
"""The names in a pickled array of Python 2."""


def exists(place: Path) -> bool:
    """Return whether `place` is the archive or its content, or a folder with one of them."""
    return _locate(place) is not None


def read(split: str, config: ml_collections.ConfigDict, place: Path) -> tuple[Pixels, np.ndarray]:
    """Return pixels and labels of a split, in the order of the files.

    Raises InputError if a file is missing, is not the published one, or is damaged.
    """
    size, parts = square_side(config), []
    for name, content in _batches(split, place):
        parts.append(_parse(content, name))
    pixels, labels = (np.concatenate(arrays) for arrays in zip(*parts))
    resized = preprocessing.from_array(pixels, size, config.num_channels, preprocessing.resize)
    return resized, labels


def _locate(place: Path) -> Path | None:
    """Return the folder of the batches or the archive."""
    for folder in (place, place / FOLDER):
        if os.path.isfile(folder / BATCHES["test"][0]):
            return folder
    archive = place / ARCHIVE if os.path.isdir(place) else place
    return archive if archive.name == ARCHIVE and os.path.isfile(archive) else None


def _batches(split: str, place: Path) -> list[tuple[str, bytes]]:
    """Return the path and the content of each file of a split, after comparing checksums."""
    where, names = _locate(place), BATCHES[split]
    assert where is not None
    if where.is_dir():
        return [(str(where / name), read_verified(where / name, MD5[name])) for name in names]
    found = {}
    archive = read_verified(where, MD5[ARCHIVE])
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as members:
            for member in members:
                name = member.name.removeprefix(f"{FOLDER}/")
                file = members.extractfile(member) if name in names else None
                if file is not None:
                    found[name] = file.read()
    except Exception as error:  # Damage raises exceptions of several types.
        raise InputError(f"{where} cannot be read as .tar.gz: {brief(error)}.") from error
    missing = [name for name in names if name not in found]
    if missing:
        raise InputError(f"{where} lacks {FOLDER}/{missing[0]}. Download it again.")
    for name in names:
        check_md5(found[name], MD5[name], f"{name} in {where}")
    return [(f"{name} in {where}", found[name]) for name in names]


def _parse(content: bytes, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels (n, 32, 32, 3) and labels (n,) of a file. In it, channels come first."""
    try:
        batch = pickles.Reader().load(io.BytesIO(content), NAMES)
        pickles.check_tree(batch, len(content))
    except Exception as error:  # Damage raises exceptions of many types.
        raise InputError(f"{name} cannot be read as pickled arrays: {brief(error)}.") from error
    problem = mismatch(batch, SCHEMA)
    if problem:
        raise InputError(f"{name} is damaged: {problem}.")
    labels = np.array(batch["labels"], np.int64)
    try:
        pixels = _array(batch["data"], (len(labels), 3 * SIDE**2))
    except Exception as error:
        raise InputError(f"{name} is damaged: its 'data' {brief(error)}.") from error
    if not all(0 <= label < CLASSES for label in labels):
        raise InputError(f"{name} is damaged: its labels must be in 0 .. {CLASSES - 1}.")
    planes = pixels.reshape(-1, 3, SIDE, SIDE)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels.astype(np.int32)


def _array(record: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Return the array of unsigned bytes that a record describes."""
    if not isinstance(record, pickles.Record):
        raise ValueError("is no array")
    _, stated, dtype, is_fortran, data = record.state
    if stated != shape or dtype.arguments[0] != "u1":
        raise ValueError(f"is no uint8 of shape {shape}")
    content = np.frombuffer(data.encode("latin-1"), np.uint8)
    return content.reshape(shape, order="F" if is_fortran else "C")
