"""Files of a run: what they depend on, and how they are written and read.

A workdir or evaluation folder holds the config it was made with; a command with another config is
refused where a field differs that its files depend on. Each file that a later command may reuse
holds a description of what it was made from, and is computed again if that differs.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import jax
import numpy as np
import safetensors.numpy
from absl import logging
from flax import traverse_util
from PIL import Image
from tqdm import tqdm

import checkpoints
import sharding
from configs import fields
from configs.default import Config, complete, get_default_config
from errors import InputError, brief, printable
from readers.files import (
    check_regular,
    mismatch,
    not_finite,
    read_json,
    read_npz,
    read_safetensors,
)

Arrays = dict[str, np.ndarray]
Depends = Mapping[str, Any]
"""What a file was made from, as JSON: config fields, and the identity of other files."""

LOCK = "lock"  # the file of a workdir that names the process that writes to it

# --- dependencies ---------------------------------------------------------------------------------

DEPENDENCIES: dict[str, frozenset[str]] = {
    "training": frozenset(
        {fields.NETWORK, fields.TRAINING, fields.IMAGES, fields.LOSS, fields.PRECISION, fields.SEED}
    ),
    "checkpoint": frozenset({fields.NETWORK, fields.IMAGES}),
    "evaluation": frozenset(
        {fields.NETWORK, fields.IMAGES, fields.LOSS, fields.SAMPLES, fields.GUIDANCE}
        | {fields.CLASSIFIER, fields.LIKELIHOOD, fields.ROUNDS, fields.SEED}
    ),
    "loss": frozenset(
        {fields.NETWORK, fields.IMAGES, fields.LOCATION, fields.LOSS, fields.PRECISION}
        | {fields.ROUNDS, fields.SEED}
    ),
    "bpd": frozenset(
        {fields.NETWORK, fields.IMAGES, fields.LOCATION, fields.LIKELIHOOD, fields.PRECISION}
        | {fields.ROUNDS, fields.SEED}
    ),
    "samples": frozenset(
        {fields.NETWORK, fields.SAMPLES, fields.GUIDANCE, fields.CLASSIFIER, fields.PRECISION}
        | {fields.ROUNDS, fields.SEED}
    ),
    "statistics": frozenset({fields.IMAGES, fields.LOCATION, fields.QUALITY}),
    "noised images": frozenset({fields.NOISE, fields.IMAGES}),
    "dequantizer": frozenset(
        {fields.NETWORK, fields.IMAGES, fields.LOCATION, fields.PRECISION, fields.DEQUANTIZER}
        | {fields.SEED}
    ),
    "restoration": frozenset(
        {fields.NETWORK, fields.IMAGES, fields.SAMPLES, fields.RESTORE, fields.SEED}
    ),
    "answers": frozenset(
        {fields.NETWORK, fields.SAMPLES, fields.RESTORE, fields.PRECISION, fields.ROUNDS}
        | {fields.SEED}
    ),
}
"""For each kind of folder or file, the groups of config fields (`configs/fields.py`) behind it."""


def dependencies(kind: str, config: Config) -> dict[str, Any]:
    """Return the config fields, with their values, that a file or folder of this kind depends on.

    A network that was trained in continuous time does not depend on model.num_scales.
    """
    groups = DEPENDENCIES[kind]
    values = _flatten(config)
    chosen = {
        name: value
        for name, value in values.items()
        if name in fields.FIELDS and not groups.isdisjoint(fields.FIELDS[name].affects)
    }
    if kind == "checkpoint" and config.training.continuous:
        chosen.pop("model.num_scales", None)
    return chosen


def check_config(folder: str | Path, config: Config, kind: str) -> None:
    """Raise InputError if the config of `folder` differs in a field that `kind` depends on.

    The message lists these fields. Without config.json, the config in the newest checkpoint that
    can be read takes its place; a folder without either passes. A config that an older version
    wrote is completed with the defaults first.
    """
    stored = _stored_config(Path(folder))
    if stored is None:
        return
    now, before = dependencies(kind, config), dependencies(kind, stored)
    differing = [
        name for name in sorted(now | before) if now.get(name, None) != before.get(name, None)
    ]
    if differing:
        lines = (
            f"  {name}: {before.get(name, 'absent')!r} there, {now.get(name, 'absent')!r} now"
            for name in differing
        )
        raise InputError(
            f"{folder} belongs to another config; use another folder or change back:\n"
            + "\n".join(lines)
        )


CONFIG_SCHEMA = {
    f"{name}?": dict
    for name, value in get_default_config().to_dict().items()
    if isinstance(value, dict)
}


def _stored_config(folder: Path) -> Config | None:
    """Return the config that a folder was made with, complete, or None if it states none."""
    path = folder / "config.json"
    found = checkpoints.newest_config(folder) if not os.path.lexists(path) else None
    if found is None and not os.path.lexists(path):
        return None
    try:
        source, stored = found or (str(path), read_json(path, dict))
        problem = mismatch(stored, CONFIG_SCHEMA)
        if problem:
            raise ValueError(f"{source} is damaged: {problem}.")
        completed = complete(Config(stored))
        nested = [name for name in _flatten(completed) if name.count(".") > 1]
        if nested:
            raise ValueError(f"{source} is damaged: it has a field {nested[0][:80]}.")
        return completed
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise InputError(
            f"{folder} has a config that cannot be read: {brief(error)} Restore config.json, or "
            "delete it, if the config of the newest checkpoint is to take its place."
        ) from error


def check_workdir(workdir: str | Path, config: Config) -> None:
    """Raise InputError if `workdir` does not exist, or holds another network than the config's."""
    if not Path(workdir).is_dir():
        raise InputError(f"--workdir={workdir} does not exist; train first, with --mode=train.")
    check_config(workdir, config, "checkpoint")


