"""Parameters in safetensors files, with a description of what they were made from."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from errors import InputError
from readers.files import not_finite, read_safetensors, write_safetensors
from runs.depends import Depends, canonical
from runs.files import Arrays, write_atomically

TREE_DEPENDS = "settings"  # the metadata entry that describes what a tree was made from
CHECKSUM = "checksum"  # the metadata entry with the CRC-32 of all arrays


def save_tree(path: Path, tree: Any, depends: Depends, step: int) -> None:
    """Write a safetensors file of a pytree, with what it was made from and its training step."""
    tensors = {name: np.asarray(leaf) for name, leaf in _named(tree).items()}
    metadata = {
        TREE_DEPENDS: canonical(depends),
        "step": str(step),
        CHECKSUM: _tree_checksum(tensors),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: write_safetensors(file, tensors, metadata))


def load_tree(path: Path, like: Any, depends: Depends) -> tuple[Any, int] | None:
    """Return the tree that `save_tree` wrote with the same description, and its step.

    None if the file does not exist, is damaged (with a warning), or was made from something else.
    """
    if not os.path.lexists(path):
        return None
    try:
        tree, found, step = _read_tree(path, like)
    except InputError as error:
        logging.warning("%s It is not used, and is replaced.", error)
        return None
    return (tree, step) if canonical(found) == canonical(depends) else None


def read_tree(path: Path, like: Any) -> tuple[Any, Depends]:
    """Return the tree of a file that `save_tree` wrote, and what it was made from.

    Raises InputError if the file is damaged, or holds a tree of another structure than `like`.
    """
    tree, depends, _ = _read_tree(path, like)
    return tree, depends


def _read_tree(path: Path, like: Any) -> tuple[Any, dict[str, Any], int]:
    """Return the tree of a file, what it was made from and its step; see `read_tree`."""
    metadata, tensors = read_safetensors(path)
    # Files of versions before 0.6 have no checksum.
    if metadata.get(CHECKSUM, _tree_checksum(tensors)) != _tree_checksum(tensors):
        raise InputError(f"{path} is damaged: its arrays do not have the checksum that it states.")
    expected = {name: leaf.shape for name, leaf in _named(like).items()}
    if {name: value.shape for name, value in tensors.items()} != expected:
        raise InputError(f"{path} holds another network than the config's.")
    if not_finite(tensors):
        raise InputError(f"{path} has values that are not finite.")
    try:
        depends, step = json.loads(metadata.get(TREE_DEPENDS, "{}")), int(metadata.get("step", ""))
        if not isinstance(depends, dict) or step < 0:
            raise ValueError("they are no settings")
    except (RecursionError, ValueError) as error:
        raise InputError(f"{path} is damaged: its settings cannot be read.") from error
    return _unflatten(like, tensors), depends, step


def _tree_checksum(tensors: Arrays) -> str:
    crc = 0
    for name in sorted(tensors):
        crc = zlib.crc32(name.encode(), crc)
        crc = zlib.crc32(np.ascontiguousarray(tensors[name]).data, crc)
    return str(crc)


def _named(tree: Any) -> dict[str, Any]:
    """Return the leaves by their names in files."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def _unflatten(like: Any, tensors: Arrays) -> Any:
    leaves = [tensors[name] for name in _named(like)]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)
