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
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np
import safetensors
import safetensors.numpy
from absl import logging
from flax import traverse_util
from PIL import Image
from tqdm import tqdm

import sharding
from configs import fields
from configs.default import Config, complete
from errors import InputError, brief

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

    The message lists these fields. A folder without config.json passes. A config that an older
    version wrote is completed with the defaults first.
    """
    path = Path(folder) / "config.json"
    if not path.exists():
        return
    now = dependencies(kind, config)
    before = dependencies(kind, complete(Config(read_json(path))))
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
    path = Path(folder) / LOCK
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            owner = file.read().strip() or "another process"
            raise InputError(
                f"{folder} is in use by {owner}. Wait for it or stop it, or use another --workdir."
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def claim(folder: str | Path, config: Config, kind: str) -> None:
    """Check the config of `folder`, create the folder, and write `config` as its config.json."""
    check_config(folder, config, kind)
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_json(Path(folder) / "config.json", config.to_dict())


def _flatten(config: Config) -> dict[str, Any]:
    """Return the fields by their names on the command line, with values as JSON stores them."""
    return traverse_util.flatten_dict(json.loads(json.dumps(config.to_dict())), sep=".")


# --- single files ---------------------------------------------------------------------------------


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Call `write` with a binary file that becomes `path` once it is complete; process 0 only."""
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


def read_json(path: Path) -> Any:
    """Return the content of a JSON file. Raise InputError, naming the file, if it is damaged."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON: {brief(error)}.") from error


def write_picture(path: Path, picture: Image.Image) -> None:
    """Write a PNG file atomically."""
    write_atomically(path, lambda file: picture.save(file, "png"))


DEPENDS = "depends"  # the array of an .npz file that describes what the others were made from


def save_arrays(path: Path, arrays: Arrays, depends: Depends) -> None:
    """Write an .npz file with a description of what its arrays were made from."""
    if DEPENDS in arrays:
        raise ValueError(f"an array may not be called {DEPENDS!r}")
    described: dict[str, Any] = {**arrays, DEPENDS: np.array(_canonical(depends))}
    write_atomically(path, lambda file: np.savez(file, **described))


def load_arrays(path: Path, depends: Depends) -> Arrays | None:
    """Return the arrays that `save_arrays` wrote with the same description.

    None if the file does not exist, is damaged, or was made from something else; the caller then
    computes the arrays again.
    """
    if not is_current(path, depends):
        return None
    return load_rounds([path])


def is_current(path: Path, depends: Depends) -> bool:
    """Return whether `path` is a readable .npz file that was made from what `depends` describes."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return DEPENDS in arrays and str(arrays[DEPENDS]) == _canonical(depends)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile):
        return False


def _canonical(depends: Depends) -> str:
    return json.dumps(depends, sort_keys=True)


# --- parameters -----------------------------------------------------------------------------------


def save_tree(path: Path, tree: Any, depends: Depends, step: int) -> None:
    """Write a safetensors file of a pytree, with what it was made from and its training step."""
    tensors = {name: np.asarray(leaf) for name, leaf in _named(tree).items()}
    metadata = {TREE_DEPENDS: _canonical(depends), "step": str(step)}
    data = safetensors.numpy.save(tensors, metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(data))


def load_tree(path: Path, like: Any, depends: Depends) -> tuple[Any, int] | None:
    """Return the tree that `save_tree` wrote with the same description, and its step.

    None if the file does not exist, is damaged, or was made from something else.
    """
    try:
        with safetensors.safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get(TREE_DEPENDS) != _canonical(depends):
                return None
            tensors = {name: file.get_tensor(name) for name in _named(like)}
            return _unflatten(like, tensors), int(metadata["step"])
    except (FileNotFoundError, safetensors.SafetensorError):
        return None


def read_tree(path: Path, like: Any) -> tuple[Any, Depends]:
    """Return the tree of a file that `save_tree` wrote, and what it was made from.

    Raises InputError if the file is damaged, or holds a tree of another structure than `like`.
    """
    try:
        with safetensors.safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise InputError(f"{path} is damaged: {brief(error)}.") from error
    expected = {name: leaf.shape for name, leaf in _named(like).items()}
    if {name: value.shape for name, value in tensors.items()} != expected:
        raise InputError(f"{path} holds another network than the config's.")
    return _unflatten(like, tensors), json.loads(metadata.get(TREE_DEPENDS, "{}"))


TREE_DEPENDS = "settings"  # the metadata entry that describes what a tree was made from


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


def load_rounds(paths: Sequence[Path], *names: str) -> Arrays:
    """Return arrays of the rounds, each joined along its first axis.

    Args:
      paths: the files, opened one after the other.
      names: the arrays to read; by default all.

    Raises:
      InputError: a file is damaged.
    """
    parts: dict[str, list[np.ndarray]] = {}
    for path in paths:
        try:
            with np.load(path, allow_pickle=False) as arrays:
                for name in names or arrays.files:
                    if name in arrays and name != DEPENDS:
                        parts.setdefault(name, []).append(arrays[name])
        except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
            raise InputError(
                f"{path} cannot be read: {brief(error)}. Delete it, and it is computed again."
            ) from error
    return {name: np.concatenate(part) for name, part in parts.items()}
