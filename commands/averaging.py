"""`--mode=ema`: a moving average of any width, by those in snapshots (`training.averages`)."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np

import sharding
from commands.conversion import new_writer
from configs.default import Config
from configs.folders import check_config
from errors import InputError, advice
from experiment import Experiment
from models.building import is_fixed
from pretrained import Trained
from runs import progress, write_atomically
from runs.checkpoints import Checkpoints
from training import averages
from training.state import AVERAGE

LARGE, USELESS = 0.05, 0.5  # relative errors above which there is a warning, and an error


def reconstruct(
    config: Config, workdir: str, target: str | None = None, number: int | None = None
) -> Path:
    """Write the average of width ema.std at a snapshot, by default the newest; return the file.

    It is made from this snapshot and earlier ones, and has the form of `--mode=export
    --average_only`. Raises InputError for damaged snapshots, and if there are too few.
    """
    experiment = Experiment(config, mode="ema")
    config, std, stds = experiment.config, experiment.config.ema.std, config.model.ema_stds
    path = Path(target or Path(workdir, f"ema_{std:g}.safetensors"))
    write = new_writer(path, average_only=True)
    check_config(workdir, config, "training")
    checkpoints = Checkpoints(workdir)
    last = checkpoints.pick(number)
    used = [each for each in checkpoints.snapshots().values() if 0 < each.step <= last.step]
    weights, error = averages.combination([each.step for each in used], stds, last.step, std)
    text = (
        f"{len(used)} snapshots with model.ema_stds = {tuple(stds)} give the average of ema.std = "
        f"{std:g} at {last}; the relative error of its profile is {error:.2%}"
    )
    hint = "Closer widths or more snapshots (training.snapshot_freq) lower it."
    if error > USELESS:
        raise InputError(f"{text}, and at most {USELESS:.0%} is allowed. {hint}")
    like = average = experiment.abstract_params
    total = jax.tree.map(lambda leaf: np.zeros(leaf.shape), like)
    with progress.waiting("adding up the averages"), advice("Or move it to another folder."):
        for (row, column), weight in np.ndenumerate(weights):  # All at once may exceed the memory.
            name = AVERAGE.format(column)
            average = sharding.fetch(checkpoints.restore(used[row], {name: like})[name])
            total = jax.tree.map(lambda a, b, weight=weight: a + weight * b, total, average)
    # The weights add up to 1 only up to the error, and an average of constants is the constant.
    total = jax.tree.map_with_path(lambda path, a, b: b if is_fixed(path) else a, total, average)
    trained = Trained(last.step, total, total)
    write_atomically(path, lambda file: write(file, trained, experiment.network, config))
    warning = f" Warning: this is more than {LARGE:.0%}. {hint}" if error > LARGE else ""
    print(f"{path}: {text}.{warning}")
    return path
