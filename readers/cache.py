"""What is found out about data once and kept for the next start: arrays by kind, path and state of the files."""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

FOLDER = Path.home() / ".cache" / "score_sde" / "data"


def fingerprint(path: Path) -> str:
    """Changes when a file does."""
    state = path.stat()
    return f"{state.st_size} {state.st_mtime_ns}"


def place(kind: str, path: Path) -> Path:
    """The file of the cache about `path`."""
    return FOLDER / f"{kind}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:20]}.npz"


def load(kind: str, path: Path) -> dict[str, np.ndarray]:
    """What was kept about `path`; nothing, if that is nothing or cannot be read."""
    try:
        with np.load(place(kind, path), allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, zipfile.BadZipFile):
        return {}


def save(kind: str, path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Keeps arrays about `path`; a cache that cannot be written costs time at the next start, no more."""
    target = place(kind, path)
    temporary = target.with_suffix(f".{uuid.uuid4().hex}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            np.savez(file, **arrays)
        os.replace(temporary, target)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()


def arrays(
    kind: str, path: Path, key: str, compute: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """What `compute` returns, or what it returned about `path` when `key` was the same."""
    kept = load(kind, path)
    if "key" in kept and str(kept["key"]) == key:
        return kept
    computed = compute() | {"key": np.array(key)}
    save(kind, path, computed)
    return computed
