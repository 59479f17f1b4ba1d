"""CIFAR-10 from the files of its authors, "CIFAR-10 python version"."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from readers import pickles, preprocessing
from readers.batches import Images
from readers.files import check_labels, check_md5, check_structure, read_verified, reading

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


def read(split: str, config: ml_collections.ConfigDict, place: Path) -> Images:
    """Return the images of a split, in the order of the files.

    Raises InputError if a file is missing, is not the published one, or is damaged.
    """
    parts = [_parse(content, name) for name, content in _batches(split, place)]
    pixels, labels = (np.concatenate(arrays) for arrays in zip(*parts))
    return Images(preprocessing.from_array(pixels, config, preprocessing.resize), labels)


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
    content, found = read_verified(where, MD5[ARCHIVE]), []
    with (
        reading(where, "Download it again.", " as .tar.gz"),
        tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive,
    ):
        for name in names:
            file = archive.extractfile(f"{FOLDER}/{name}")
            found.append((f"{name} in {where}", file.read() if file else b""))
    for name, (title, batch) in zip(names, found):
        check_md5(batch, MD5[name], title)
    return found


def _parse(content: bytes, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels (n, 32, 32, 3) and labels (n,) of a file. In it, channels come first."""
    with reading(name, "Download it again.", " as pickled arrays"):
        batch = pickles.Reader().load(io.BytesIO(content), NAMES)
        pickles.check_tree(batch, len(content))
        check_structure(batch, SCHEMA, name)
        labels = np.array(batch["labels"], np.int64)
        pixels = _array(batch["data"], (len(labels), 3 * SIDE**2))
    planes = pixels.reshape(-1, 3, SIDE, SIDE)
    labels = check_labels(labels, len(labels), CLASSES, name)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels


def _array(record: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Return the array of unsigned bytes that a record describes."""
    if not isinstance(record, pickles.Record):
        raise ValueError("its 'data' is no array")
    _, stated, dtype, is_fortran, data = record.state
    if stated != shape or dtype.arguments[0] != "u1":
        raise ValueError(f"its 'data' is no uint8 of shape {shape}")
    content = np.frombuffer(data.encode("latin-1"), np.uint8)
    return content.reshape(shape, order="F" if is_fortran else "C")
