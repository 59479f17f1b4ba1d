"""`TrainedModel`: the prior that a trained network defines, from a workdir or a checkpoint file."""

from __future__ import annotations

import contextlib
import importlib.util
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax import Array

import likelihood
import pretrained
import sampling
from api.arguments import checked
from api.batches import Seed, key_of
from api.prior import PROBES, Prior
from api.stored import load_config
from configs import location
from configs.default import Config
from errors import InputError, advice, brief
from experiment import Experiment
from likelihood import TOLERANCE
from models.building import Params
from readers.files import check_regular
from runs import stored_content

OWN_NAMES = "If a config file defines names of its own, pass it: load(workdir, config=FILE)."
DEQUANTIZE = 1  # folded into a key for the noise that dequantizes images


class TrainedModel(Prior):
    """The distribution of images that a network was trained on. Events are in the model's range.

    Attributes:
      config: the config of the model.
      step: its training step.
      params: the averaged parameters.
    """

    def __init__(self, experiment: Experiment, params: Params, step: int) -> None:
        def apply(params: Params, x: Array, t: Array) -> Array:
            return experiment.score(params)(x, t)

        super().__init__(
            jax.tree_util.Partial(apply, params),
            experiment.sde,
            experiment.image_shape,
            support=experiment.image_range,
        )
        self.experiment, self.params, self.step = experiment, params, step
        self.config = experiment.config

    def _check_score(self) -> None:
        """Skip the check: the network was checked against the config."""

    @checked
    def to_images(self, x: Array) -> np.ndarray:
        """Return events as images: uint8 from 0 to 255, or real numbers of data.value_range."""
        return np.asarray(self.experiment.pixels(jnp.asarray(x)))

    @checked
    def from_images(self, images: np.ndarray | Array, seed: Seed | None = None) -> Array:
        """Return images (..., H, W, C) of the data set as events.

        Args:
          images: as the data set has them: integers from 0 to the largest grey level, which is 255
            for 8 bits and 16 for the digits; or real numbers, if data.value_range is set.
          seed: of uniform noise that dequantizes the images, as `bits_per_dim` does. Without it,
            a grey level becomes the value that the network was trained on.
        """
        scaler, images = self.experiment.scaler, jnp.asarray(images)
        if self.config.data.value_range:
            return scaler.scale(images)
        if not jnp.issubdtype(images.dtype, jnp.integer):
            raise InputError(
                f"images have the type {images.dtype}, but they must be integer grey levels."
            )
        self._batch(images)  # Checks the shape.
        largest = getattr(scaler, "levels", 256) - 1
        if int(images.min()) < 0 or int(images.max()) > largest:
            raise InputError(
                f"images have values from {int(images.min())} to {int(images.max())}; the grey "
                f"levels of this model are 0 to {largest}."
            )
        if seed is None:
            return scaler.scale(images)
        flat = images.reshape(-1, *self.event_shape)
        # Noise of the keys of the probes of `log_prob` would bias the trace.
        own = jax.random.fold_in(key_of(seed), DEQUANTIZE)
        keys = sampling.image_keys(own, jnp.arange(len(flat)))
        noise = sampling.uniform(keys, flat.shape).reshape(images.shape)
        return scaler.dequantize(images, noise)

    @checked
    def bits_per_dim(
        self,
        images: np.ndarray | Array,
        seed: Seed = 0,
        *,
        probes: int = PROBES,
        tolerance: float = TOLERANCE,
        return_error: bool = False,
    ) -> Any:
        """Return bits/dim of images (..., H, W, C) of the data set, in their batch shape.

        Grey levels are dequantized by uniform noise (arXiv:2011.13456, Section 4.3); bits/dim of
        real numbers are those of their density. With `return_error`, also the estimated error of
        the log-density, in bits/dim; it does not contain the variation over the noise.
        """
        x = self.from_images(images, seed)
        logp, error = self.log_prob(
            x, seed=seed, probes=probes, tolerance=tolerance, return_error=True
        )
        dims = math.prod(self.event_shape)
        bits = likelihood.bits_per_dim(logp, dims, self.experiment.scaler.log_scale)
        return (bits, error / (dims * math.log(2))) if return_error else bits


@checked
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
        config = load_config(checkpoint) if config is None else config
    if workdir is not None:
        if isinstance(checkpoint, (str, Path)):
            raise InputError(
                f"checkpoint = {str(checkpoint)!r}: with a workdir it must be a number; a file "
                "needs config instead of the workdir."
            )
        if config is None and stored_content(Path(workdir)) is None:
            raise InputError(
                f"{workdir} holds no model: it has neither config.json nor a checkpoint. Train "
                "one there with --mode=train, or pass another folder."
            )
        with advice(OWN_NAMES) if config is None else contextlib.nullcontext():
            found_config = load_config(workdir) if config is None else _read_config(config)
            experiment = _experiment(found_config)
        found, params = experiment.trained(str(workdir), checkpoint)
        return TrainedModel(experiment, params, found.step)
    if config is None or checkpoint is None:
        raise InputError("load needs a workdir, or both config and checkpoint.")
    experiment = _experiment(_read_config(config))
    trained = pretrained.read(str(checkpoint), experiment.network, experiment.config)
    return TrainedModel(experiment, jax.tree.map(jnp.asarray, trained.ema), trained.step)


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
