"""The interface between a network and an SDE: what the network receives and what its output means.

A network maps (x, label) to an output in the shape of x. A parameterisation defines the label of a
time t and the score that an output represents. `ScoreModel` applies a parameterisation to a
network; all other code uses the resulting function score(x, t).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from models.layers import Rngs
from sde_lib import SDE, VPSDE, expand

Network = Callable[..., Array]
"""(x (B, ...), label (B,), rngs, classes=...) -> output (B, ...)."""

LevelMarginal = Callable[[Any, Array, int], tuple[Array, Array]]
"""(sde, t (B,), num_scales) -> alpha (B,) and std (B,) of a discrete chain at times t."""


class Parameterisation(NamedTuple):
    """The label that a network is conditioned on, and the meaning of its output.

    Attributes:
      time_label: (sde, t (B,)) -> labels (B,), for networks trained in continuous time.
      level_label: (sde, t (B,), num_scales) -> labels (B,), for networks trained on the discrete
        noise levels at times i T / (num_scales - 1).
      score: (output (B, ...), std (B,)) -> score (B, ...), where std is that of the noise in x_t.
    """

    time_label: Callable[[SDE, Array], Array]
    level_label: Callable[[SDE, Array, int], Array]
    score: Callable[[Array, Array], Array]


def scaled_time(sde: SDE, t: Array) -> Array:
    """999 t / T, the label of the official code for all SDEs but VE."""
    return 999 * t / sde.T


def level_index(sde: SDE, t: Array, num_scales: int) -> Array:
    """The index of t among the noise levels in ascending order; fractional between two levels.

    Indices within 5e-4 of an integer are rounded, because float32 cannot represent all the times
    i T / (num_scales - 1) exactly.
    """
    index = t / sde.T * (num_scales - 1)
    nearest = jnp.round(index)
    return jnp.where(jnp.abs(index - nearest) < 5e-4, nearest, index)


def score_from_noise(output: Array, std: Array) -> Array:
    """The score -z / std, where the output estimates the noise z in x_t = alpha x_0 + std z."""
    return -output / expand(std, output)


def noise_scale(sde: SDE, t: Array) -> Array:
    """sigma(t), the label of the official code for the VE SDE."""
    return sde.std(t)


def descending_level_index(sde: SDE, t: Array, num_scales: int) -> Array:
    """The int32 index of the level nearest to t, from the largest noise scale down as in SMLD."""
    return jnp.round((1 - t / sde.T) * (num_scales - 1)).astype(jnp.int32)


def score_from_score(output: Array, std: Array) -> Array:
    """The output itself, which estimates the score."""
    del std
    return output


PARAMETERISATIONS = {
    "noise": Parameterisation(scaled_time, level_index, score_from_noise),
    "score": Parameterisation(noise_scale, descending_level_index, score_from_score),
}


def ddpm_marginal(sde: VPSDE, t: Array, num_scales: int) -> tuple[Array, Array]:
    """alpha and std of DDPM's chain at times t.

    Times between two levels take the values of the lower level, as in the official code.
    """
    log_alpha_bar = np.cumsum(np.log1p(-sde.betas(num_scales)))
    alpha = jnp.asarray(np.exp(log_alpha_bar / 2), jnp.float32)
    std = jnp.asarray(np.sqrt(-np.expm1(log_alpha_bar)), jnp.float32)
    index = level_index(sde, t, num_scales).astype(jnp.int32)
    return alpha[index], std[index]


class Conventions(NamedTuple):
    """How networks of one SDE are trained: fields of `ScoreModel` that depend on the SDE's name.

    Attributes:
      parameterisation: a key of `PARAMETERISATIONS`.
      level_marginal: alpha and std in discrete-time training; None for those of the SDE at time t.
    """

    parameterisation: str = "noise"
    level_marginal: LevelMarginal | None = None


CONVENTIONS = {
    "vesde": Conventions(parameterisation="score"),
    "vpsde": Conventions(level_marginal=ddpm_marginal),
}
"""By `training.sde`. SDEs that are not in this table use the default values of `Conventions`."""


def conventions(sde_name: str) -> Conventions:
    """The conventions for an SDE, by its name in configs."""
    return CONVENTIONS.get(sde_name, Conventions())


@dataclasses.dataclass(frozen=True)
class ScoreModel:
    """Converts the outputs of a network to scores; holds no parameters.

    Attributes:
      sde: the SDE that the network is trained for.
      num_scales: the number of noise levels of discrete-time training; None in continuous time.
      parameterisation: a key of `PARAMETERISATIONS`.
      level_marginal: see `Conventions`; not used in continuous time.
      centered: whether data lie in [-1, 1]. If not, they lie in [0, 1], and the network receives
        2 x - 1.
      sigmas: divisors of the output (`model.scale_by_sigma`): a table of noise scales, indexed by
        the integer part of the label; () if the label itself is the noise scale (Fourier
        embedding); None for no division.
      num_classes: the number of classes that the network is conditioned on (`data.num_classes`),
        which is also the label of "no class"; 0 for an unconditional network.
      dtype: the type of the network's input, and thereby of its activations. Outputs are converted
        to float32.
    """

    sde: SDE
    num_scales: int | None = None
    parameterisation: str = "noise"
    level_marginal: LevelMarginal | None = None
    centered: bool = True
    sigmas: tuple[float, ...] | None = None
    num_classes: int = 0
    dtype: jnp.dtype = jnp.dtype("float32")

    def label(self, t: Array) -> Array:
        """The labels (B,) that the network receives for times t (B,)."""
        parameterisation = PARAMETERISATIONS[self.parameterisation]
        if self.num_scales is None:
            return parameterisation.time_label(self.sde, t)
        return parameterisation.level_label(self.sde, t, self.num_scales)

    def marginal(self, t: Array) -> tuple[Array, Array]:
        """alpha (B,) and std (B,) of the training data x_t = alpha x_0 + std z at times t (B,)."""
        if self.num_scales is None or self.level_marginal is None:
            return self.sde.alpha(t), self.sde.std(t)
        return self.level_marginal(self.sde, t, self.num_scales)

    def score_from_output(self, output: Array, t: Array) -> Array:
        """The score (B, ...) that an output (B, ...) of the network at times t (B,) represents."""
        _, std = self.marginal(t)
        return PARAMETERISATIONS[self.parameterisation].score(output, std)

    def output(
        self,
        network: Network,
        x: Array,
        label: Array,
        rngs: Rngs | None = None,
        classes: Array | None = None,
    ) -> Array:
        """The network's output for states x (B, ...), labels and classes (B,), in float32.

        The output is divided by sigma if `sigmas` is not None.
        """
        inputs = x if self.centered else 2 * x - 1
        conditioning = {}
        if self.num_classes:
            no_class = jnp.full(x.shape[:1], self.num_classes)
            conditioning["classes"] = no_class if classes is None else classes
        output = network(inputs.astype(self.dtype), label, rngs, **conditioning)
        output = output.astype(jnp.float32)
        if self.sigmas is None:
            return output
        sigma = label
        if self.sigmas:
            sigma = jnp.asarray(self.sigmas, output.dtype)[label.astype(jnp.int32)]
        return output / expand(sigma, output)

    def score(
        self,
        network: Network,
        x: Array,
        t: Array,
        rngs: Rngs | None = None,
        classes: Array | None = None,
    ) -> Array:
        """Estimate grad_x log p_t(x) for x (B, ...) and t (B,), of the shape of x.

        With `rngs`, dropout is active. With `classes` (B,), estimate grad_x log p_t(x | class),
        which requires a class-conditional network.
        """
        output = self.output(network, x, self.label(t), rngs, classes)
        return self.score_from_output(output, t)
