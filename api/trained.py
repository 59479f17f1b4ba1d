"""`TrainedModel`: the prior that a trained network defines, with images and their bits/dim."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

import likelihood
import sampling
from api.arguments import Seed, checked, key_of
from api.conditional import ConditionalPrior, NetworkScore
from api.execution import by_rows
from api.prior import PROBES
from datasets import RealScaler, Scaler
from errors import InputError
from likelihood import TOLERANCE
from models.building import Params
from models.conditions import Condition
from sde_lib import SDE


class Bits(NamedTuple):
    """Bits/dim of images (B,) each.

    Attributes:
      bpd: by the probability-flow ODE.
      nfe: evaluations of the score.
      probe_stderr: the standard error due to the probes; NaN for a single probe.
      solver_error: the solver's error estimate.
      bound: `likelihood.elbo` of the same dequantized images; NaN if it is not asked for.
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
        support: tuple[float, float],
        scaler: Scaler | RealScaler,
        to_pixels: Callable[[Array], Array],
        config: Any = None,
        step: int = 0,
        mesh: Mesh | None = None,
        units: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Check nothing: `experiment.Experiment.trained_model` has built the parts.

        `units` holds the arguments loc and scale of `Prior`, where data were standardized.
        """
        super().__init__(score, score.sde, shape, support=support, mesh=mesh, **units)
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

    def _check_score(self) -> None:
        """Skip the check: the network was checked against the config."""

    # --- images -----------------------------------------------------------------------------------

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
        self._batch(images)  # Checks the shape.
        if isinstance(self.scaler, RealScaler):
            return images
        if not jnp.issubdtype(images.dtype, jnp.integer):
            raise InputError(
                f"images have the type {images.dtype}, but they must be integer gray levels."
            )
        largest = self.scaler.levels - 1
        if int(images.min()) < 0 or int(images.max()) > largest:
            raise InputError(
                f"images have values from {int(images.min())} to {int(images.max())}; the gray "
                f"levels of this model are 0 to {largest}."
            )
        return images

    # --- bits/dim ---------------------------------------------------------------------------------

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
        images = self._check_images(images)
        dims = math.prod(self.event_shape)
        keys = sampling.image_keys(key_of(seed), jnp.arange(images.size // dims))
        z = _dequantized(self.scaler, images.reshape(-1, *self.event_shape), keys)
        found = self.log_prob(
            self.units.to_data(z).reshape(images.shape),
            seed=sampling.fold_in(keys, 1),
            condition=condition,
            return_error=return_error,
            **options,
        )
        logp, error = found if return_error else (found, 0.0)
        bits = likelihood.bits_per_dim(logp + self.units.log_volume, dims, self.scaler.log_scale)
        return (bits, error / (dims * math.log(2))) if return_error else bits

    def bits(
        self,
        images: Array,
        keys: Array,
        *,
        trace: str | None = None,
        probes: int = PROBES,
        tolerance: float = TOLERANCE,
        steps: int | None = None,
        t_min: float | None = None,
        bound: bool = False,
    ) -> Bits:
        """Return bits/dim of images (B, H, W, C), with the random numbers of the keys (B,).

        `t_min` replaces that of the SDE as the time at which images are placed. With `bound`, also
        compute the variational bound. The rest is as for `bits_per_dim`.
        """
        sde = self.sde if t_min is None else dataclasses.replace(self.sde, t_min=t_min)
        solver = {"tolerance": tolerance, "steps": steps}

        def compute(images: Array, keys: Array, rows: Condition | None) -> Bits:
            score, kind = self.score_given(rows), self._trace(trace)
            return _bits(score, sde, self.scaler, images, keys, kind, probes, solver, bound)

        return by_rows(self.mesh, compute, images, keys, self.paired_rows(len(images)))


def _dequantized(scaler: Scaler | RealScaler, images: Array, keys: Array) -> Array:
    """Return images (B, H, W, C) with uniform noise of the keys (B,), as events."""
    # Noise of the keys of the probes would bias the trace.
    noise = sampling.uniform(sampling.fold_in(keys, 0), images.shape)
    return scaler.dequantize(images, noise)


@eqx.filter_jit
def _bits(
    score: NetworkScore,
    sde: SDE,
    scaler: Scaler | RealScaler,
    images: Array,
    keys: Array,
    kind: str,
    count: int,
    solver: dict[str, Any],
    bound: bool,
) -> Bits:
    probe_keys, bound_keys = (sampling.fold_in(keys, purpose) for purpose in (1, 2))
    x, bound_score = _dequantized(scaler, images, keys), score.bind()
    probes = likelihood.draw_probes(probe_keys, x.shape, kind, count)
    ode = likelihood.log_likelihood(bound_score, sde, x, probes, **solver)
    dims = math.prod(x.shape[1:])
    bits = functools.partial(likelihood.bits_per_dim, dims=dims, log_scale=scaler.log_scale)
    nats = -jnp.full(len(x), jnp.nan)
    if bound:
        nats = likelihood.elbo(bound_score, sde, x, bound_keys).nats
    return Bits(
        bits(ode.logp),
        ode.nfe,
        likelihood.probe_stderr(bits(ode.per_probe), kind),
        ode.error / (dims * math.log(2)),
        bits(-nats),
    )
