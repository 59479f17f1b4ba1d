"""The interface between a network and an SDE: what the network receives and what its output means.

A network maps (x, label) to an output in the shape of x. A parameterization defines its input, the
label of a time t, and the score that an output represents. `ScoreModel` applies a parameterization
to a network; all other code uses the resulting function score(x, t).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from errors import InputError
from models.conditions import UNCONDITIONAL, Condition, Kinds
from models.layers import Rngs
from sde_lib import SDE, VPSDE, CosineSDE, expand

Network = Callable[..., Array]
"""(x (B, ...), label (B,), rngs, **condition) -> output (B, ...); see `conditions.Kinds`."""

Marginal = tuple[Array, Array]
"""alpha (B,) and std (B,) of x_t = alpha x_0 + std z."""

LevelMarginal = Callable[[Any, Array, int], Marginal]
"""(sde, t (B,), num_scales) -> those of a discrete chain at times t."""

Coefficient = Callable[[Array, Array, float], Array]
"""(alpha, std, data_std) -> a coefficient, in their shape; see `Parameterization`."""


class Parameterization(NamedTuple):
    """What a network F receives, and what its output means (EDM, arXiv:2206.00364, Table 1).

    The denoiser is E[x_0 | x_t = x] = c_skip x + c_out F(c_in x, c_noise), where x_t =
    alpha x_0 + std z. EDM states the coefficients for alpha = 1; here x has the scale alpha.

    Attributes:
      c_skip, c_out, c_in: functions of (alpha, std, data_std), where data_std is the standard
        deviation of the data (`model.sigma_data`).
      c_noise: (sde, t (B,)) -> labels (B,), for networks trained in continuous time.
      c_noise_of_level: (sde, t (B,), num_scales) -> labels (B,), for networks trained on the
        discrete noise levels at times i T / (num_scales - 1); None if that is not possible.
      score: (output (B, ...), std (B,)) -> score (B, ...) for the two parameterizations of the
        paper, whose score does not depend on x; None for the others.
    """

    c_skip: Coefficient
    c_out: Coefficient
    c_in: Coefficient
    c_noise: Callable[[SDE, Array], Array]
    c_noise_of_level: Callable[[SDE, Array, int], Array] | None = None
    score: Callable[[Array, Array], Array] | None = None


def one(alpha: Array, std: Array, data_std: float) -> Array:
    """The coefficient of networks that receive x itself."""
    return jnp.ones_like(alpha)


def quarter_log_level(sde: SDE, t: Array) -> Array:
    """log(std / alpha) / 4, the label of EDM's networks."""
    return jnp.log(sde.noise_to_signal(t)) / 4


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


def _variance(alpha: Array, std: Array, data_std: float) -> Array:
    """The variance of x_t."""
    return (alpha * data_std) ** 2 + std**2


def c_in_of_edm(alpha: Array, std: Array, data_std: float) -> Array:
    """The scale that gives x_t unit variance."""
    return 1 / jnp.sqrt(_variance(alpha, std, data_std))


PARAMETERIZATIONS = {
    # The noise z (DDPM).
    "noise": Parameterization(
        c_skip=lambda alpha, std, data_std: 1 / alpha,
        c_out=lambda alpha, std, data_std: -std / alpha,
        c_in=one,
        c_noise=scaled_time,
        c_noise_of_level=level_index,
        score=score_from_noise,
    ),
    # The score (SMLD).
    "score": Parameterization(
        c_skip=lambda alpha, std, data_std: 1 / alpha,
        c_out=lambda alpha, std, data_std: std**2 / alpha,
        c_in=one,
        c_noise=noise_scale,
        c_noise_of_level=descending_level_index,
        score=lambda output, std: output,
    ),
    # v = (alpha z - std x_0) / sqrt(alpha^2 + std^2); the root is 1 for VP (arXiv:2202.00512).
    "velocity": Parameterization(
        c_skip=lambda alpha, std, data_std: alpha / (alpha**2 + std**2),
        c_out=lambda alpha, std, data_std: -std / jnp.hypot(alpha, std),
        c_in=one,
        c_noise=scaled_time,
        c_noise_of_level=level_index,
    ),
    # z - x_0, the velocity of rectified flow, where alpha + std = 1 (arXiv:2209.03003).
    "flow": Parameterization(
        c_skip=lambda alpha, std, data_std: 1 / (alpha + std),
        c_out=lambda alpha, std, data_std: -std / (alpha + std),
        c_in=one,
        c_noise=scaled_time,
        c_noise_of_level=level_index,
    ),
    # The data x_0.
    "data": Parameterization(
        c_skip=lambda alpha, std, data_std: jnp.zeros_like(alpha),
        c_out=one,
        c_in=one,
        c_noise=scaled_time,
        c_noise_of_level=level_index,
    ),
    # Input and target of unit variance (arXiv:2206.00364, Table 1, last column).
    "edm": Parameterization(
        c_skip=lambda alpha, std, data_std: alpha * data_std**2 / _variance(alpha, std, data_std),
        c_out=lambda alpha, std, data_std: std * data_std * c_in_of_edm(alpha, std, data_std),
        c_in=c_in_of_edm,
        c_noise=quarter_log_level,
    ),
}


