"""Formats for `tests.fuzz`: for each, what makes a small valid file, and what reads it."""

from __future__ import annotations

import gzip
import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from array_record.python.array_record_module import ArrayRecordWriter
from flax import serialization
from PIL import Image

from pretrained import edm_import, flax_format, safetensors_format, torch_format
from readers import arrays, authors, emoji, files, image_files, preprocessing
from readers.lmdb import Lmdb
from readers.records import ArrayRecords, TFRecords, parse_example
from tests import edm_files, examples

WEIGHTS = {f"layer{i}.weight": np.arange(12, dtype=np.float32).reshape(3, 4) for i in range(3)}
EDM = edm_files.network(WEIGHTS, img_resolution=16, channel_mult=[1, 2])
PHOTO = Image.fromarray(np.add.outer(np.arange(40), 2 * np.arange(50)).astype(np.uint8))
PHOTO = PHOTO.convert("RGB")
EXIF = Image.Exif()
EXIF[0x0112] = 6
IMAGE = examples.png(examples.images(1, 8, 8, 3)[0])
RECORDS = [examples.example(image=IMAGE, label=[label]) for label in (1, 300, -1)]
IDX = struct.pack(">HBB3I", 0, 8, 3, 2, 28, 28) + examples.images(2, 28, 28).tobytes()


def pth(path: Path, archive: bool = True) -> None:
    import torch

    model = {name: torch.tensor(array) for name, array in WEIGHTS.items()}
    state = {"model": model, "ema": {"decay": 0.9, "shadow": [*model.values()]}}
    torch.save(state, path, _use_new_zipfile_serialization=archive)


def font(path: Path) -> None:
    from tests.test_emoji import noise, write_font

    write_font(path, noise())


def array_record(path: Path) -> None:
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in RECORDS:
        writer.write(record)
    writer.close()


def array(save: Callable[..., None], **labels: Any) -> bytes:
    buffer, pixels = io.BytesIO(), examples.images(4, 8, 8)
    save(buffer, **{"arr" if save is np.save else "images": pixels}, **labels)
    return buffer.getvalue()


def read_image(path: Path) -> Any:
    with files.reading(path):
        for transform in (preprocessing.crop_resize, preprocessing.small_crop):
            image_files.load(path, 3, transform, 32)


def read_example(path: Path) -> Any:
    with files.reading(path):
        example = parse_example(path.read_bytes())
        if "image" in example.data:
            image_files.load(example.data["image"], 3, preprocessing.resize, 8)


def read_idx(path: Path) -> Any:
    return authors.read_idx_array(path.parent, path.name.removesuffix(".gz"), 3)


def read_array(path: Path) -> Any:
    images = arrays.read("train", examples.data("array", path, num_channels=1))
    return images.pixels[:], images.labels


def image(kind: str, **options: Any) -> bytes:
    return examples.encoded(PHOTO, kind, exif=EXIF, **options)


LABELS = {"labels": np.arange(4)}
LMDB = gzip.decompress((Path(__file__).parent / "data" / "lmdb.mdb.gz").read_bytes())
Make = bytes | Callable[[Path], Any]
FORMATS: dict[str, tuple[Make, Callable[[Path], Any]]] = {
    "edm": (edm_files.dumps(EDM), edm_import.read_network),
    "pth": (pth, torch_format.load),
    "legacy": (lambda path: pth(path, archive=False), torch_format.load),
    "flax": (
        serialization.msgpack_serialize({"step": np.int32(3), "params_ema": {"a": WEIGHTS}}),
        flax_format.load,
    ),
    "safetensors": (
        safetensors.numpy.save(WEIGHTS, {"step": "1", "config": "{}"}),
        safetensors_format.load,
    ),
    "png": (image("PNG"), read_image),
    "jpeg": (image("JPEG", progressive=True), read_image),
    "webp": (image("WEBP"), read_image),
    "font": (font, lambda path: emoji.read("train", examples.data("emoji", path)).pixels[:]),
    "tfrecord": (
        lambda path: examples.write_tfrecords(path, RECORDS),
        lambda path: list(map(parse_example, TFRecords([path]))),
    ),
    "example": (RECORDS[0], read_example),
    "array_record": (array_record, lambda path: list(map(parse_example, ArrayRecords([path])))),
    "idx": (IDX, read_idx),
    "gz": (gzip.compress(IDX), read_idx),
    "npy": (array(np.save), read_array),
    "npz": (array(np.savez_compressed, **LABELS), read_array),
    "lmdb": (LMDB, lambda path: list(Lmdb(path))),
}


def valid(kind: str, folder: Path) -> bytes:
    """Return the content of a valid file of a format."""
    make, path = FORMATS[kind][0], folder / f"valid.{kind}"
    if isinstance(make, bytes):
        return make
    make(path)
    return path.read_bytes()


def read(path: Path) -> Any:
    """Read a file whose name ends in that of its format."""
    return FORMATS[path.suffix[1:]][1](path)
