"""The IDX files of MNIST and Fashion-MNIST."""

from __future__ import annotations

import gzip
import math
import struct
from pathlib import Path

import ml_collections
import numpy as np

from errors import InputError
from readers import preprocessing
from readers.batches import Images
from readers.files import check_expansion, check_labels, check_regular, reading

DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # Where dataset-fashion-mnist installs it.
PREFIXES = {"train": "train", "test": "t10k"}
UINT8 = 8  # The type code of bytes.
CLASSES = 10
MAX_SIDE = 1024  # pixels


def exists(folder: Path) -> bool:
    """Return whether a folder contains IDX files of images."""
    return any(folder.glob("*-idx3-ubyte*"))


def read(split: str, config: ml_collections.ConfigDict, folder: Path) -> Images:
    """Return the images of a split from the files in a folder, compressed or not.

    Raises InputError if a file is missing or damaged.
    """
    images, _ = read_array(folder, f"{PREFIXES[split]}-images-idx3-ubyte", 3)
    labels, path = read_array(folder, f"{PREFIXES[split]}-labels-idx1-ubyte", 1)
    pixels = preprocessing.from_array(images[..., None], config, preprocessing.resize)
    return Images(pixels, check_labels(labels, len(images), CLASSES, path))


def read_array(folder: Path, name: str, rank: int) -> tuple[np.ndarray, Path]:
    """Return the uint8 array with `rank` axes in FOLDER/NAME or FOLDER/NAME.gz, and the path.

    Raises InputError if the file is missing or damaged.
    """
    candidates = [folder / name, folder / f"{name}.gz"]
    path = next((candidate for candidate in candidates if candidate.exists()), None)
    if path is None:
        raise InputError(f"{folder} contains neither {name} nor {name}.gz.")
    check_regular(path)
    with (
        reading(path, "Download it again.", " as IDX"),
        gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file,
    ):
        zeros, type_code, axes = struct.unpack(">HBB", file.read(4))
        if (zeros, type_code, axes) != (0, UINT8, rank):
            raise ValueError(f"it is not an array of bytes with {rank} axes")
        shape = struct.unpack(f">{rank}I", file.read(4 * rank))
        if 0 in shape or max(shape[1:], default=1) > MAX_SIDE:
            raise ValueError(f"the shape is {shape}; images have sides of 1 to {MAX_SIDE} pixels")
        check_expansion(path, math.prod(shape))
        data = file.read(math.prod(shape) + 1)
        if len(data) != math.prod(shape):
            raise ValueError(f"it does not have the size that its shape {shape} states")
        return np.frombuffer(data, np.uint8).reshape(shape), path
