"""Checked reading of files, which may be damaged or come from others.

Every reader accepts regular files only, limits what a compressed file may expand to, never
executes anything, and raises `InputError`, naming the file, for any content that it cannot read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import stat
import weakref
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from errors import InputError, brief, printable

MAX_TEXT = 2**24  # Bytes of a JSON file; its values may take 20 times as many.
MAX_DEPTH = 50  # Nested lists and objects of a JSON file.
MAX_RATIO = 100  # Size of the content of a compressed file, relative to that of the file.
MAX_STEP = 10**9  # Steps and numbers of checkpoints; more are not plausible.
ALWAYS_ALLOWED = 2**30  # Bytes of a file that is read as a whole, or in any compressed file.
MAX_HEADER = 1000  # Bytes of the header of an array.
MAX_AXES = 16
MAY_LACK = "If you downloaded it, compare its size with the original's, or download it again."

# --- any file ---


@contextlib.contextmanager
def reading(name: object, advice: str = "", kind: str = "") -> Iterator[None]:
    """Turn every exception into an InputError: "NAME cannot be read KIND: PROBLEM. ADVICE".

    Decoders raise exceptions of many types for damaged files. `kind` begins with a space.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        problem = getattr(error, "strerror", None) or brief(error)
        message = f"{printable(name)} cannot be read{kind}: {problem.rstrip('.')}. {advice}"
        raise InputError(message.strip()) from error


def check_regular(path: str | Path, what: str = "") -> None:
    """Raise InputError, naming the flag `what`, unless `path` is, or links to, a regular file."""
    name = f"{what} = {str(path)!r}" if what else printable(path)
    with reading(name):
        mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a named pipe, socket or device"
        raise InputError(f"{name} is {kind}; it must be a regular file.")


def check_expansion(path: Path, declared: int) -> None:
    """Raise InputError if the content of a compressed file, `declared` bytes, is too large."""
    limit = max(ALWAYS_ALLOWED, MAX_RATIO * path.stat().st_size)
    if declared > limit:
        raise InputError(
            f"{path} declares a content of {declared:,} bytes; for a compressed file of this size "
            f"at most {limit:,} are read. Store it without compression if it can be trusted."
        )


def read_bytes(path: Path, what: str = "", limit: int | None = None) -> bytes:
    """Return the content of a file of at most `limit` bytes, by default ALWAYS_ALLOWED."""
    check_regular(path, what)
    limit = ALWAYS_ALLOWED if limit is None else limit
    with reading(path), open(path, "rb") as file:
        content = file.read(min(limit, os.fstat(file.fileno()).st_size) + 1)
    if len(content) > limit:
        raise InputError(f"{path} has more than {limit:,} bytes, which is the limit.")
    return content


def read_verified(path: Path, md5: str) -> bytes:
    """Return the content of a published file. Raise InputError if it has another MD5 checksum."""
    content = read_bytes(path)
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise InputError(
            f"{path} has the MD5 checksum {found}; that of the published file is {md5}. Download "
            f"it again. data.dataset = 'array' and 'folder' read custom images."
        )
    return content


class OpenFile:
    """A regular file that is read at any position, until nothing refers to it."""

    def __init__(self, path: Path) -> None:
        check_regular(path)
        self.path, self._descriptor = path, os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)
        self.size = os.fstat(self._descriptor).st_size

    def read(self, start: int, length: int) -> bytes:
        """Return bytes from position `start` on. Raises ValueError beyond the end."""
        data = os.pread(self._descriptor, length, start) if start + length <= self.size else b""
        if len(data) != length:
            raise ValueError("it is cut off")
        return data


# --- JSON ---

Schema = Any
"""A type or tuple of types; {key: Schema}, where a key that ends in "?" is optional; or [Schema]
for a list of any length."""

NUMBER = (int, float)
OPTIONAL_NUMBER = (int, float, type(None))


def read_json(path: Path, schema: Schema, what: str = "") -> Any:
    """Return the content of a JSON file. Raise InputError unless it is as in `schema`."""
    text = read_bytes(path, what, MAX_TEXT)
    with reading(path, kind=" as JSON"):
        content = parse_json(text.decode())
    check_structure(content, schema, path)
    return content


def parse_json(text: str) -> Any:
    """Return the content of JSON. Raise ValueError for damage, names twice and deep nesting."""

    def to_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a name occurs twice in an object")
        return found

    def depth(value: Any) -> int:
        parts = value.values() if isinstance(value, dict) else value
        return 1 + max(map(depth, parts), default=0) if isinstance(value, (dict, list)) else 0

    with contextlib.suppress(RecursionError):
        content = json.loads(text, object_pairs_hook=to_dict)
        if depth(content) <= MAX_DEPTH:
            return content
    raise ValueError("it is nested too deeply")


def check_structure(value: Any, schema: Schema, name: object, what: str = "its content") -> None:
    """Raise InputError, with the name of the file, if its content is not as in a schema."""
    problem = mismatch(value, schema, what)
    if problem:
        raise InputError(f"{name} is damaged: {problem}.")


