"""SVHN, the Street View House Numbers, from its MATLAB files of cropped digits."""

from __future__ import annotations

import io
from pathlib import Path

import ml_collections
import numpy as np

from readers import preprocessing
from readers.batches import Images
from readers.files import check_labels, read_verified, reading

FILES = {"train": "train_32x32.mat", "test": "test_32x32.mat"}
MD5 = {
    "train": "e26dedcc434d2e4c54c9b2d4a06d8373",
    "test": "eb5a983be6a315427106f1b164d9cef3",
}
"""The published checksums."""
SIDE, ZERO = 32, 10  # The label 10 stands for the digit 0.


def exists(place: Path) -> bool:
    """Return whether a folder contains one of the files."""
    return any((place / name).is_file() for name in FILES.values())


def read(split: str, config: ml_collections.ConfigDict, place: Path) -> Images:
    """Return the images of a split, in the order of the file in the folder `place`.

    Raises InputError if the file is missing, is not the published one, or is damaged.
    """
    from scipy.io import loadmat  # Imported only for this data set.

    path = place / FILES[split]
    content = read_verified(path, MD5[split])
    with reading(path, "Download it again.", " as MATLAB"):
        arrays = loadmat(io.BytesIO(content), variable_names=("X", "y"))
        images, labels = arrays["X"], arrays["y"].reshape(-1)
        shape = (SIDE, SIDE, 3, len(labels))
        if images.dtype != np.uint8 or images.shape != shape or not len(labels) or 0 in labels:
            raise ValueError(f"X is {images.dtype} of shape {images.shape}, or y contains 0")
        labels = np.where(labels == ZERO, 0, check_labels(labels, len(labels), ZERO + 1, path))
    pixels = np.ascontiguousarray(images.transpose(3, 0, 1, 2))
    return Images(preprocessing.from_array(pixels, config, preprocessing.resize), labels)
