"""Single files, written atomically; arrays with a description of what they were made from."""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np
from jax import Array
from PIL import Image

import sharding
from errors import InputError, brief
from readers.files import read_npz

Arrays = dict[str, np.ndarray]

Depends = Mapping[str, Any]
"""What a file was made from, as JSON: config fields, and the identity of other files."""

DEPENDS = "depends"  # the array of an .npz file that describes the others
NAME_PART = 50  # characters of a file's name in that of its temporary file


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Call `write` with a hidden file that becomes `path` once it is complete; process 0 only."""
    if jax.process_index():
        return
    # A part of the name, because file systems allow 255 bytes.
    temporary = path.with_name(f".{path.name[:NAME_PART]}.tmp")
    with writing(path):
        try:
            temporary.unlink(missing_ok=True)
            with open(temporary, "xb") as file:  # Not through a link that the folder brought along.
                write(file)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure to write to `path` into an InputError that names it."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path} cannot be written: {error.strerror or brief(error)}. Fix this and rerun."
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_atomically(path, lambda file: file.write(text.encode()))


def write_json(path: Path, data: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(data, indent=2))


def write_picture(path: Path, picture: Image.Image) -> None:
    """Write a PNG file atomically."""
    write_atomically(path, lambda file: picture.save(file, "png"))


def write_arrays(path: Path, arrays: Arrays) -> None:
    """Write an .npz file atomically."""
    named: dict[str, Any] = arrays  # NumPy's other arguments are of other types.
    write_atomically(path, lambda file: np.savez(file, **named))


def save_arrays(path: Path, arrays: Arrays, depends: Depends) -> None:
    """Write an .npz file with a description of its arrays and of what they were made from."""
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    write_arrays(path, {**arrays, DEPENDS: np.array(_description(arrays, depends))})


def load_arrays(path: Path, depends: Depends) -> Arrays | None:
    """Return what `save_arrays` wrote with the same description; None if it is damaged."""
    try:
        arrays = read_npz(path)
    except InputError:
        return None
    found = str(arrays.pop(DEPENDS, ""))
    return arrays if found == _description(arrays, depends) else None


def _description(arrays: Arrays, depends: Depends) -> str:
    kinds = {name: [array.dtype.str, array.shape] for name, array in arrays.items()}
    return json.dumps([depends, kinds], sort_keys=True)


def to_host(leaf: Array | np.ndarray) -> Array | np.ndarray:
    """Return a copy in the memory of the host, unless the array is split over the devices.

    Orbax would slice a replicated array for each device, which takes long for hundreds of them.
    """
    if isinstance(leaf, Array) and leaf.is_fully_replicated:
        return np.array(leaf.addressable_data(0))
    return leaf


def tree_checksum(tree: Any) -> int:
    """Return the CRC-32 of the arrays, however they are sharded; one at a time is fetched.

    Orbax detects missing bytes, but not changed ones.
    """
    crc = 0
    for leaf in map(to_host, jax.tree.leaves(tree)):
        whole = leaf if isinstance(leaf, np.ndarray) else sharding.fetch(leaf)
        crc = zlib.crc32(np.ascontiguousarray(whole).data, crc)
    return crc
