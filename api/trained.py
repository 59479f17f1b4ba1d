"""`TrainedModel`: the prior that a trained network defines, with images and their bits/dim."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

import likelihood
import sampling
from api.arguments import Seed, as_rows, checked, key_of
from api.conditional import ConditionalPrior, NetworkScore
from api.density import log_density, upper_bound
from datasets import RealScaler, Scaler
from errors import InputError
from models.building import Params


class Bits(NamedTuple):
    """Bits/dim of images (B,) each.

    Attributes:
      bpd: by the probability-flow ODE.
      nfe: evaluations of the score.
      probe_stderr: the standard error due to the probes; NaN for a single probe.
      solver_error: the solver's error estimate.
      bound: `likelihood.elbo` of the same dequantized images.
    """

    bpd: Array
    nfe: Array
    probe_stderr: Array
    solver_error: Array
    bound: Array


class TrainedModel(ConditionalPrior):
    """The distribution of images that a network was trained on. Events are in the model's range.

    Attributes:
      params: the averaged parameters.
      step: the training step.
      scaler: the map from gray levels to the model's range.
      config: the config of the model.
      kinds: what samples can be conditioned on: that of the network, and the classes of a
        classifier.
    """

    def __init__(
        self,
        score: NetworkScore,
        shape: tuple[int, ...],
        *,
        scaler: Scaler | RealScaler,
        to_pixels: Callable[[Array], Array],
        config: Any = None,
        step: int = 0,
        **options: Any,
    ) -> None:
        """Check nothing: `experiment.Experiment.trained_model` has built the parts.

        The `options` are those of `Prior`.
        """
        super().__init__(score, score.sde, shape, **options)
        self.scaler, self.step, self.config = scaler, step, config
        self._to_pixels = to_pixels

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, step={self.step})"

    @property
    def params(self) -> Params:
        return self.score.params

    @property
    def num_classes(self) -> int:
        """The classes that samples can have; 0 if they can only be of any class."""
        return self.kinds.num_classes

    @checked
    def to_images(self, x: Array) -> np.ndarray:
        """Return events as images: uint8 from 0 to 255, or real numbers of data.value_range."""
        return np.asarray(self._to_pixels(self.units.standardized(jnp.asarray(x))))

    @checked
    def from_images(self, images: np.ndarray | Array, seed: Seed | None = None) -> Array:
        """Return images (..., H, W, C) of the data set as events.

        Args:
          images: as the data set has them: integers from 0 to the largest gray level, which is 255
            for 8 bits and 16 for the digits; or real numbers, if data.value_range is set.
          seed: of uniform noise that dequantizes the images, as `bits_per_dim` does. Without it,
            a gray level becomes the value that the network was trained on.

        Raises InputError for images of another shape, type or range.
        """
        images = self._check_images(images)
        if seed is None or isinstance(self.scaler, RealScaler):
            return self.units.to_data(self.scaler.scale(images))
        flat = images.reshape(-1, *self.event_shape)
        keys = sampling.image_keys(key_of(seed), jnp.arange(len(flat)))
        return _dequantized(self.scaler, flat, keys).reshape(images.shape)

    def _check_images(self, images: np.ndarray | Array) -> Array:
        images = jnp.asarray(images)
        as_rows("images", images, self.event_shape)  # Checks the shape.
        if isinstance(self.scaler, RealScaler):
            return images
        if not jnp.issubdtype(images.dtype, jnp.integer):
            raise InputError(
                f"images have the type {images.dtype}, but they must be integer gray levels."
            )
        low, high, largest = int(images.min()), int(images.max()), self.scaler.levels - 1
        if low < 0 or high > largest:
            raise InputError(
                f"images have values from {low} to {high}; the gray levels of this model are 0 to "
                f"{largest}."
            )
        return images

    @checked
    def bits_per_dim(
        self,
        images: np.ndarray | Array,
        seed: Seed = 0,
        *,
        condition: Any = None,
        return_error: bool = False,
        **options: Any,
    ) -> Any:
        """Return bits/dim of images (..., H, W, C) of the data set, in their batch shape.

        Gray levels are dequantized by uniform noise (arXiv:2011.13456, Section 4.3); bits/dim of
        real numbers are those of their density. With `return_error`, also return the error that
        `log_prob` states, in bits/dim, without the variation over the noise. The `options` are
        those of `log_prob`.
        """
        images, dims = self._check_images(images), math.prod(self.event_shape)
        keys = sampling.image_keys(key_of(seed), jnp.arange(images.size // dims))
        z = _dequantized(self.scaler, images.reshape(-1, *self.event_shape), keys)
        x, seeds = self.units.to_data(z).reshape(images.shape), sampling.fold_in(keys, 1)
        options |= {"seed": seeds, "condition": condition, "return_error": return_error}
        found = self.log_prob(x, **options)
        logp, error = found if return_error else (found, 0.0)
        bits = likelihood.bits_per_dim(logp + self.units.log_volume, dims, self.scaler.log_scale)
        return (bits, error / (dims * math.log(2))) if return_error else bits

    def bits(
        self, images: Array, keys: Array, *, t_min: float | None = None, **options: Any
    ) -> Bits:
        """Return bits/dim of images (B, H, W, C), with the random numbers of the keys (B,).

        `t_min` replaces that of the SDE as the time at which images are placed. The options are
        those of `density.log_density`; the rest is as for `bits_per_dim`.
        """
        placed, z = copy.copy(self), _dequantized(self.scaler, images, keys)
        placed.sde = dataclasses.replace(self.sde, t_min=t_min or self.sde.t_min)
        found = log_density(placed, z, sampling.fold_in(keys, 1), **options)
        nats = upper_bound(placed, z, sampling.fold_in(keys, 2))
        dims = math.prod(self.event_shape)
        bpd, bound = (
            likelihood.bits_per_dim(logp, dims, self.scaler.log_scale)
            for logp in (found.logp, -nats)
        )
        stderr, error = (
            each / (dims * math.log(2)) for each in (found.probe_stderr, found.solver_error)
        )
        return Bits(bpd, found.nfe, stderr, error, bound)


def _dequantized(scaler: Scaler | RealScaler, images: Array, keys: Array) -> Array:
    """Return images (B, H, W, C) with uniform noise of the keys (B,), as events."""
    # Noise of the keys of the probes would bias the trace.
    noise = sampling.uniform(sampling.fold_in(keys, 0), images.shape)
    return scaler.dequantize(images, noise)
