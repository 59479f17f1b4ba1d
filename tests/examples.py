"""Writers of tiny data sets in published formats, independent of the readers under test."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import ml_collections
import numpy as np
from PIL import Image
from tensorboardX.record_writer import RecordWriter

from tests import tiny


def data(dataset: str, where: object, **fields) -> ml_collections.ConfigDict:
    """Return config.data for color images of 8x8 pixels in the file or folder `where`."""
    fields = {"path": str(where), "image_size": 8, "num_channels": 3, **fields}
    config = tiny.config().data.unlock()
    config.update(fields, dataset=dataset)
    return config


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    """Return the content of an image file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(array: np.ndarray) -> bytes:
    """Return an image (H, W, 3) or (H, W) uint8 as the content of a PNG file."""
    return encoded(Image.fromarray(array))


def images(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    """Return random images (count, *shape) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def write_tfrecords(path: Path, records: Sequence[bytes]) -> Path:
    """Write a TFRecord file with TensorBoard's log writer; return its path."""
    writer = RecordWriter(str(path))
    for record in records:
        writer.write(record)
    writer.close()
    return path


def example(**features: bytes | Sequence[int]) -> bytes:
    """Return a serialized tf.train.Example, with packed integers."""
    entries = b""
    for name, value in features.items():
        if isinstance(value, bytes):
            feature = _field(1, _field(1, value))
        else:
            feature = _field(3, _field(1, b"".join(map(_varint, value))))
        entries += _field(1, _field(1, name.encode()) + _field(2, feature))
    return _field(1, entries)


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(number: int) -> bytes:
    number %= 2**64
    return bytes([number]) if number < 128 else bytes([number % 128 + 128]) + _varint(number >> 7)
