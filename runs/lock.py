"""Folders of a run: their names, the file of their config, and the process that writes to them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from errors import InputError, printable
from readers.files import check_regular, read_json
from runs import checkpoints
from runs.checkpoints import LOCK
from runs.files import writing

CONFIG = "config.json"  # the file of a workdir that states the config it was made with
ENVIRONMENTS = "environments.json"  # the file of an evaluation that states versions and devices


def stored_content(folder: Path) -> tuple[str, Any] | None:
    """Return the file that states the config of a folder, and its content, or None."""
    path = folder / CONFIG
    if os.path.lexists(path):
        return str(path), read_json(path, dict)
    return checkpoints.newest_config(folder)


def make_folder(folder: str | Path) -> None:
    """Create a folder and those above it."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot create the folder {folder}: {error.strerror}. Use another name."
        ) from error


@contextlib.contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Let only this run of process 0 write to `folder`, by a lock of the operating system."""
    if jax.process_index():
        yield
        return
    path = Path(folder) / LOCK
    if os.path.lexists(path):
        check_regular(path)
    with writing(path):  # Not through a link that the folder brought along.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
    with open(descriptor, "a+", encoding="utf-8", errors="replace") as file:
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


TAKEN = (
    *(checkpoints.SNAPSHOTS, checkpoints.BACKUPS, "calibration", "classifier", "data", "latents"),
    *("restore", "sample", "samples", "statistics", "tensorboard"),
)
"""The folders of a workdir that cannot be the folder of an evaluation."""


def results_folder(parent: str | Path, name: str, taken: Sequence[str] = TAKEN) -> Path:
    """Return the folder of results that --eval_folder names, below `parent`."""
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
