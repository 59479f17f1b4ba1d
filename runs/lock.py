"""Folders of a run: the config that each was made with, and the process that writes to it.

A command with another config is refused where a field differs that the files of the folder depend
on.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import jax

from configs.default import Config, complete, from_json
from errors import InputError, naming, printable
from readers.files import check_regular, read_json
from runs import checkpoints, own_paths
from runs.checkpoints import LOCK
from runs.depends import dependencies
from runs.files import write_json, writing

CONFIG = "config.json"  # the file of a workdir that states the config it was made with
ENVIRONMENTS = "environments.json"  # the file of an evaluation that states versions and devices

TRAINED = (
    f"{checkpoints.SNAPSHOTS}/checkpoint_*",
    f"{checkpoints.BACKUPS}/checkpoint_*",
    "rollbacks.json",
)
"""The results in a workdir itself: what a training run continues from."""
OF_THE_WORKDIR = ("training", "checkpoint", "noised images")  # kinds of its files


def check_config(folder: str | Path, config: Config, kind: str) -> None:
    """Raise InputError if the config of `folder` differs in a field that `kind` depends on.

    The message lists these fields. Without config.json, the config in the newest checkpoint that
    can be read takes its place; a folder without either passes, and so does one that has no results
    yet. A config that an older version wrote is completed with the defaults first.
    """
    stored = stored_config(Path(folder))
    if stored is None or not _has_results(Path(folder), kind):
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
            f"{folder} has results of another config. Use another --workdir (or --eval_folder, for "
            "results in a workdir), or set these fields back:\n" + "\n".join(lines)
        )


def _has_results(folder: Path, kind: str) -> bool:
    """Return whether a command of this kind would continue from files in `folder`.

    One that ended before its first result, such as for lack of memory, may have left its config.
    """
    if kind in OF_THE_WORKDIR:
        return any(any(folder.glob(pattern)) for pattern in TRAINED)
    files = (path.name for path in folder.rglob("*") if not path.is_dir())
    return any(name not in (CONFIG, LOCK, ENVIRONMENTS) for name in files)


def stored_config(folder: Path) -> Config | None:
    """Return the config that a folder was made with, complete, or None if it states none.

    It is for comparison only: the folder may come from others, and the config name any code and
    file. `api.stored.load_config` returns one to use. Unknown fields are left out.
    """
    try:
        found = stored_content(folder)
        if found is None:
            return None
        with naming(found[0]):
            return complete(from_json(found[1], known_only=True))
    except InputError as error:
        raise InputError(
            f"{folder} has a config that cannot be read: {error} Restore config.json, or delete "
            "it, if the config of the newest checkpoint is to take its place."
        ) from error


def stored_content(folder: Path) -> tuple[str, Any] | None:
    """Return the file that states the config of a folder, and its content, which is not checked.

    That is config.json or, without it, the newest readable checkpoint. None if there is neither.
    """
    path = folder / CONFIG
    if os.path.lexists(path):
        return str(path), read_json(path, dict)
    return checkpoints.newest_config(folder)


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
    """Open the file, but not through a link that the folder brought along."""

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NOFOLLOW, 0o666)

    if os.path.lexists(path):
        check_regular(path)
    with writing(path):
        return open(path, "a+", encoding="utf-8", errors="replace", opener=opener)


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
    own_paths.remember(folder, config)
    write_json(Path(folder) / CONFIG, config.to_dict())


def _make(folder: str | Path) -> None:
    """Create a folder and those above it."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"the folder {folder} cannot be made: {error.strerror}. Use another name."
        ) from error


TAKEN = (
    *(
        checkpoints.SNAPSHOTS,
        checkpoints.BACKUPS,
        "calibration",
        "classifier",
        "data",
        "dequantizers",
    ),
    *("latents", "restore", "sample", "samples", "statistics", "tensorboard"),
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
