"""Files of a run."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from PIL import Image
from tqdm import tqdm

import sharding
from configs.default import Config, complete
from errors import InputError, brief

Arrays = dict[str, np.ndarray]


NETWORK_FIELDS = ("data.", "model.", "training.sde", "training.continuous")


TRAINING_FIELDS = (  # Matters of its training.
    "data.path",
    "data.tfrecords_path",
    "model.ema_rate",
    "model.dropout",
    "model.class_dropout",
    "model.dtype",
)


def check_config(folder: str | Path, config: Config, fixed: Callable[[str], bool]) -> None:
    """Raises InputError if config.json in `folder` differs from `config` in fields that are `fixed`; lists them."""
    path = Path(folder) / "config.json"
    if not path.exists():
        return
    ours = _fields(config)
    theirs = _fields(
        complete(Config(json.loads(path.read_text())))
    )  # Written before some fields were there, perhaps.
    differing = [
        f for f in sorted(ours.keys() | theirs.keys()) if fixed(f) and ours.get(f) != theirs.get(f)
    ]
    if differing:
        lines = (
            f"  {f}: {theirs.get(f, 'absent')!r} there, {ours.get(f, 'absent')!r} now"
            for f in differing
        )
        raise InputError(
            f"{folder} belongs to another config; name another folder or mend:\n" + "\n".join(lines)
        )


def check_workdir(workdir: str, config: Config) -> None:
    """Raises InputError if `workdir` does not exist, or holds another network than that of `config`."""
    if not Path(workdir).is_dir():
        raise InputError(f"--workdir={workdir} does not exist; train first, with --mode=train.")
    may_change = TRAINING_FIELDS + (("model.num_scales",) if config.training.continuous else ())
    check_config(
        workdir,
        config,
        lambda field: field.startswith(NETWORK_FIELDS) and not field.startswith(may_change),
    )


def claim(folder: str | Path, config: Config, fixed: Callable[[str], bool]) -> None:
    """`check_config`, then makes `config` the folder's config.json."""
    check_config(folder, config, fixed)
    Path(folder).mkdir(parents=True, exist_ok=True)
    text = json.dumps(config.to_dict(), indent=2)
    write_atomically(Path(folder) / "config.json", lambda file: file.write(text.encode()))


def write_atomically(path: Path, write: Callable[[Any], Any]) -> None:
    """Calls `write` on a binary file that becomes `path` once it is whole; process 0 alone does so."""
    if jax.process_index():
        return
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        write(file)
    os.replace(temporary, path)


def write_picture(path: Path, picture: Image.Image) -> None:
    """`write_atomically`, as PNG."""
    write_atomically(path, lambda file: picture.save(file, "png"))


def run_rounds(folder: Path, name: str, count: int, compute: Callable[[int], Arrays]) -> list[Path]:
    """Computes those of the rounds 0 .. count - 1 that are not on disk yet; returns the files of all, once there."""
    paths = round_paths(folder, name, count)
    missing = [(index, path) for index, path in enumerate(paths) if not path.exists()]
    print(f"{folder.name}: {name}, {len(missing)} of {count} rounds to do", flush=True)
    for index, path in tqdm(missing, unit="round", disable=None):
        arrays = compute(index)
        write_atomically(path, lambda file, arrays=arrays: np.savez(file, **arrays))
    sharding.wait(f"rounds of {name}")
    return paths


def round_paths(folder: Path, name: str, count: int) -> list[Path]:
    """The files of the rounds 0 .. count - 1."""
    return [folder / f"{name}_{index}.npz" for index in range(count)]


def load_rounds(paths: Sequence[Path], *names: str) -> Arrays:
    """Those of the arrays `names` (by default all) that rounds hold, joined along their first axes.

    Files are opened one after the other, and only what is asked for is read from them. Raises InputError for one that
    is damaged.
    """
    parts: dict[str, list[np.ndarray]] = {}
    for path in paths:
        try:
            with np.load(path) as arrays:
                for name in names or arrays.files:
                    if name in arrays:
                        parts.setdefault(name, []).append(arrays[name])
        except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
            raise InputError(
                f"{path} cannot be read: {brief(error)}. Without it, it is computed again."
            ) from error
    return {name: np.concatenate(part) for name, part in parts.items()}


def _fields(config: Config) -> dict[str, Any]:
    return traverse_util.flatten_dict(json.loads(json.dumps(config.to_dict())), sep=".")
