"""Keys of cached results: hashes of a config and of the source files that determine a result.

A result is used only under the key of the present config and code, so that stale ones are never
used: they stay in the folder under their old keys.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LENGTH = 12  # hexadecimal digits of a key

TRAINING = (
    "datasets.py",
    "experiment",
    "factory",
    "losses.py",
    "models",
    "readers",
    "sde_lib.py",
    "solvers/keys.py",
    "train_state.py",
    "training",
)
"""The files and folders that determine a trained network, apart from its config."""

MEASURING = (
    *TRAINING,
    "auxiliary",
    "benchmarks/claims/latents.py",
    "benchmarks/claims/quality.py",
    "benchmarks/digit_mixture.py",
    "benchmarks/digits_reference.py",
    "configs/evaluation_fields.py",
    "controllable",
    "inference",
    "likelihood.py",
    "modes/latents.py",
    "pretrained",
    "sampling.py",
    "solvers",
)
"""Those of a measurement, apart from its arguments and the module that it is defined in."""


def key(value: Any, sources: Iterable[str]) -> str:
    """Return the hash of a value that JSON can store and of files and folders below ROOT."""
    digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode())
    for name in sources:
        digest.update(_digest_of(ROOT / name).encode())
    return digest.hexdigest()[:LENGTH]


@functools.cache
def _digest_of(path: Path) -> str:
    """Return the hash of a file, or of the Python files below a folder and their names."""
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*.py")):
        digest.update(file.relative_to(path).as_posix().encode())
        digest.update(_digest_of(file).encode())
    return digest.hexdigest()
