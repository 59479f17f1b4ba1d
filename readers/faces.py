"""FFHQ and CelebA-HQ from the official TFRecord files, one for each resolution."""

from __future__ import annotations

from pathlib import Path

import ml_collections
import numpy as np

from errors import InputError, expand_home
from readers.batches import Images
from readers.files import check_regular, reading
from readers.image_sizes import square_side
from readers.preprocessing import Decoded
from readers.tfrecords import TFRecords, parse_example


def read(split: str, config: ml_collections.ConfigDict) -> Images:
    """Return all images: as in the official code, both splits are the whole data set.

    The file is data.path, the file of this resolution in the folder data.path, or
    data.tfrecords_path. Raises InputError if it is missing, damaged, or of another resolution.
    """
    del split
    size, channels = square_side(config), config.num_channels
    path = _find(config, size)
    records = TFRecords([path])

    def decode(index: int) -> np.ndarray:
        with reading(f"{path}: record {index}"):
            example = parse_example(records[index])
            shape = tuple(example.integers["shape"])
            if shape != (channels, size, size):
                raise InputError(
                    f"{path}: image {index} is {shape}, channels first; data.image_size = {size} "
                    f"and data.num_channels = {channels} require {(channels, size, size)}. The "
                    f"file of this resolution is *-{_ending(size)}."
                )
            planes = np.frombuffer(example.data["data"], np.uint8).reshape(shape)
            return np.ascontiguousarray(planes.transpose(1, 2, 0))

    return Images(Decoded(decode, len(records), (size, size, channels)))


def _ending(size: int) -> str:
    """Return the ending of file names for a resolution, which is a power of two."""
    return f"r{size.bit_length() - 1:02d}.tfrecords"


def _find(config: ml_collections.ConfigDict, size: int) -> Path:
    """Return the path of the TFRecord file of a resolution. Raises InputError without one."""
    ending = _ending(size)
    if config.path:
        path = expand_home(config.path, "data.path")
    else:
        path = expand_home(config.get("tfrecords_path", ""), "data.tfrecords_path")
    if path.is_dir():  # Without a path, it is the current one, which nobody has named.
        matches = sorted(path.glob(f"*{ending}")) if path != Path() else []
        path = matches[0] if matches else path / f"*-{ending}"
    if not path.exists():
        raise InputError(
            f"data.dataset = {config.dataset!r}: the file {path} does not exist. Name the TFRecord "
            f"file of this resolution (*-{ending}), or its folder, with --config.data.path=PATH. "
            f"docs/data.md states where to download it."
        )
    check_regular(path, "data.path")
    return path
