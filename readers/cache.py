"""A cache on disk for facts about data files, such as labels and indices of records.

An entry is a set of arrays, identified by its kind and the path of the data. If the cache cannot be
written, the arrays are computed at every start.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np

from errors import InputError, cache_folder
from readers.files import read_npz

FOLDER = cache_folder() / "score_sde" / "data"


def fingerprint(path: Path) -> str:
    """Return the size and modification time of a file, which change when its content does."""
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def entry_path(kind: str, path: Path) -> Path:
    """Return the path of the entry of a kind about the data at `path`."""
    digest = hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()
    return FOLDER / f"{kind}_{digest[:20]}.npz"


def load(kind: str, path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of an entry, or an empty dictionary if it is absent, damaged or changed."""
    with contextlib.suppress(InputError):
        entry = read_npz(entry_path(kind, path))
        if str(entry.pop("digest", "")) == _digest(entry):
            return entry
    return {}


def save(kind: str, path: Path, entry: dict[str, np.ndarray]) -> None:
    """Write the arrays of an entry; errors of the file system are ignored."""
    target = entry_path(kind, path)
    temporary = target.with_suffix(f".{uuid.uuid4().hex}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            np.savez(file, allow_pickle=False, **entry, digest=np.array(_digest(entry)))
        os.replace(temporary, target)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _digest(entry: dict[str, np.ndarray]) -> str:
    parts = [(name, entry[name].dtype.str, entry[name].shape) for name in sorted(entry)]
    content = [repr(parts).encode(), *(entry[name].tobytes() for name in sorted(entry))]
    return hashlib.sha256(b"".join(content)).hexdigest()


def arrays(
    kind: str, path: Path, key: str, compute: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Return the arrays that `compute` returns, from the cache if they were saved with `key`."""
    found = load(kind, path)
    if str(found.get("key")) != key:
        found = compute() | {"key": np.array(key)}
        save(kind, path, found)
    return found
