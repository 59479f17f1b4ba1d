"""Pickled dictionaries of NumPy arrays, as Python 2 wrote them, without executing their content.

A pickle names functions, which Python's reader calls. Here, the three names of an array of numbers
stand for objects that only record their arguments, and every other name is refused. The arrays are
then built from the recorded bytes.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from typing import Any

import numpy as np

from errors import InputError, brief, printable

NAMES = ("numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype")
NUMBERS = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")
PROTOCOL = 2  # That of Python 2. Instructions of later ones reserve memory that a file states.


def read(content: bytes, name: str) -> dict[Any, Any]:
    """Return a pickled dictionary; its values may be arrays, numbers, texts, lists and so on.

    Byte strings of Python 2 become texts with the same code points. `name` is that of the file.

    Raises InputError if the pickle is damaged, names other objects, or is no dictionary.
    """
    try:
        if any(opcode.proto > PROTOCOL for opcode, _, _ in pickletools.genops(content)):
            raise ValueError(f"its protocol is newer than {PROTOCOL}")
        entries = _Reader(io.BytesIO(content), encoding="latin-1").load()
        if not isinstance(entries, dict):
            raise ValueError("it is no dictionary")
        return {
            key: value.array() if isinstance(value, _Array) else value
            for key, value in entries.items()
        }
    except Exception as error:  # Damage raises exceptions of many types.
        raise InputError(f"{name} cannot be read as pickled arrays: {brief(error)}.") from error


class _Reader(pickle._Unpickler):
    """Python's reader in Python: the one in C reserves as much memory as a file states."""

    def find_class(self, module: str, name: str) -> _Named:
        if f"{module} {name}" not in NAMES:
            raise ValueError(f"it names {printable(f'{module}.{name}')}, which is not loaded")
        return _Named(name)


class _Named:
    """A name in a pickle; calling it returns a record."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *arguments: Any) -> _Type | _Array:
        return _Type(arguments[0]) if self._name == "dtype" else _Array()


class _Type:
    """The record of an array's type; its state contains the byte order."""

    __slots__ = ("_code", "_order")

    def __init__(self, code: str) -> None:
        if code not in NUMBERS:
            raise ValueError(f"an array has the type {printable(code)[:20]}, which is no number")
        self._code, self._order = code, "="

    def __setstate__(self, state: tuple) -> None:
        self._order = {"<": "<", ">": ">"}.get(state[1], "=")

    def dtype(self) -> np.dtype:
        return np.dtype(self._order + self._code)


class _Array:
    """The record of an array."""

    __slots__ = ("_state",)

    def __setstate__(self, state: tuple) -> None:
        self._state = state

    def array(self) -> np.ndarray:
        _, shape, record, is_fortran, data = self._state
        if not isinstance(record, _Type) or any(side < 0 for side in shape):
            raise ValueError("an array is not complete")
        content, dtype = data.encode("latin-1"), record.dtype()
        if len(content) != math.prod(shape) * dtype.itemsize:
            raise ValueError("an array does not have the size that its shape states")
        return np.frombuffer(content, dtype).reshape(shape, order="F" if is_fortran else "C")
