"""`--mode=ema`: the moving average of any width, reconstructed from those that training has stored.

Each snapshot holds an average for each width of model.ema_stds. Their profiles are combined by least
squares to the profile of the width ema.std (Karras et al. 2024, arXiv:2312.02696, section 3.2).
"""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import cast

import jax
import numpy as np

import pretrained
import progress
import sharding
from checkpoints import Checkpoints, Found
from configs.default import Config
from errors import InputError, advice
from experiment import Experiment
from models import averages
from models.building import Params, is_fixed
from pretrained import Trained
from train_state import AVERAGE, restore_ema
from workdir import check_config, check_workdir, write_atomically

LARGE, USELESS = 0.05, 0.5  # relative errors of a profile: from the first on, a warning; an error


def reconstruct(
    config: Config, workdir: str, target: str | None = None, number: int | None = None
) -> Path:
    """Write the average of relative width ema.std to the file `target`, and return its path.

    It is the average at snapshot `number` of `workdir`, by default the newest, from this and all
    earlier snapshots. The file, by default WORKDIR/ema_STD.safetensors, has the form of
    `--mode=export --average_only`. Prints the relative error of the profile.

    Raises InputError for an invalid config, a workdir of another one, a target that exists, missing
    or damaged snapshots, and if there are too few of them.
    """
    experiment = Experiment(config, mode="ema")
    config, std = experiment.config, experiment.config.ema.std
    path = Path(target or Path(workdir, f"ema_{std:g}.safetensors"))
    if path.suffix != ".safetensors":
        raise InputError(f"--target={target} must end in .safetensors.")
    if path.exists():
        raise InputError(f"{path} exists; nothing is overwritten. Use another --target.")
    check_workdir(workdir, config)
    check_config(workdir, config, "training")
    checkpoints = Checkpoints(workdir)
    last = checkpoints.pick(number)
    before = [each for each in checkpoints.snapshots().values() if 0 < each.step <= last.step]
    weights, error = _weights(before, tuple(config.model.ema_stds), last.step, std)
    average = _combine(experiment, checkpoints, before, weights)
    trained = Trained(last.step, average, average)
    path.parent.mkdir(parents=True, exist_ok=True)
    write = pretrained.writer(path, average_only=True)
    write_atomically(path, lambda file: write(file, trained, experiment.network, config))
    print(
        f"{path}: the average of relative width {std:g} at {last}, from {len(before)} snapshots "
        f"with model.ema_stds = {tuple(config.model.ema_stds)}. Relative error of its profile: "
        f"{error:.1e}"
    )
    return path


def _weights(
    snapshots: list[Found], stds: tuple[float, ...], last: int, std: float
) -> tuple[np.ndarray, float]:
    """Return the weights (snapshots, widths) of the stored averages, and the relative error."""
    pairs = list(itertools.product([float(each.step) for each in snapshots], stds))
    weights, error = np.zeros(0), 1.0
    if pairs:
        steps, widths = np.array(pairs).T
        weights, error = averages.combination(steps, widths, last, std)
    text = (
        f"the {len(pairs)} averages of {len(snapshots)} snapshots, with model.ema_stds = {stds}, "
        f"give that of ema.std = {std:g} with a relative error of {error:.1%}"
    )
    if error > USELESS:
        raise InputError(
            f"{text}; at most {USELESS:.0%} is allowed. Use an ema.std closer to these widths, or "
            "train with more snapshots (training.snapshot_freq)."
        )
    if error > LARGE:
        print(f"warning: {text}, more than {LARGE:.0%}. More snapshots or closer widths lower it.")
    return weights.reshape(len(snapshots), len(stds)), error


def _combine(
    experiment: Experiment, checkpoints: Checkpoints, snapshots: list[Found], weights: np.ndarray
) -> Params:
    """Return the weighted sum of the averages of the snapshots, on the host.

    It reads one average at a time, because all of them together may exceed the memory.
    """
    like, done = experiment.abstract_params, 0
    total = jax.tree.map(lambda leaf: np.zeros(leaf.shape), like)
    with progress.counting("reading the averages", weights.size, "average") as update:
        for found, row in zip(snapshots, weights):
            for column, weight in enumerate(row):
                with advice("Move it to another folder, to do without it."):
                    average = restore_ema(checkpoints, found, like, AVERAGE.format(column))
                add = functools.partial(_add, weight=weight)
                total = jax.tree.map_with_path(add, total, sharding.fetch(average))
                update(done := done + 1)
    return cast(Params, jax.tree.map(np.float32, total))


def _add(path: tuple, total: np.ndarray, leaf: np.ndarray, weight: float) -> np.ndarray:
    """Return a sum of averages with one more term."""
    # Weights add up to 1 only up to the error, and all averages of a constant are the constant.
    return leaf if is_fixed(path) else total + weight * leaf.astype(np.float64)
