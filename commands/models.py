"""The trained model that a command uses: a checkpoint of the workdir, or a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import jax

import pretrained
import sharding
from api.trained import TrainedModel
from errors import InputError
from experiment import Experiment
from loading import read_schedules
from runs.checkpoints import tree_checksum


class Opened(NamedTuple):
    """A trained model, its step and checksum, and its name in messages and for a folder."""

    model: TrainedModel
    identity: dict[str, Any]
    title: str
    folder: str


def open_model(
    experiment: Experiment, workdir: str, number: int | None = None, source: str | None = None
) -> Opened:
    """Return checkpoint `number` of a workdir, by default the newest, or the model in `source`.

    Raises InputError if it cannot be read, or is of another network.
    """
    if not source:
        found, params = experiment.trained(workdir, number)
        experiment.fitted = read_schedules(workdir, params, experiment.sde)
        identity, folder = experiment.identity(workdir, found), f"checkpoint_{found.number}"
        return Opened(experiment.trained_model(params, found.step), identity, str(found), folder)
    folder = Path(os.path.abspath(source)).stem
    if folder in ("", ".", ".."):
        raise InputError(
            f"--source={source} has no file name that can name a folder of results. Rename or copy "
            "it, for example to network.safetensors."
        )
    trained = pretrained.read(source, experiment.network, experiment.config)
    params = jax.device_put(trained.ema, sharding.replicated(experiment.mesh))
    experiment.fitted = read_schedules(source, params, experiment.sde)
    identity = {"step": trained.step, "ema": tree_checksum(params)}
    title = f"{source} (step {trained.step})"
    return Opened(experiment.trained_model(params, trained.step), identity, title, folder)