def mismatch(value: Any, schema: Schema, where: str = "its content") -> str:
    """Return how a value differs from a schema, or ''."""
    types = {dict: dict, list: list}.get(type(schema), schema)
    types = types if isinstance(types, tuple) else (types,)
    if isinstance(value, bool) and bool not in types or not isinstance(value, types):
        allowed = " or ".join(each.__name__ for each in types)
        return f"{where} is of type {type(value).__name__} instead of {allowed}"
    if isinstance(value, int) and abs(value) >= 2**63:
        return f"{where} is an integer of more than 64 bits"
    content: Any = value
    if isinstance(schema, list):
        problems = (mismatch(each, schema[0], f"an entry of {where}") for each in content)
        return next(filter(None, problems), "")
    for key, part in schema.items() if isinstance(schema, dict) else ():
        name = key.removesuffix("?")
        problem = ""
        if name in content:
            problem = mismatch(content[name], part, repr(name))
        elif name == key:
            problem = f"{where} has no {name!r}"
        if problem:
            return problem
    return ""


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a log, one a line; skip lines that a killed run has damaged."""
    if not path.exists():
        return
    check_regular(path)
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            with contextlib.suppress(ValueError, RecursionError):
                entry = json.loads(line)
                if isinstance(entry, dict):
                    yield entry


# --- arrays ---


def read_npz(path: Path, *names: str, what: str = "") -> dict[str, np.ndarray]:
    """Return the arrays of an .npz file called `names`, by default all, or raise InputError."""
    check_regular(path, what)
    arrays = {}
    with reading(path, kind=" as .npz"), zipfile.ZipFile(path) as archive:
        for filename, member in zip_members(path, archive).items():
            name = filename.removesuffix(".npy")
            if name != filename and (not names or name in names):
                arrays[name] = _read_member(archive, member)
    return arrays


def zip_members(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Return the files in a zip archive by name. Raise errors for bombs and unusual archives."""
    members = archive.infolist()
    check_expansion(path, sum(member.file_size for member in members))
    if {member.compress_type for member in members} - {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise ValueError("it is compressed by another method than deflate")
    by_name = {member.filename: member for member in members}
    if len(by_name) < len(members):
        raise ValueError("a name occurs twice")
    return by_name


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """Return one array, which takes no more memory than the file declares for it."""
    with archive.open(member) as stream:
        shape, dtype, _ = read_header(stream)
        if stream.tell() + math.prod(shape) * dtype.itemsize != member.file_size:
            raise ValueError(f"{member.filename} does not have the size that its header states")
        stream.seek(0)
        array = np.lib.format.read_array(stream, allow_pickle=False)
        stream.read(1)  # The checksum is compared at the end.
        return array


def read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype, Literal["C", "F"]]:
    """Return shape, type and order of the array in a .npy file.

    Raises exceptions of many types if the header is damaged, and ValueError for Python objects.
    """
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of the .npy format is not supported")
    read = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
    start, width = stream.tell(), 2 * version[0]  # The length of the header takes 2 or 4 bytes.
    if int.from_bytes(stream.read(width), "little") > MAX_HEADER:  # NumPy allocates it.
        raise ValueError(f"its header has more than {MAX_HEADER:,} bytes")
    stream.seek(start)
    shape, is_fortran, dtype = read(stream, max_header_size=MAX_HEADER)
    if dtype.hasobject:
        raise ValueError("it contains pickled Python objects, which are not loaded")
    if dtype.names or dtype.subdtype or not dtype.itemsize:
        raise ValueError(f"arrays of the type {str(dtype)[:50]} are not supported")
    if len(shape) > MAX_AXES or not all(0 <= side < 2**48 for side in shape):
        raise ValueError(f"the shape {str(shape)[:50]} is not possible")
    return shape, dtype, "F" if is_fortran else "C"


def check_labels(labels: np.ndarray, count: int, classes: int, name: object) -> np.ndarray:
    """Return labels as int32 (count,). Raise InputError unless they are in 0 .. classes - 1."""
    is_valid = labels.shape == (count,) and labels.dtype.kind in "iu"
    if not is_valid or (count and not 0 <= labels.min() <= labels.max() < classes):
        shown = f"from {labels.min()} to {labels.max()}" if is_valid else f"of {labels.dtype}"
        raise InputError(
            f"{name}: labels are {shown}, of shape {labels.shape}; they must be integers in 0 .. "
            f"{classes - 1}, one for each image, of shape {(count,)}."
        )
    return labels.astype(np.int32)


def not_finite(arrays: Mapping[str, np.ndarray]) -> str:
    """Return the name of the first array with other values than finite real numbers, or ''."""
    for name, array in arrays.items():
        if not is_real(array.dtype) or not np.isfinite(array).all():
            return name
    return ""


def is_real(dtype: np.dtype) -> bool:
    """Return whether the values of a type are real numbers."""
    return dtype.kind in "fiu" or dtype.name == "bfloat16"
