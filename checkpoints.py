"""Orbax checkpoints of a workdir, saved in the background, each with the config of its run.

`checkpoints/checkpoint_K` are kept for evaluation, K counting snapshots; `checkpoints-meta/checkpoint_STEP` are the
two newest states, for a restart.
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

State = dict[str, Any]
"""Named pytrees of arrays; each can be restored without the others."""


class Found(NamedTuple):
    """A checkpoint on disk, ordered by the training step that it holds."""

    step: int
    folder: str
    number: int

    def __str__(self) -> str:
        return f"{self.folder}/checkpoint_{self.number} (step {self.step})"


class Checkpoints:
    """The checkpoints of one workdir; with `create` for writing too."""

    def __init__(self, workdir: str | Path, *, create: bool = False) -> None:
        self._managers = {}
        for folder, keep in ((SNAPSHOTS, None), (BACKUPS, 2)):
            path = Path(workdir).resolve() / folder
            if create or path.is_dir():
                options = ocp.CheckpointManagerOptions(
                    step_prefix="checkpoint", max_to_keep=keep, create=create
                )
                self._managers[folder] = ocp.CheckpointManager(path, options=options)

    def save(
        self, folder: str, number: int, state: State, *, step: int, config: dict[str, Any]
    ) -> None:
        """Starts to write a checkpoint in the background; replaces one of the same number."""
        manager = self._managers[folder]
        if number in manager.all_steps():
            manager.delete(number)
        items = {name: ocp.args.StandardSave(tree) for name, tree in state.items()}
        checksums = {name: _checksum(tree) for name, tree in state.items()}
        info = ocp.args.JsonSave({"step": step, "config": config, "checksums": checksums})
        manager.save(number, args=ocp.args.Composite(**items, info=info), force=True)

    def find(self) -> list[Found]:
        """All checkpoints, newest first; those whose description cannot be read are left out, with a warning."""
        found = []
        for folder, manager in self._managers.items():
            for number in manager.all_steps():
                try:
                    found.append(Found(self._info(folder, number)["step"], folder, number))
                except Exception as error:  # Damage has no one exception type.
                    logging.warning(
                        "%s/checkpoint_%d is damaged and is passed over: %s",
                        folder,
                        number,
                        brief(error),
                    )
        return sorted(found, reverse=True)

    def kept(self) -> dict[int, Found]:
        """The checkpoints kept for evaluation, by number."""
        return {found.number: found for found in self.find() if found.folder == SNAPSHOTS}

    def pick(self, number: int | None) -> Found:
        """The kept checkpoint of this number, by default the newest. Raises InputError, naming those that there are."""
        kept = self.kept()
        number = max(kept, default=0) if number is None else number
        if number not in kept:
            has = ", ".join(map(str, sorted(kept))) or "none"
            raise InputError(
                f"The workdir has no checkpoint_{number}; the kept checkpoints there are: {has}."
            )
        return kept[number]

    def config(self, found: Found) -> dict[str, Any]:
        """The config that a checkpoint holds."""
        return self._info(found.folder, found.number)["config"]

    def restore(self, found: Found, like: State) -> State:
        """Reads those trees of a checkpoint that `like` names, with the shapes, types and shardings it has.

        Raises InputError if they cannot be read.
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
        except Exception as error:  # Damage has no one exception type.
            raise InputError(f"{found} is damaged or of another network: {brief(error)}") from error
        for name in like:
            if _checksum(restored[name]) != checksums[name]:
                raise InputError(
                    f"{found} is damaged: the checksum of {name} is not the one it was saved with."
                )
        return {name: restored[name] for name in like}

    def restore_latest(self, like: State) -> tuple[State, Found] | None:
        """The newest checkpoint that can be read, or None if there is none at all.

        Raises InputError if there are checkpoints and none of them can be read.
        """
        found = self.find()
        for candidate in found:
            try:
                return self.restore(candidate, like), candidate
            except InputError as error:
                logging.warning("%s Falling back to the one before.", error)
        if any(manager.all_steps() for manager in self._managers.values()):
            raise InputError(
                "The workdir has checkpoints, but none that can be read; nothing is overwritten. Use another --workdir."
            )
        return None

    def close(self) -> None:
        """Waits for the saves under way."""
        for manager in self._managers.values():
            manager.close()

    def _info(self, folder: str, number: int) -> dict[str, Any]:
        return self._managers[folder].restore(
            number, args=ocp.args.Composite(info=ocp.args.JsonRestore())
        )["info"]


def _checksum(tree: Any) -> int:
    """CRC-32 of the arrays, however they are split; Orbax by itself notices missing bytes, but not changed ones."""
    crc = 0
    for leaf in jax.tree.leaves(tree):  # One after the other: no host need have room for all.
        whole = leaf.addressable_data(0) if leaf.is_fully_replicated else sharding.fetch(leaf)
        crc = zlib.crc32(np.ascontiguousarray(whole), crc)
    return crc


def _abstract(leaf: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
