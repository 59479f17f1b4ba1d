"""The IDX files of MNIST and Fashion-MNIST."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import ml_collections
import numpy as np

from errors import InputError, brief
from readers import preprocessing
from readers.files import check_expansion
from readers.image_sizes import square_side
from readers.preprocessing import Pixels

DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # Where dataset-fashion-mnist installs it.
PREFIXES = {"train": "train", "test": "t10k"}
UINT8 = 8  # The type code of bytes.


def exists(folder: Path) -> bool:
    """Return whether a folder contains IDX files of images."""
    return any(folder.glob("*-idx3-ubyte*"))


def read(split: str, config: ml_collections.ConfigDict, folder: Path) -> tuple[Pixels, np.ndarray]:
    """Return pixels and labels of a split from the files in a folder, compressed or not.

    Raises InputError if a file is missing or damaged.
    """
    prefix = PREFIXES[split]
    images = read_array(folder, f"{prefix}-images-idx3-ubyte")
    labels = read_array(folder, f"{prefix}-labels-idx1-ubyte").astype(np.int32)
    if len(images) != len(labels):
        raise InputError(
            f"{folder} has {len(images)} images and {len(labels)} labels of {split!r}; the "
            f"numbers must be equal."
        )
    size, channels = square_side(config), config.num_channels
    resize = preprocessing.resize
    return preprocessing.from_array(images[..., None], size, channels, resize), labels


def read_array(folder: Path, name: str) -> np.ndarray:
    """Return the uint8 array in FOLDER/NAME or FOLDER/NAME.gz.

    Raises InputError if the file is missing or damaged.
    """
    candidates = [folder / name, folder / f"{name}.gz"]
    path = next((candidate for candidate in candidates if candidate.is_file()), None)
    if path is None:
        raise InputError(f"{folder} contains neither {name} nor {name}.gz.")
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            zeros, type_code, rank = struct.unpack(">HBB", file.read(4))
            shape = struct.unpack(f">{rank}I", file.read(4 * rank))
            check_expansion(path, math.prod(shape))
            data = file.read(math.prod(shape) + 1)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise InputError(f"{path} is damaged: {brief(error)}.") from error
    if (zeros, type_code) != (0, UINT8) or len(data) != math.prod(shape):
        raise InputError(f"{path} is not a complete IDX file of bytes. Download it again.")
    return np.frombuffer(data, np.uint8).reshape(shape)
