"""LSUN from the databases of its authors, one for each category and split."""

from __future__ import annotations

from pathlib import Path

import ml_collections
import numpy as np

from errors import InputError, brief
from readers import preprocessing
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
    size = square_side(config)
    path = place / f"{config.category}_{SPLITS[split]}_lmdb" / FILE
    images = Lmdb(path)
    if not len(images):
        raise InputError(f"{path} contains no images. Download it again.")

    def decode(index: int) -> np.ndarray:
        encoded = images[index]
        try:
            image = preprocessing.decode(encoded, config.num_channels)
        except Exception as error:  # Decoders raise many exception types for damaged files.
            raise InputError(
                f"{path} is damaged: value {index} is no image: {brief(error)}. Download it again."
            ) from error
        return preprocessing.to_array(preprocessing.lsun(image, size))

    return Decoded(decode, len(images), image_shape(config)), None
