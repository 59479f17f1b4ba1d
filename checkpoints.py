"""Orbax checkpoints of a workdir, saved in the background, each with the config of its run.

`checkpoints/checkpoint_K` are snapshots for evaluation, where K counts them.
`checkpoints-meta/checkpoint_STEP` are backups for a restart, of which the two newest are kept.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax import Array

import sharding
from errors import InputError, brief

SNAPSHOTS, BACKUPS = "checkpoints", "checkpoints-meta"
NUM_BACKUPS = 2

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
        self._managers = {}
        for folder, keep in ((SNAPSHOTS, None), (BACKUPS, NUM_BACKUPS)):
            path = Path(workdir).resolve() / folder
            if create or path.is_dir():
                options = ocp.CheckpointManagerOptions(
                    step_prefix="checkpoint", max_to_keep=keep, create=create
                )
                self._managers[folder] = ocp.CheckpointManager(path, options=options)

    def save(
        self, folder: str, number: int, trees: Trees, *, step: int, config: dict[str, Any]
    ) -> None:
        """Start to write a checkpoint in the background; replace one of the same number."""
        manager = self._managers[folder]
        if number in manager.all_steps():
            manager.delete(number)
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        checksums = {name: _checksum(tree) for name, tree in trees.items()}
        info = ocp.args.JsonSave({"step": step, "config": config, "checksums": checksums})
        manager.save(number, args=ocp.args.Composite(**items, info=info), force=True)

    def find(self) -> list[Found]:
        """Return all checkpoints, newest first; skip those with unreadable metadata, and warn."""
        found = []
        for folder, manager in self._managers.items():
            for number in manager.all_steps():
                try:
                    found.append(Found(self._info(folder, number)["step"], folder, number))
                except Exception as error:  # Damage raises many types of exception.
                    logging.warning(
                        "%s/checkpoint_%d is damaged and is skipped: %s",
                        *(folder, number, brief(error)),
                    )
        return sorted(found, reverse=True)

    def snapshots(self) -> dict[int, Found]:
        """Return the checkpoints for evaluation, by number."""
        return {found.number: found for found in self.find() if found.folder == SNAPSHOTS}

    def pick(self, number: int | None) -> Found:
        """Return the snapshot with this number, by default the newest.

        Raises InputError, which lists the existing ones, if there is none.
        """
        snapshots = self.snapshots()
        number = max(snapshots, default=0) if number is None else number
        if number not in snapshots:
            existing = ", ".join(map(str, sorted(snapshots))) or "none"
            raise InputError(
                f"the workdir has no checkpoint_{number}; existing checkpoints: {existing}."
            )
        return snapshots[number]

    def config(self, found: Found) -> dict[str, Any]:
        """Return the config that a checkpoint holds."""
        return self._info(found.folder, found.number)["config"]

    def checksum(self, found: Found, name: str) -> int:
        """Return the checksum of one of a checkpoint's trees, which identifies its content."""
        return self._info(found.folder, found.number)["checksums"][name]

    def restore(self, found: Found, like: Trees) -> Trees:
        """Read the trees of a checkpoint that `like` names, with its shapes, types and shardings.

        Raises InputError if they cannot be read, or differ from what was saved.
        """
        items = {
            name: ocp.args.StandardRestore(jax.tree.map(_abstract, tree))
            for name, tree in like.items()
        }
        try:
            restored = self._managers[found.folder].restore(
                found.number, args=ocp.args.Composite(**items)
            )
            checksums = self._info(found.folder, found.number)["checksums"]
        except Exception as error:  # Damage raises many types of exception.
            raise InputError(f"{found} is damaged or of another network: {brief(error)}") from error
        for name in like:
            if _checksum(restored[name]) != checksums[name]:
                raise InputError(
                    f"{found} is damaged: the checksum of {name} is not the one it was saved with."
                )
        return {name: restored[name] for name in like}

    def restore_latest(self, like: Trees) -> tuple[Trees, Found] | None:
        """Return the newest readable checkpoint, or None if there are no checkpoints.

        Raises InputError if there are checkpoints and none of them can be read.
        """
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
        """Wait for the saves in progress."""
        for manager in self._managers.values():
            manager.wait_until_finished()

    def close(self) -> None:
        """Wait for the saves in progress, and release the resources."""
        for manager in self._managers.values():
            manager.close()

    def _info(self, folder: str, number: int) -> dict[str, Any]:
        arguments = ocp.args.Composite(info=ocp.args.JsonRestore())
        return self._managers[folder].restore(number, args=arguments)["info"]


def _checksum(tree: Any) -> int:
    """Return the CRC-32 of the arrays, however they are sharded.

    Orbax detects missing bytes, but not changed ones. Leaves are fetched one at a time, because all
    of them together may exceed the memory of a host.
    """
    crc = 0
    for leaf in jax.tree.leaves(tree):
        whole = leaf.addressable_data(0) if leaf.is_fully_replicated else sharding.fetch(leaf)
        crc = zlib.crc32(np.ascontiguousarray(whole).data, crc)
    return crc


def _abstract(leaf: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
