"""Tensors in the files of PyTorch, as arrays, without PyTorch.

A file has a pickle, whose identifiers refer to storages: the numbers of one or more tensors. They
are members of an uncompressed zip archive or, before PyTorch 1.6 and in EDM's pickles, follow it.
"""

from __future__ import annotations

import io
import math
import mmap
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from readers import pickles

ZIP = b"PK\x03\x04"
MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001  # The first values of a file without an archive.
MAX_AXES, MAX_SIZE = 8, 2**48
STORAGES = {
    **{"torch DoubleStorage": "<f8", "torch FloatStorage": "<f4", "torch HalfStorage": "<f2"},
    **{"torch LongStorage": "<i8", "torch IntStorage": "<i4", "torch ShortStorage": "<i2"},
    **{"torch CharStorage": "i1", "torch ByteStorage": "u1", "torch BoolStorage": "?"},
    "torch BFloat16Storage": jnp.bfloat16,
}


def load(path: Path) -> Any:
    """Return the content of a file: plain values, and tensors as read-only arrays.

    Raises an exception, of many types, if the file is damaged or has other objects.
    """
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as content:
        is_archive, size = content[: len(ZIP)] == ZIP, len(content)
        value = None if is_archive else load_stream(pickles.Reader(), content, size)
    value = _load_archive(path, size) if is_archive else value
    pickles.check_tree(value, size)
    return value


def load_stream(reader: pickles.Reader, stream: Any, size: int) -> Any:
    """Return the content of `size` bytes: five pickles, then the numbers of each storage."""
    storages = _Storages(size)
    magic, version, system = (reader.load(stream, {}) for _ in range(3))
    if magic != MAGIC or version != VERSION or system["little_endian"] is not True:
        raise ValueError("it does not begin as a file of PyTorch")
    value = reader.load(stream, NAMES, storages.find)
    for key in reader.load(stream, {}):
        stored = storages.arrays.pop(pickles.as_text(key))
        if int.from_bytes(stream.read(8), "little") != len(stored):
            raise ValueError("the data of a tensor are damaged or not complete")
        _fill(stored, stream.read(stored.nbytes))
    if storages.arrays or stream.read(1):
        raise ValueError("the data of a tensor are damaged or not complete")
    return value


def _load_archive(path: Path, size: int) -> Any:
    storages = _Storages(size)
    with zipfile.ZipFile(path) as archive:

        def read(name: str) -> bytes:
            member = archive.getinfo(name)
            is_plain = member.compress_type == zipfile.ZIP_STORED
            if not is_plain or max(member.file_size, member.compress_size) > size:
                raise ValueError(f"{name[:100]!r} in it is compressed or damaged")
            return archive.read(member)

        names = archive.namelist()
        mains = [name for name in names if name.endswith("/data.pkl")]
        if len(mains) != 1:
            raise ValueError("its archive has no data.pkl, or several")
        folder = mains[0].removesuffix("data.pkl")
        if f"{folder}byteorder" in names and read(f"{folder}byteorder") != b"little":
            raise ValueError("its numbers begin with their highest byte")
        value = pickles.Reader().load(io.BytesIO(read(mains[0])), NAMES, storages.find)
        for key, stored in storages.arrays.items():
            _fill(stored, read(f"{folder}data/{key}"))
    return value


def _fill(stored: np.ndarray, content: bytes) -> None:
    if len(content) != stored.nbytes:
        raise ValueError("the data of a tensor are damaged or not complete")
    stored[:] = np.frombuffer(content, stored.dtype)


class _Storages:
    """Arrays (n,) for the storages to which a pickle refers, to be filled in."""

    def __init__(self, size: int) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self._left = size

    def find(self, identifier: Any) -> np.ndarray:
        """Return the array for an identifier. Raise ValueError if the file is too small for it."""
        if type(identifier) is not tuple or len(identifier) not in (5, 6):
            raise ValueError("it refers to an object that is no storage")
        _, name, key, _, count, *view = identifier
        if type(name) is not pickles.Name or type(count) is not int or any(view):
            raise ValueError("it refers to an object that is no storage")
        dtype = np.dtype(STORAGES[name])
        stored = self.arrays.get(pickles.as_text(key))
        if stored is None:
            self._left -= count * dtype.itemsize
            if count < 0 or self._left < 0:
                raise ValueError("the data of a tensor are damaged or not complete")
            stored = self.arrays[key] = np.empty(count, dtype)
        if stored.dtype != dtype or len(stored) != count:
            raise ValueError("it has two descriptions of a storage")
        return stored


def _tensor(data: Any, offset: int, shape: Any, strides: Any, *_: Any) -> np.ndarray:
    """Return the entries of a storage (n,) that make a tensor. Raise ValueError for any outside."""
    if not all(type(each) is tuple and len(each) <= MAX_AXES for each in (shape, strides)):
        raise ValueError("a tensor has a damaged shape")
    is_storage = isinstance(data, np.ndarray) and data.base is None  # It is not a tensor.
    sizes = (offset, *shape, *strides)
    if not is_storage or any(type(n) is not int or not 0 <= n < MAX_SIZE for n in sizes):
        raise ValueError("a tensor has a damaged shape")
    count = math.prod(shape)
    last = offset + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True))
    if count > len(data) or (count and last >= len(data)):
        raise ValueError(f"a tensor of shape {shape} is larger than its data")
    steps = [stride * data.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(data[offset:], shape, steps, writeable=False)


def empty_dict() -> dict:
    """Return a new dictionary; pickles add the entries to it."""
    return {}


NAMES: dict[str, Callable[..., Any] | None] = {
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": lambda tensor, *_: tensor,
    "collections OrderedDict": empty_dict,
    **dict.fromkeys(STORAGES),
}
"""The names in a pickle of tensors; see `readers.pickles.Names`."""
