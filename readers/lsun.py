"""LSUN from the databases of its authors, one for each category and split."""

from __future__ import annotations

from pathlib import Path

import ml_collections

from errors import InputError
from readers import preprocessing
from readers.batches import Images
from readers.files import reading
from readers.lmdb import Lmdb

SPLITS = {"train": "train", "test": "val"}
FILE = "data.mdb"


def exists(place: Path) -> bool:
    """Return whether a folder contains an unpacked database, such as bedroom_train_lmdb."""
    return any(place.glob(f"*_lmdb/{FILE}"))


def read(split: str, config: ml_collections.ConfigDict, place: Path) -> Images:
    """Return the images of a split of data.category, in the order of the database.

    Raises InputError if the database is missing or damaged.
    """
    path = place / f"{config.category}_{SPLITS[split]}_lmdb" / FILE
    files = Lmdb(path)
    if not len(files):
        raise InputError(f"{path} contains no images. Download it again.")
    pixels = preprocessing.from_files(
        len(files),
        files.__getitem__,
        config,
        preprocessing.lsun,
        lambda index: reading(f"{path}: image {index}", "Download it again."),
    )
    return Images(pixels)
