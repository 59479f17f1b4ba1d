"""Single files: written atomically, and arrays with a description of what they were made from."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np
from PIL import Image

from errors import InputError, brief
from readers.files import read_npz
from runs.depends import Depends, canonical

Arrays = dict[str, np.ndarray]

DEPENDS = "depends"  # the array of an .npz file that describes what the others were made from
RECORD = "arrays"  # the array that states the type and shape of the others
RESERVED = {DEPENDS, RECORD}
NAME_PART = 50  # characters of a file's name in that of its temporary file


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Call `write` with a binary file that becomes `path` once it is complete; process 0 only.

    Until then it is a hidden file beside `path`. One that a killed run left is overwritten.

    Raises InputError if the file cannot be written.
    """
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
            f"{path} cannot be written: {error.strerror or brief(error)}. Once the cause is gone, "
            "the same command continues."
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


def save_arrays(path: Path, arrays: Arrays, depends: Depends) -> None:
    """Write an .npz file with a description of its arrays and of what they were made from."""
    if RESERVED & arrays.keys():
        raise ValueError(f"arrays may not be called {' or '.join(sorted(RESERVED))}")
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    description = {DEPENDS: np.array(canonical(depends)), RECORD: np.array(_record(arrays))}
    write_arrays(path, arrays | description)


def write_arrays(path: Path, arrays: Arrays) -> None:
    """Write an .npz file atomically."""
    named: dict[str, Any] = arrays  # NumPy's other arguments are of other types.
    write_atomically(path, lambda file: np.savez(file, **named))


def load_arrays(path: Path, depends: Depends) -> Arrays | None:
    """Return the arrays that `save_arrays` wrote with the same description.

    None if the file does not exist, is damaged, or was made from something else; the caller then
    computes the arrays again. Every array is read, and must have the recorded type and shape.
    """
    try:
        arrays = read_npz(path)
    except InputError:
        return None
    found, record = (str(arrays.pop(name, "")) for name in (DEPENDS, RECORD))
    if found != canonical(depends) or record != _record(arrays):
        return None
    return arrays


def is_current(path: Path, depends: Depends) -> bool:
    """Return whether `load_arrays` would return the arrays of the file."""
    return load_arrays(path, depends) is not None


def _record(arrays: Arrays) -> str:
    """Return types and shapes of arrays as JSON."""
    return canonical({name: [array.dtype.str, array.shape] for name, array in arrays.items()})
