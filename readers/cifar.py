"""CIFAR-10 from the files of its authors, "CIFAR-10 python version"."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import ml_collections
import numpy as np

from readers import pickles, preprocessing
from readers.batches import Images
from readers.files import read_verified

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
SIDE = 32  # pixels
NAMES: pickles.Names = dict.fromkeys(
    ("numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype")
)
"""The names in a pickled array of Python 2."""


def exists(place: Path) -> bool:
    """Return whether `place` is the archive or its content, or a folder with one of them."""
    return _locate(place) is not None


def read(split: str, config: ml_collections.ConfigDict, place: Path) -> Images:
    """Return the images of a split, in the order of the files.

    Raises InputError if a file is missing or is not the published one.
    """
    parts = map(_parse, _batches(split, place))
    pixels, labels = (np.concatenate(arrays) for arrays in zip(*parts))
    return Images(preprocessing.from_array(pixels, config, preprocessing.resize), labels)


def _locate(place: Path) -> Path | None:
    """Return the folder of the batches or the archive."""
    for folder in (place, place / FOLDER):
        if os.path.isfile(folder / BATCHES["test"][0]):
            return folder
    archive = place / ARCHIVE if os.path.isdir(place) else place
    return archive if archive.name == ARCHIVE and os.path.isfile(archive) else None


def _batches(split: str, place: Path) -> list[bytes]:
    """Return the content of each file of a split. Raises InputError for other than published."""
    where, names = _locate(place), BATCHES[split]
    assert where is not None
    if where.is_dir():
        return [read_verified(where / name, MD5[name]) for name in names]
    content = io.BytesIO(read_verified(where, MD5[ARCHIVE]))
    with tarfile.open(fileobj=content, mode="r:gz") as archive:
        files = [archive.extractfile(f"{FOLDER}/{name}") for name in names]
        return [file.read() for file in files if file]


def _parse(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels (n, 32, 32, 3) and labels (n,) of a published file, where channels come first.

    It describes the array by the state (version, shape, type, whether columns come first, data).
    """
    batch = pickles.Reader().load(io.BytesIO(content), NAMES)
    _, shape, _, is_fortran, data = batch["data"].state
    flat = np.frombuffer(data.encode("latin-1"), np.uint8)
    planes = flat.reshape(shape, order="F" if is_fortran else "C").reshape(-1, 3, SIDE, SIDE)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), np.array(batch["labels"], np.int32)
