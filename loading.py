"""`load`: a trained model from a workdir or a checkpoint file."""

from __future__ import annotations

import contextlib
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections

import pretrained
from api.trained import TrainedModel
from configs import location
from configs.default import Config, from_json
from errors import InputError, advice, brief
from experiment import Experiment
from readers.files import check_regular
from runs import stored_config

OWN_NAMES = "If a config file defines names of its own, pass it: load(workdir, config=FILE)."


def load(
    workdir: str | Path | None = None,
    *,
    config: str | Path | Config | None = None,
    checkpoint: int | str | Path | None = None,
) -> TrainedModel:
    """Load a trained model.

    Args:
      workdir: a folder that `main.py --mode=train` or `--mode=import` has written, or a file that
        states its config: a .safetensors file of `--mode=export`, or a .pkl file of EDM.
      config: an ml_collections config, or the file of one; needed for other files.
      checkpoint: the number of a checkpoint of the workdir, by default the newest; or a file or
        folder of another code base (`--mode=import`), to be used with `config`.

    The model uses the first device. Raises InputError if something cannot be read or does not fit.
    """
    if workdir is not None and Path(workdir).suffix in pretrained.WITH_CONFIG:
        workdir, checkpoint = None, workdir
        config = from_json(pretrained.read_config(Path(checkpoint))) if config is None else config
    if workdir is not None:
        if isinstance(checkpoint, (str, Path)):
            raise InputError(
                f"checkpoint = {str(checkpoint)!r}: with a workdir it must be a number; a file "
                "needs config instead of the workdir."
            )
        found_config = stored_config(Path(workdir)) if config is None else _read_config(config)
        if found_config is None:
            raise InputError(
                f"{workdir} holds no model: it has neither config.json nor a checkpoint. Train "
                "one there with --mode=train, or pass another folder."
            )
        with advice(OWN_NAMES) if config is None else contextlib.nullcontext():
            experiment = _experiment(found_config)
        found, params = experiment.trained(str(workdir), checkpoint)
        return experiment.trained_model(params, found.step)
    if config is None or checkpoint is None:
        raise InputError("load needs a workdir, or both config and checkpoint.")
    experiment = _experiment(_read_config(config))
    trained = pretrained.read(str(checkpoint), experiment.network, experiment.config)
    return experiment.trained_model(jax.tree.map(jnp.asarray, trained.ema), trained.step)


def _experiment(config: Config) -> Experiment:
    return Experiment(config, jax.devices()[:1])


def _read_config(config: str | Path | Config) -> Config:
    """Return a config, from an object or a Python file with get_config(), which is executed.

    Raises InputError if it cannot be read.
    """
    if isinstance(config, ml_collections.ConfigDict):
        return config
    path = Path(location.find(str(config)))
    check_regular(path, "config")
    specification = importlib.util.spec_from_file_location(path.stem, path)
    if path.suffix != ".py" or specification is None or specification.loader is None:
        raise InputError(f"config = {str(config)!r} must be a Python file with get_config().")
    module = importlib.util.module_from_spec(specification)
    try:
        specification.loader.exec_module(module)
        found = module.get_config()
    except Exception as error:  # A config file may raise anything.
        raise InputError(f"config = {str(config)!r} cannot be read: {brief(error)}") from error
    if not isinstance(found, ml_collections.ConfigDict):
        raise InputError(
            f"config = {str(config)!r}: get_config() returned {type(found).__name__}, but it must "
            "return an ml_collections.ConfigDict."
        )
    return found
