"""Results in rounds: files of arrays, each of which is computed unless it is on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from absl import logging

import sharding
from errors import InputError, advice, brief, printable
from readers.files import is_real, read_npz
from runs import progress
from runs.files import DEPENDS, Arrays, Depends, load_arrays, save_arrays

AGAIN = "Delete it, and it is computed again."


def run_rounds(
    folder: Path, name: str, count: int, compute: Callable[[int], Arrays], depends: Depends
) -> list[Path]:
    """Compute the rounds 0 .. count - 1 that are not on disk, and return the files of all.

    The file of round i is NAME_i.npz, and `compute` returns its arrays from its number. `depends`
    states what they are made from: a round that was made from something else is computed again.
    """
    paths = round_paths(folder, name, count)
    missing = [(i, path) for i, path in enumerate(paths) if load_arrays(path, depends) is None]
    stale = sum(path.exists() for _, path in missing)
    if stale:
        text = "%s: %d file(s) of %s do not match this run; they are computed again."
        logging.warning(text, folder, stale, name)
    sharding.wait(f"look at the rounds of {name}")  # Before process 0 replaces any.
    progress.say(f"{folder.name}: {name}, {len(missing)} of {count} rounds to do")
    ready = count - len(missing)
    with progress.counting(name, count, "round", ready, announced=True) as update:
        for done, (index, path) in enumerate(missing, start=ready + 1):
            save_arrays(path, compute(index), depends)
            update(done)
    sharding.wait(f"rounds of {name}")
    return paths


def round_paths(folder: Path, name: str, count: int) -> list[Path]:
    """Return the files of the rounds 0 .. count - 1."""
    return [folder / f"{name}_{index}.npz" for index in range(count)]


def load_rounds(
    paths: Sequence[Path], *names: str, optional: Sequence[str] = (), **shapes: tuple[int, ...]
) -> Arrays:
    """Return arrays of numbers of the rounds, each joined along its first axis; True becomes 1.

    These are `names`, by default all; `optional` ones, which either all files have or none; and
    those of `shapes`, with their shapes once they are joined, where -1 is any size. Raises
    InputError for a damaged file, and for an array that is missing or of another type or shape.
    """
    names = (*names, *(name for name in shapes if name not in optional))
    parts: dict[str, list[np.ndarray]] = {}
    expected = set(names)
    for index, path in enumerate(paths):
        with advice(AGAIN):
            found = read_npz(path, *([*names, *optional] if names else []))
        found.pop(DEPENDS, None)
        if not index:  # The other files must have the same arrays.
            expected |= found.keys()
        if found.keys() != expected:
            lacking = ", ".join(map(printable, sorted(expected ^ found.keys())))
            raise InputError(f"{path} lacks {lacking}, or other rounds do. {AGAIN}")
        for name, array in found.items():
            array = array.astype(np.uint8) if array.dtype == bool else array
            if not is_real(array.dtype):
                raise InputError(f"{path}: {printable(name)} is of type {array.dtype}. {AGAIN}")
            parts.setdefault(name, []).append(array)
    try:
        joined = {name: np.concatenate(part) for name, part in parts.items()}
        for name in shapes.keys() & joined.keys():
            size, wanted = joined[name].shape, shapes[name]
            if len(size) != len(wanted) or any(b not in (-1, a) for a, b in zip(size, wanted)):
                raise ValueError(f"{name} has the shape {size} instead of {wanted}")
        return joined
    except ValueError as error:
        raise InputError(
            f"the rounds {paths[0]} .. {paths[-1]} do not fit each other: {brief(error)}. Delete "
            "them, and they are computed again."
        ) from error
