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
    """Return the arrays of an entry, or an empty dictionary if it is absent or damaged."""
    with contextlib.suppress(InputError):  # A zip archive has checksums.
        return read_npz(entry_path(kind, path))
    return {}


def save(kind: str, path: Path, entry: dict[str, np.ndarray]) -> None:
    """Write the arrays of an entry; errors of the file system are ignored."""
    target = entry_path(kind, path)
    temporary = target.with_suffix(f".{uuid.uuid4().hex}.tmp")
    with contextlib.suppress(OSError):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                np.savez(file, allow_pickle=False, **entry)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


def arrays(
    kind: str, path: Path, compute: Callable[[], dict[str, np.ndarray]], key: str = ""
) -> dict[str, np.ndarray]:
    """Return the arrays that `compute` returns, from the cache if they were saved with `key`.

    By default the key is the fingerprint of the file `path`.
    """
    key, found = key or fingerprint(path), load(kind, path)
    if str(found.get("key")) != key:
        found = compute() | {"key": np.array(key)}
        save(kind, path, found)
    return found
