"""Keys of cached results: hashes of a config and of the code that determines a result.

A result is used only under the key of the present config and code, so that stale ones are never
used: they stay in the folder under their old keys. Comments and docstrings are not part of a key.
"""

from __future__ import annotations

import ast
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
    "api",
    "likelihood.py",
    "commands/latents.py",
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
    if path.suffix == ".py":
        return hashlib.sha256(_code(path.read_text()).encode()).hexdigest()
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*.py")):
        digest.update(file.relative_to(path).as_posix().encode())
        digest.update(_digest_of(file).encode())
    return digest.hexdigest()


def _code(source: str) -> str:
    """Return the syntax tree of a Python file as text, without docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [each for each in node.body if not _is_text(each)]
    return ast.dump(tree)


def _is_text(statement: ast.stmt) -> bool:
    """Return whether a statement is a string alone."""
    if not isinstance(statement, ast.Expr) or not isinstance(statement.value, ast.Constant):
        return False
    return isinstance(statement.value.value, str)
