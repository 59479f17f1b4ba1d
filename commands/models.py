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
from runs.checkpoints import tree_checksum


class Opened(NamedTuple):
    """A trained model.

    Attributes:
      model: the model.
      identity: the training step, and the checksum of the parameters.
      title, folder: its name in messages, and for a folder of results.
    """

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
    if source:
        folder = _folder_of(source)
        trained = pretrained.read(source, experiment.network, experiment.config)
        params = jax.device_put(trained.ema, sharding.replicated(experiment.mesh))
        model = experiment.trained_model(params, trained.step)
        identity = {"step": trained.step, "ema": tree_checksum(params)}
        return Opened(model, identity, f"{source} (step {trained.step})", folder)
    found, params = experiment.trained(workdir, number)
    model, identity = (
        experiment.trained_model(params, found.step),
        experiment.identity(workdir, found),
    )
    return Opened(model, identity, str(found), f"checkpoint_{found.number}")


def _folder_of(source: str) -> str:
    """Return the name of the folder for results of a file: its stem.

    Raises InputError if that is not the name of a folder.
    """
    name = Path(os.path.abspath(source)).stem
    if name in ("", ".", ".."):
        raise InputError(
            f"--source={source} has no file name that can name a folder of results. Rename or copy "
            "it, for example to network.safetensors."
        )
    return name
