"""Orbax checkpoints of a workdir, saved in the background, each with the config of its run.

`checkpoints/checkpoint_K` are snapshots for evaluation; `checkpoints-meta/checkpoint_STEP` are
backups for a restart, of which the two newest are kept.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
from absl import logging
from jax import Array

from errors import InputError, advice, brief, printable
from readers.files import MAX_STEP, check_regular, read_json
from runs.files import to_host, tree_checksum

if TYPE_CHECKING:
    import orbax.checkpoint as ocp

SNAPSHOTS, BACKUPS = "checkpoints", "checkpoints-meta"
PARAMS, EMA = "params", "ema"  # names of trees
LOCK = "lock"  # the file of a workdir that names the process that writes to it
NUM_BACKUPS = 2
OPENINGS = 10  # attempts to open a folder that another process changes

INFO = {"step": int, "config": dict, "checksums": dict}
"""The metadata of a checkpoint; see `readers.files.mismatch`."""

UNREADABLE = "Encountered error while reading array index"  # Orbax's, followed by internal names
ABOUT = "about"  # the checksum of step and config

Trees = dict[str, Any]
"""Named pytrees of arrays; each can be restored without the others."""


class Found(NamedTuple):
    """A checkpoint on disk, ordered by its training step."""

    step: int
    folder: str
    number: int

    def __str__(self) -> str:
        return f"{self.folder}/checkpoint_{self.number} (step {self.step})"


class Checkpoints:
    """The checkpoints of one workdir; with `create` also for writing."""

    def __init__(self, workdir: str | Path, *, create: bool = False) -> None:
        self._workdir = Path(os.path.realpath(workdir))
        self._managers = {}
        for folder, keep in ((SNAPSHOTS, None), (BACKUPS, NUM_BACKUPS)):
            path = self._workdir / folder
            if path.exists() and not path.is_dir():
                raise InputError(f"{path} must be a folder of checkpoints, but is a file.")
            for metadata in path.glob("checkpoint_*/_CHECKPOINT_METADATA"):
                with advice("Move this checkpoint to another folder."):
                    check_regular(metadata)  # Orbax would wait without end for a named pipe.
            if create or path.is_dir():
                self._managers[folder] = _open(path, keep, create)
        self._lock = _identity(self._workdir / LOCK)

    def save(
        self, folder: str, number: int, trees: Trees, *, step: int, config: dict[str, Any]
    ) -> None:
        """Start to write a checkpoint in the background; replace one of the same number."""
        import orbax.checkpoint as ocp  # Its import takes a fifth of the start of main.py.

        self._check_still_there()
        if jax.process_count() > 1:  # Two saves at once would collide in Orbax's barriers.
            self.wait()
        with self._writing():
            manager = self._managers[folder]
            if number in manager.all_steps():
                manager.delete(number)
            trees = {name: jax.tree.map(to_host, tree) for name, tree in trees.items()}
            items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
            checksums = {name: tree_checksum(tree) for name, tree in trees.items()}
            checksums[ABOUT] = zlib.crc32(_about(step, config))
            info = ocp.args.JsonSave({"step": step, "config": config, "checksums": checksums})
            manager.save(number, args=ocp.args.Composite(**items, info=info), force=True)

    def find(self, *folders: str) -> list[Found]:
        """Return the readable checkpoints of the folders, by default all, newest first."""
        found = []
        for folder in self._managers.keys() & (folders or (SNAPSHOTS, BACKUPS)):
            numbers = {f"checkpoint_{each}": each for each in self._managers[folder].all_steps()}
            for path in sorted((self._workdir / folder).glob("checkpoint_*")):
                name = f"{folder}/{printable(path.name)}"
                if path.name in numbers:
                    try:
                        step = _read_info(path)["step"]
                        found.append(Found(step, folder, numbers[path.name]))
                    except InputError as error:
                        logging.warning("%s is damaged and is skipped: %s", name, brief(error))
                elif "-tmp" not in path.name:  # Orbax removes what a killed run leaves.
                    logging.warning("%s is not a checkpoint; skipping.", name)
        return sorted(found, reverse=True)

    def snapshots(self) -> dict[int, Found]:
        """Return the checkpoints for evaluation, by number."""
        # Training, which may run beside this, removes backups at any time.
        return {found.number: found for found in self.find(SNAPSHOTS)}

    def pick(self, number: int | None) -> Found:
        """Return the snapshot with this number; by default the newest, or else the newest backup.

        A run that was stopped before its first snapshot has a backup only.
        """
        snapshots = self.snapshots()
        if number is None and not snapshots:
            for backup in self.find(BACKUPS):
                return backup
        number = max(snapshots, default=0) if number is None else number
        if number not in snapshots:
            existing = ", ".join(map(str, sorted(snapshots))) or "none"
            raise InputError(
                f"the workdir has no checkpoint_{number}; existing checkpoints: {existing}."
            )
        return snapshots[number]

    def checksum(self, found: Found, name: str) -> int:
        """Return the checksum of one of a checkpoint's trees, which identifies its content."""
        checksums = _read_info(self._path(found))["checksums"]
        if name not in checksums:
            raise InputError(f"{found} is damaged: it has no checksum of {name}.")
        return checksums[name]

    def restore(self, found: Found, like: Trees) -> Trees:
        """Read the trees that `like` names, with its shapes, types and shardings."""
        import orbax.checkpoint as ocp  # As above.

        def abstract(leaf: Array) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)

        trees = jax.tree.map(abstract, like)
        items = {name: ocp.args.StandardRestore(tree) for name, tree in trees.items()}
        try:
            for path in sorted(self._path(found).rglob("*")):  # Neither links nor named pipes.
                if path.is_symlink() or not path.is_dir():
                    check_regular(path)
            manager, arguments = self._managers[found.folder], ocp.args.Composite(**items)
            restored = manager.restore(found.number, args=arguments)
            checksums = _read_info(self._path(found))["checksums"]
        except Exception as error:  # Damage raises many types of exception.
            reason = brief(error)
            reason = "its arrays cannot be read." if UNREADABLE in reason else reason
            raise InputError(f"{found} is damaged or of another network: {reason}") from error
        for name in like:
            if tree_checksum(restored[name]) != checksums.get(name):
                raise InputError(
                    f"{found} is damaged: the checksum of {name} is not the one it was saved with."
                )
        return {name: restored[name] for name in like}

    def restore_latest(self, like: Trees) -> tuple[Trees, Found] | None:
        """Return the newest readable checkpoint; None if there are no checkpoints at all."""
        for candidate in self.find():
            try:
                return self.restore(candidate, like), candidate
            except InputError as error:
                logging.warning("%s The previous checkpoint is used instead.", error)
        if any(manager.all_steps() for manager in self._managers.values()):
            raise InputError(
                "the workdir has checkpoints, but none of them can be read; nothing is "
                "overwritten. Use another --workdir."
            )
        return None

    def wait(self) -> None:
        """Wait for the saves in progress. Raises InputError if one of them failed."""
        with self._writing():
            for manager in self._managers.values():
                manager.wait_until_finished()
        self._check_still_there()

    def close(self) -> None:
        """Release the resources, after `wait`."""
        self.wait()
        for manager in self._managers.values():
            manager.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turn a failure to write, now or in the background before, into an InputError."""
        try:
            yield
        except Exception as error:  # Orbax raises many types of exception.
            self._check_still_there()
            system_error = re.search(r"os_error_code='(\d+)'", str(error))  # by TensorStore
            reason = os.strerror(int(system_error[1])) if system_error else brief(error)
            raise InputError(
                f"A checkpoint cannot be written to {self._workdir}: {reason}. The last complete "
                "one is kept; once the cause is gone, the same command continues from it."
            ) from error

    def _check_still_there(self) -> None:
        """Raise InputError if the workdir was moved, deleted or replaced, by its lock.

        Orbax, which writes in the background, would create its folders again, without a lock.
        """
        if self._lock is not None and _identity(self._workdir / LOCK) != self._lock:
            raise InputError(
                f"{self._workdir} was moved, deleted or replaced while this run wrote to it. If it "
                "was moved, give the same command with --workdir=NEW_PLACE."
            )

    def _path(self, found: Found) -> Path:
        return self._workdir / found.folder / f"checkpoint_{found.number}"


def _read_info(checkpoint: Path) -> dict[str, Any]:
    """Return the metadata in the folder of a checkpoint. Raises InputError if they are damaged."""
    path = checkpoint / "info" / "metadata"  # Orbax would wait without end for a named pipe.
    info = read_json(path, INFO)
    if not 0 <= info["step"] <= MAX_STEP:
        raise InputError(f"{path} is damaged: its step is {info['step']}.")
    about = zlib.crc32(_about(info["step"], info["config"]))
    if info["checksums"].get(ABOUT, about) != about:
        raise InputError(f"{path} is damaged: it does not have the checksum that it states.")
    return info


def _about(step: int, config: dict[str, Any]) -> bytes:
    return json.dumps([step, config], sort_keys=True).encode()


def newest_config(workdir: str | Path) -> tuple[str, dict[str, Any]] | None:
    """Return the name and the config of the newest readable checkpoint, or None without any."""
    found = []
    for folder in (SNAPSHOTS, BACKUPS):
        for path in Path(workdir, folder).glob("checkpoint_*"):
            with contextlib.suppress(InputError):
                info = _read_info(path)
                found.append((info["step"], str(path), info["config"]))
    return max(found, key=lambda each: each[:2])[1:] if found else None


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what distinguishes a file from one of the same name, or None if there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _open(path: Path, keep: int | None, create: bool) -> ocp.CheckpointManager:
    """Return Orbax's manager of a folder, which keeps the `keep` newest checkpoints, or all."""
    import orbax.checkpoint as ocp  # As above.

    options = ocp.CheckpointManagerOptions(
        step_prefix="checkpoint", max_to_keep=keep, create=create
    )
    attempts = OPENINGS
    while True:
        try:
            return ocp.CheckpointManager(path, options=options)
        except FileNotFoundError:  # Training, which may run beside this, removes backups.
            attempts -= 1
            if not attempts:
                raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"a file {path}/checkpoint_*/_CHECKPOINT_METADATA is damaged: "
                f"{brief(error).rstrip('.')}. Delete these files; the checkpoints can be read "
                "without them."
            ) from error
