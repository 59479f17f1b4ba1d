"""Formats for `tests.fuzz`: for each, the bytes of a small valid file, and what reads it."""

from __future__ import annotations

import gzip
import io
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from array_record.python.array_record_module import ArrayRecordWriter
from flax import serialization
from PIL import Image

from pretrained import edm_format, flax_format, safetensors_format, torch_format
from readers import arrays, authors, emoji, files, image_files, preprocessing
from readers.array_records import ArrayRecords
from readers.lmdb import Lmdb
from readers.tfrecords import TFRecords, parse_example
from tests import edm_files, examples

# --- checkpoints ---

ARRAYS = {f"layer{i}.weight": np.arange(12, dtype=np.float32).reshape(3, 4) for i in range(3)}


def edm() -> bytes:
    return edm_files.dumps(edm_files.network(ARRAYS, img_resolution=16, channel_mult=[1, 2]))


def pth(archive: bool = True) -> bytes:
    import torch

    buffer = io.BytesIO()
    model = {name: torch.tensor(array) for name, array in ARRAYS.items()}
    state = {"model": model, "ema": {"decay": 0.9, "shadow": [*model.values()]}}
    torch.save(state, buffer, _use_new_zipfile_serialization=archive)
    return buffer.getvalue()


def flax() -> bytes:
    return serialization.msgpack_serialize({"step": np.int32(3), "params_ema": {"a": ARRAYS}})


def stored() -> bytes:
    return safetensors.numpy.save(ARRAYS, {"step": "1", "config": "{}"})


# --- data sets ---

PHOTO = Image.fromarray(np.add.outer(np.arange(40), 2 * np.arange(50)).astype(np.uint8))


def image(kind: str, **options: Any) -> Callable[[], bytes]:
    """Return a function that returns an image with EXIF data."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return lambda: examples.encoded(PHOTO.convert("RGB"), kind, exif=exif, **options)


def read_image(path: Path) -> Any:
    with files.reading(path):
        return [
            image_files.load(path, 3, transform, 32)
            for transform in (preprocessing.crop_resize, preprocessing.small_crop)
        ]


def font() -> bytes:
    from tests.test_emoji import noise, write_font

    with tempfile.TemporaryDirectory() as folder:
        return write_font(Path(folder) / "font.ttf", noise()).read_bytes()


def read_font(path: Path) -> Any:
    return emoji.read("train", examples.data("emoji", path)).pixels[:]


def records() -> list[bytes]:
    pixels = examples.images(1, 8, 8, 3)[0]
    return [examples.example(image=examples.png(pixels), label=[label]) for label in (1, 300, -1)]


def tfrecord() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return examples.write_tfrecords(Path(folder) / "a", records()).read_bytes()


def read_tfrecord(path: Path) -> Any:
    return list(map(parse_example, TFRecords([path])))


def read_example(path: Path) -> Any:
    with files.reading(path):
        example = parse_example(path.read_bytes())
        if "image" in example.data:
            image_files.load(example.data["image"], 3, preprocessing.resize, 8)


def array_record() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for record in records():
            writer.write(record)
        writer.close()
        return path.read_bytes()


def read_array_record(path: Path) -> Any:
    return list(map(parse_example, ArrayRecords([path])))


def idx_images() -> bytes:
    return struct.pack(">HBB3I", 0, 8, 3, 2, 28, 28) + examples.images(2, 28, 28).tobytes()


def read_idx(path: Path) -> Any:
    return authors.read_idx_array(path.parent, path.name.removesuffix(".gz"), 3)


def numpy_file(**options: Any) -> Callable[[], bytes]:
    def make() -> bytes:
        buffer, pixels = io.BytesIO(), examples.images(4, 8, 8)
        if not options:
            np.save(buffer, pixels)
        else:
            save = np.savez_compressed if options["compressed"] else np.savez
            save(buffer, images=pixels, labels=np.arange(4))
        return buffer.getvalue()

    return make


def read_array(path: Path) -> Any:
    images = arrays.read("train", examples.data("array", path, num_channels=1))
    return images.pixels[:], images.labels


def lmdb() -> bytes:
    return gzip.decompress((Path(__file__).parent / "data" / "lmdb.mdb.gz").read_bytes())


def read_lmdb(path: Path) -> Any:
    return list(Lmdb(path))


FORMATS: dict[str, tuple[Callable[[], bytes], Callable[[Path], Any]]] = {
    "edm": (edm, edm_format.read_network),
    "pth": (pth, torch_format.load),
    "legacy": (lambda: pth(archive=False), torch_format.load),
    "flax": (flax, flax_format.load),
    "safetensors": (stored, safetensors_format.load),
    "png": (image("PNG"), read_image),
    "jpeg": (image("JPEG", progressive=True), read_image),
    "webp": (image("WEBP"), read_image),
    "webp_animated": (
        image("WEBP", save_all=True, append_images=[PHOTO.convert("RGB")], lossless=True),
        read_image,
    ),
    "font": (font, read_font),
    "tfrecord": (tfrecord, read_tfrecord),
    "example": (lambda: records()[0], read_example),
    "array_record": (array_record, read_array_record),
    "idx": (idx_images, read_idx),
    "gz": (lambda: gzip.compress(idx_images()), read_idx),
    "npy": (numpy_file(), read_array),
    "npz": (numpy_file(compressed=False), read_array),
    "npz_deflated": (numpy_file(compressed=True), read_array),
    "lmdb": (lmdb, read_lmdb),
}


def read(path: Path) -> Any:
    """Read a file whose name ends in that of its format."""
    return FORMATS[path.suffix[1:]][1](path)