def ddpm_marginal(sde: VPSDE | CosineSDE, t: Array, num_scales: int) -> tuple[Array, Array]:
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
      parameterization: a key of `PARAMETERIZATIONS`, unless `model.parameterization` names another.
      level_marginal: alpha and std in discrete-time training; None for those of the SDE at time t.
    """

    parameterization: str = "noise"
    level_marginal: LevelMarginal | None = None


CONVENTIONS = {
    "vesde": Conventions(parameterization="score"),
    "vpsde": Conventions(level_marginal=ddpm_marginal),
    "cosinesde": Conventions(level_marginal=ddpm_marginal),
    "edmsde": Conventions(parameterization="edm"),
    "rectifiedflow": Conventions(parameterization="flow"),
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
      parameterization: a key of `PARAMETERIZATIONS`.
      level_marginal: see `Conventions`; not used in continuous time.
      centered: whether data lie in [-1, 1]. If not, they lie in [0, 1], and the network receives
        2 x - 1.
      sigmas: divisors of the output (`model.scale_by_sigma`): a table of noise scales, indexed by
        the integer part of the label; () if the label itself is the noise scale (Fourier
        embedding); None for no division.
      data_std: the standard deviation of the data (`model.sigma_data`), which "edm" uses.
      kinds: what the network is conditioned on, if anything.
      dtype: the type of the network's input, and thereby of its activations. Outputs are converted
        to float32.
    """

    sde: SDE
    num_scales: int | None = None
    parameterization: str = "noise"
    level_marginal: LevelMarginal | None = None
    centered: bool = True
    sigmas: tuple[float, ...] | None = None
    data_std: float = 0.5
    kinds: Kinds = UNCONDITIONAL
    dtype: jnp.dtype = jnp.dtype("float32")

    def check_training(self, sde_name: str) -> None:
        """Raise InputError if the parameterization does not fit the data or discrete time."""
        which = f"model.parameterization = {self.parameterization!r}"
        if self.table.c_in is not one and not self.centered:
            raise InputError(
                f"{which} needs data.centered = True, since its coefficients are those of data "
                "with mean 0."
            )
        if self.table.score is None and self.sigmas is not None:
            raise InputError(f"{which} needs model.scale_by_sigma = False.")
        if self.num_scales is None:
            return
        if self.table.c_noise_of_level is None:
            raise InputError(f"{which} needs training.continuous = True.")
        with jax.ensure_compile_time_eval():
            _, smallest_std = self.marginal(jnp.zeros(1))
            has_noise = bool(smallest_std[0] > 0)
        if not has_noise:
            raise InputError(
                f"training.sde = {sde_name!r} cannot be trained in discrete time: its first level "
                "has no noise. Set training.continuous = True."
            )

    @property
    def table(self) -> Parameterization:
        """The coefficients of the network's input and output."""
        return PARAMETERIZATIONS[self.parameterization]

    def label(self, t: Array) -> Array:
        """The labels (B,) that the network receives for times t (B,)."""
        if self.num_scales is None:
            return self.table.c_noise(self.sde, t)
        if self.table.c_noise_of_level is None:
            raise ValueError(f"{self.parameterization!r} has no labels for discrete noise levels.")
        return self.table.c_noise_of_level(self.sde, t, self.num_scales)

    def marginal(self, t: Array) -> Marginal:
        """alpha (B,) and std (B,) of the training data x_t = alpha x_0 + std z at times t (B,)."""
        if self.num_scales is None or self.level_marginal is None:
            return self.sde.alpha(t), self.sde.std(t)
        return self.level_marginal(self.sde, t, self.num_scales)

    def coefficient(self, name: str, marginal: Marginal, x: Array) -> Array:
        """The coefficient `name`, such as "c_skip", for x (B, ...) with this alpha and std."""
        return expand(getattr(self.table, name)(*marginal, self.data_std), x)

    def score_from_output(
        self, output: Array, x: Array, t: Array, marginal: Marginal | None = None
    ) -> Array:
        """The score (B, ...) at x (B, ...) that an output of the network represents, at t (B,)."""
        alpha, std = marginal = marginal or self.marginal(t)
        if self.table.score is not None:
            return self.table.score(output, std)
        mean = self.denoised_from_output(output, x, marginal)
        return (expand(alpha, x) * mean - x) / expand(std**2, x)

    def denoised_from_output(self, output: Array, x: Array, marginal: Marginal) -> Array:
        """E[x_0 | x_t = x] (B, ...) that an output of the network represents, as for the score."""
        skip, out = (self.coefficient(name, marginal, x) for name in ("c_skip", "c_out"))
        return skip * x + out * output

    def loss_weight(self, t: Array) -> Array | None:
        """The weight (B,) of the training loss at times t (B,), relative to the paper's std^2.

        Errors of the network's output count alike at all times, as in the losses of v-prediction,
        rectified flow and EDM: the weight of the squared error of the denoiser is 1 / c_out^2. None
        stands for 1, the weight of the paper's parameterizations.
        """
        if self.table.score is not None:
            return None
        alpha, std = self.marginal(t)
        return (std / (alpha * self.table.c_out(alpha, std, self.data_std))) ** 2

    def output(
        self,
        network: Network,
        x: Array,
        label: Array,
        rngs: Rngs | None = None,
        condition: Condition | None = None,
    ) -> Array:
        """The network's output for inputs x (B, ...), labels (B,) and a condition, in float32.

        The output is divided by sigma if `sigmas` is not None.
        """
        inputs = x if self.centered else 2 * x - 1
        inputs = inputs.astype(self.dtype)
        output = network(inputs, label, rngs, **self.kinds.arguments(condition, inputs))
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
        condition: Condition | None = None,
        marginal: Marginal | None = None,
    ) -> Array:
        """Estimate grad_x log p_t(x) for x (B, ...) and t (B,), of the shape of x.

        With `rngs`, dropout is active. With a condition, estimate grad_x log p_t(x | condition),
        which requires a network of its kinds. `marginal` is that of t, if it is known.
        """
        marginal = marginal or self.marginal(t)
        scaled = x if self.table.c_in is one else self.coefficient("c_in", marginal, x) * x
        output = self.output(network, scaled, self.label(t), rngs, condition)
        return self.score_from_output(output, x, t, marginal)
