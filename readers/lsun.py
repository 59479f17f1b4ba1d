"""LSUN from the databases of its authors, one for each category and split."""

from __future__ import annotations

from pathlib import Path

import ml_collections
import numpy as np

from errors import InputError
from readers import image_files, preprocessing
from readers.files import reading
from readers.image_sizes import image_shape, square_side
from readers.lmdb import Lmdb
from readers.preprocessing import Decoded

SPLITS = {"train": "train", "test": "val"}
FILE = "data.mdb"


def exists(place: Path) -> bool:
    """Return whether a folder contains an unpacked database, such as bedroom_train_lmdb."""
    return any(place.glob(f"*_lmdb/{FILE}"))


def read(split: str, config: ml_collections.ConfigDict, place: Path) -> tuple[Decoded, None]:
    """Return the pixels of a split of data.category, in the order of the database.

    Raises InputError if the database is missing or damaged.
    """
    size, channels = square_side(config), config.num_channels
    path = place / f"{config.category}_{SPLITS[split]}_lmdb" / FILE
    images = Lmdb(path)
    if not len(images):
        raise InputError(f"{path} contains no images. Download it again.")

    def decode(index: int) -> np.ndarray:
        with reading(f"{path}: image {index}", "Download the file again."):
            return image_files.load(images[index], channels, preprocessing.lsun, size)

    return Decoded(decode, len(images), image_shape(config)), None
