"""SVHN, the Street View House Numbers, from its MATLAB files of cropped digits."""

from __future__ import annotations

import io
from pathlib import Path

import ml_collections
import numpy as np

from readers import preprocessing
from readers.batches import Images
from readers.files import read_verified

FILES = {"train": "train_32x32.mat", "test": "test_32x32.mat"}
MD5 = {
    "train": "e26dedcc434d2e4c54c9b2d4a06d8373",
    "test": "eb5a983be6a315427106f1b164d9cef3",
}
"""The published checksums."""


def exists(place: Path) -> bool:
    """Return whether a folder contains one of the files."""
    return any((place / name).is_file() for name in FILES.values())


def read(split: str, config: ml_collections.ConfigDict, place: Path) -> Images:
    """Return the images of a split, in the order of the file in the folder `place`.

    Raises InputError if the file is missing or is not the published one.
    """
    from scipy.io import loadmat  # Imported only for this data set.

    content = read_verified(place / FILES[split], MD5[split])
    arrays = loadmat(io.BytesIO(content), variable_names=("X", "y"))
    pixels = np.ascontiguousarray(arrays["X"].transpose(3, 0, 1, 2))
    labels = arrays["y"].reshape(-1).astype(np.int32) % 10  # The label 10 stands for the digit 0.
    return Images(preprocessing.from_array(pixels, config, preprocessing.resize), labels)