@contextlib.contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Let only this run of process 0 write to `folder`; raise InputError if another one does.

    The lock is one of the operating system, which ends with the process that holds it. It holds on
    one computer, and between computers as far as their shared file system supports locks.
    """
    if jax.process_index():
        yield
        return
    with _open_lock(Path(folder) / LOCK) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            owner = printable(file.read().strip()) or "another process"
            raise InputError(
                f"{folder} is in use by {owner}. Wait for it or stop it, or use another --workdir."
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def _open_lock(path: Path) -> TextIO:
    if os.path.lexists(path):
        check_regular(path)
    with writing(path):
        return open(path, "a+", encoding="utf-8", errors="replace")


@contextlib.contextmanager
def owned(folder: str | Path, config: Config, kind: str) -> Iterator[None]:
    """Let only this run write to `folder`, by `locked`, after `claim`."""
    check_config(folder, config, kind)
    _make(folder)
    with locked(folder):
        claim(folder, config, kind)
        yield


def claim(folder: str | Path, config: Config, kind: str) -> None:
    """Check the config of `folder`, create the folder, and write `config` as its config.json."""
    check_config(folder, config, kind)
    _make(folder)
    write_json(Path(folder) / "config.json", config.to_dict())


def _make(folder: str | Path) -> None:
    """Create a folder and those above it."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"the folder {folder} cannot be made: {error.strerror}. Use another name."
        ) from error


TAKEN = (
    *(checkpoints.SNAPSHOTS, checkpoints.BACKUPS, "classifier", "data", "dequantizers"),
    *("latents", "restore", "samples", "statistics", "tensorboard"),
)
"""The folders of a workdir that cannot be the folder of an evaluation."""


def results_folder(parent: str | Path, name: str, taken: Sequence[str] = TAKEN) -> Path:
    """Return the folder of results that --eval_folder names, below `parent`.

    Raises InputError if it lies elsewhere, or is one of those that are `taken` by other modes.
    """
    parts = Path(name).parts
    if not parts or ".." in parts or Path(name).is_absolute():
        raise InputError(
            f"--eval_folder={name} must be the name of a folder in the workdir, such as eval."
        )
    if parts[0] in taken:
        raise InputError(
            f"--eval_folder={name} is a folder of other modes, as are {', '.join(taken)}; use "
            "another name."
        )
    return Path(parent, name)


def _flatten(config: Config) -> dict[str, Any]:
    """Return the fields by their names on the command line, with values as JSON stores them."""
    return traverse_util.flatten_dict(json.loads(json.dumps(config.to_dict())), sep=".")


