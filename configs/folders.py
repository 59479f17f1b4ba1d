"""The config that each folder of results was made with, and which fields its files depend on.

A folder may come from others, and its config.json name any file. A path in it is used only if a
command of this user wrote it into the config of this folder. Then there is an empty file in
~/.cache/score_sde/paths, named after a hash of folder, field and path.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flax import traverse_util

from configs.default import Config, complete, from_json, not_data
from configs.fields import FIELDS
from errors import InputError, cache_folder, naming
from options import FilePath
from runs import CONFIG, ENVIRONMENTS, LOCK, locked, make_folder, stored_content, write_json
from runs.checkpoints import BACKUPS, SNAPSHOTS

TRAINED = (f"{SNAPSHOTS}/checkpoint_*", f"{BACKUPS}/checkpoint_*", "rollbacks.json")
"""The results in a workdir itself: what a training run continues from."""
OF_THE_WORKDIR = ("training", "checkpoint", "noised images")  # kinds of its files
MARKS = cache_folder() / "score_sde" / "paths"

DEPENDENCIES: dict[str, frozenset[str]] = {
    kind: frozenset(groups.split())
    for kind, groups in {
        "training": "network training images loss precision seed",
        "checkpoint": "network images",
        "evaluation": "network images loss samples guidance classifier likelihood rounds seed",
        "loss": "network images location loss precision rounds seed",
        "bpd": "network images location likelihood precision rounds seed",
        "samples": "network images samples guidance classifier precision rounds seed",
        "sampling": "network images samples guidance classifier seed",
        "statistics": "images location quality",
        "noised images": "noise images",
        "noised classes": "noise images classifier",
        "classifier": "noise images classifier seed",
        "restoration": "network images samples guidance restore seed",
        "reconstructions": "network images samples guidance restore precision rounds seed",
        "calibration": "network images samples guidance restore calibration seed",
        "ranks": "network images samples guidance restore calibration precision rounds seed",
    }.items()
}
"""For each kind of folder or file, the groups of config fields (`configs.fields.GROUPS`) behind
it."""


def dependencies(kind: str, config: Config) -> dict[str, Any]:
    """Return the config fields, with their values, that a file or folder of this kind depends on.

    A network that was trained in continuous time does not depend on model.num_scales.
    """
    values = flatten(config)
    chosen = {
        name: value
        for name, value in values.items()
        if name in FIELDS and not DEPENDENCIES[kind].isdisjoint(FIELDS[name].affects)
    }
    if kind == "checkpoint" and config.training.continuous:
        chosen.pop("model.num_scales", None)
    return chosen


def flatten(config: Config) -> dict[str, Any]:
    """Return the fields by their names on the command line, with values as JSON stores them."""
    return traverse_util.flatten_dict(json.loads(json.dumps(config.to_dict())), sep=".")


def check_config(folder: str | Path, config: Config, kind: str) -> None:
    """Raise InputError if the config of `folder` differs in fields that `kind` depends on.

    Without config.json, that of the newest readable checkpoint takes its place; a folder without
    any, or without results yet, passes.
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
    """Return the complete config that a folder was made with, to compare with, or None.

    The folder may come from others; `loading.load_config` returns a config to use.
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


def check_workdir(workdir: str | Path, config: Config) -> None:
    """Raise InputError if `workdir` does not exist, or holds another network than the config's."""
    if not Path(workdir).is_dir():
        raise InputError(f"--workdir={workdir} does not exist; train first, with --mode=train.")
    check_config(workdir, config, "checkpoint")


@contextlib.contextmanager
def owned(folder: str | Path, config: Config, kind: str) -> Iterator[None]:
    """Let only this run write to `folder`, by `locked`, after `claim`."""
    check_config(folder, config, kind)
    make_folder(folder)
    with locked(folder):
        claim(folder, config, kind)
        yield


def claim(folder: str | Path, config: Config, kind: str) -> None:
    """Check the config of `folder`, create the folder, and write `config` as its config.json."""
    check_config(folder, config, kind)
    make_folder(folder)
    _remember(folder, config)
    write_json(Path(folder) / CONFIG, config.to_dict())


def _remember(folder: str | Path, config: Config) -> None:
    """Mark the paths of a config that is written into a folder, unless the cache is read-only."""
    for name, path in not_data(config).items():
        if not isinstance(FIELDS[name].domain, FilePath):
            continue  # Code is never taken from a folder.
        with contextlib.suppress(OSError):
            MARKS.mkdir(parents=True, exist_ok=True)
            _mark(folder, name, path).touch()


def is_own(folder: str | Path, name: str, path: str) -> bool:
    """Return whether `claim` has marked this path in the field `name` of a folder's config."""
    return _mark(folder, name, path).is_file()


def _mark(folder: str | Path, name: str, path: str) -> Path:
    text = json.dumps([os.path.realpath(folder), name, path])
    return MARKS / hashlib.sha256(text.encode()).hexdigest()