# --- single files ---------------------------------------------------------------------------------


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Call `write` with a binary file that becomes `path` once it is complete; process 0 only.

    Raises InputError if the file cannot be written.
    """
    if jax.process_index():
        return
    temporary = path.with_name(path.name + ".tmp")
    with writing(path):
        try:
            with open(temporary, "wb") as file:
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


DEPENDS = "depends"  # the array of an .npz file that describes what the others were made from
RECORD = "arrays"  # the array that states the type and shape of the others
RESERVED = {DEPENDS, RECORD}


def save_arrays(path: Path, arrays: Arrays, depends: Depends) -> None:
    """Write an .npz file with a description of its arrays and of what they were made from."""
    if RESERVED & arrays.keys():
        raise ValueError(f"arrays may not be called {' or '.join(sorted(RESERVED))}")
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    description = {DEPENDS: np.array(_canonical(depends)), RECORD: np.array(_record(arrays))}
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
    if found != _canonical(depends) or record != _record(arrays):
        return None
    return arrays


def is_current(path: Path, depends: Depends) -> bool:
    """Return whether `load_arrays` would return the arrays of the file."""
    return load_arrays(path, depends) is not None


def _record(arrays: Arrays) -> str:
    """Return types and shapes of arrays as JSON."""
    return _canonical({name: [array.dtype.str, array.shape] for name, array in arrays.items()})


def _canonical(depends: Depends) -> str:
    return json.dumps(depends, sort_keys=True)


# --- parameters -----------------------------------------------------------------------------------

TREE_DEPENDS = "settings"  # the metadata entry that describes what a tree was made from
CHECKSUM = "checksum"  # the metadata entry with the CRC-32 of all arrays


def save_tree(path: Path, tree: Any, depends: Depends, step: int) -> None:
    """Write a safetensors file of a pytree, with what it was made from and its training step."""
    tensors = {name: np.asarray(leaf) for name, leaf in _named(tree).items()}
    metadata = {
        TREE_DEPENDS: _canonical(depends),
        "step": str(step),
        CHECKSUM: _tree_checksum(tensors),
    }
    data = safetensors.numpy.save(tensors, metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(data))


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
    return (tree, step) if _canonical(found) == _canonical(depends) else None


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


# --- rounds ---------------------------------------------------------------------------------------


def run_rounds(
    folder: Path, name: str, count: int, compute: Callable[[int], Arrays], depends: Depends
) -> list[Path]:
    """Compute the rounds 0 .. count - 1 that are not on disk, and return the files of all.

    Args:
      folder: where the files are.
      name: the name of the rounds; the file of round i is NAME_i.npz.
      compute: the arrays of a round, from its number.
      depends: what the arrays are made from. A round that was made from something else, or by a
        version before 0.6, which did not record it, is computed again.
    """
    paths = round_paths(folder, name, count)
    missing = [(i, path) for i, path in enumerate(paths) if not is_current(path, depends)]
    stale = sum(path.exists() for _, path in missing)
    if stale:
        logging.warning(
            "%s: %d file(s) of %s do not match this run, or are of a version before 0.6 and do not "
            "state what they were made from; they are computed again.",
            *(folder, stale, name),
        )
    sharding.wait(f"look at the rounds of {name}")  # Before process 0 replaces any.
    print(f"{folder.name}: {name}, {len(missing)} of {count} rounds to do", flush=True)
    for index, path in tqdm(missing, unit="round", disable=None):
        save_arrays(path, compute(index), depends)
    sharding.wait(f"rounds of {name}")
    return paths


def round_paths(folder: Path, name: str, count: int) -> list[Path]:
    """Return the files of the rounds 0 .. count - 1."""
    return [folder / f"{name}_{index}.npz" for index in range(count)]


def load_rounds(paths: Sequence[Path], *names: str, optional: Sequence[str] = ()) -> Arrays:
    """Return arrays of the rounds, each joined along its first axis.

    Args:
      paths: the files, opened one after the other.
      names: the arrays to read; by default all.
      optional: further arrays, which either all files have or none.

    Raises:
      InputError: a file is damaged, or lacks an array.
    """
    again = "Delete it, and it is computed again."
    parts: dict[str, list[np.ndarray]] = {}
    expected = set(names)
    for index, path in enumerate(paths):
        try:
            found = read_npz(path, *([*names, *optional] if names else []))
        except InputError as error:
            raise InputError(f"{error} {again}") from error
        found = {name: array for name, array in found.items() if name not in RESERVED}
        if not index:  # The other files must have the same arrays.
            expected |= found.keys()
        if found.keys() != expected:
            lacking = ", ".join(map(printable, sorted(expected ^ found.keys())))
            raise InputError(f"{path} lacks {lacking}, or other rounds do. {again}")
        for name, array in found.items():
            parts.setdefault(name, []).append(array)
    try:
        return {name: np.concatenate(part) for name, part in parts.items()}
    except ValueError as error:
        raise InputError(
            f"the rounds {paths[0]} .. {paths[-1]} do not fit each other: {brief(error)}. Delete "
            "them, and they are computed again."
        ) from error
