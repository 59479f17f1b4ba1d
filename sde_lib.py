"""Forward SDEs that turn data into noise (Song et al. 2021, arXiv:2011.13456, Sections 3.1-3.4 and Appendix B).

An SDE here is what it does to one data point: x_t | x_0 ~ N(alpha(t) x_0, var(t) I). Drift, diffusion, reverse SDE,
probability-flow ODE, prior and discrete chains follow from these two functions of time, so a new SDE states them and is
done. Times t are float arrays of shape () or (B,) in [0, T]; states x have shape (B, ...).
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from errors import InputError

Score = Callable[[Array, Array], Array]
"""score(x, t) = grad_x log p_t(x): x (B, ...), t (B,) -> (B, ...)."""


class Step(NamedTuple):
    """One step of a discretised reverse process, from time t down to the time s that lies dt below it.

    The forward chain that the step undoes is x_t = ratio x_s + sqrt(var) z. Leaves are scalars, or arrays with an entry
    per step (the sampler's first step first) or per image.
    """

    t: Array
    dt: Array
    ratio: Array
    var: Array
    ancestral_var: Array  # noise that ancestral sampling adds


def expand(coefficient: Array, x: Array) -> Array:
    """Appends axes to `coefficient`, of shape () or (B,), until it broadcasts against `x` of shape (B, ...)."""
    coefficient = jnp.asarray(coefficient)
    return coefficient.reshape(coefficient.shape + (1,) * (x.ndim - coefficient.ndim))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SDE(abc.ABC):
    """dx = f(t) x dt + g(t) dw with Gaussian kernel N(alpha(t) x_0, var(t) I).

    Attributes:
      T: the time at which x_t is (close to) the prior.
      t_min: the least time of training and of the likelihood; the score explodes towards t = 0.
      t_end: the time at which samplers stop and take a last, noise-free step.
    """

    T: float = 1.0
    t_min: float = 1e-5
    t_end: float = 1e-3

    @abc.abstractmethod
    def alpha(self, t: Array) -> Array:
        """Scale of the data at time t; same shape as t."""

    @abc.abstractmethod
    def var(self, t: Array) -> Array:
        """Variance of the noise at time t; same shape as t. Use expm1 where 1 - exp(.) would cancel."""

    def std(self, t: Array) -> Array:
        """Standard deviation of the noise at time t."""
        return jnp.sqrt(self.var(t))

    def drift_coefficient(self, t: Array) -> Array:
        """f(t) = alpha'(t) / alpha(t), so that the drift of Eq. (5) is f(t) x."""
        alpha, slope = _value_and_slope(self.alpha, t)
        return slope / alpha

    def diffusion(self, t: Array) -> Array:
        """g(t) of Eq. (5), from g^2 = var' - 2 f var, which the variance of a linear SDE obeys (Appendix B)."""
        var, slope = _value_and_slope(self.var, t)
        return jnp.sqrt(slope - 2 * self.drift_coefficient(t) * var)

    def drift(self, x: Array, t: Array) -> Array:
        """f(x, t) of Eq. (5); shape of x."""
        return expand(self.drift_coefficient(t), x) * x

    def reverse_drift(
        self, score: Array, x: Array, t: Array, *, probability_flow: bool = False
    ) -> Array:
        """Drift of the reverse-time SDE, Eq. (6), or of the probability-flow ODE, Eq. (13), given score(x, t)."""
        weight = 0.5 if probability_flow else 1.0
        return self.drift(x, t) - weight * expand(self.diffusion(t) ** 2, x) * score

    def posterior_mean(self, score: Array, x: Array, t: Array) -> Array:
        """E[x_0 | x_t = x] for x (B, ...), given score(x, t) (Tweedie's formula; Efron 2011)."""
        return (x + expand(self.var(t), x) * score) / expand(self.alpha(t), x)

    def noise_to_signal(self, t: Array) -> Array:
        """std(t) / alpha(t), which grows with t: the noise scale of x_t / alpha(t) = x_0 + noise."""
        return self.std(t) / self.alpha(t)

    def time_at(self, noise_to_signal: Array) -> Array:
        """Inverts `noise_to_signal` by bisection, for any shape; beyond [0, T], the nearer end."""
        target = jnp.asarray(noise_to_signal, jnp.float32)

        def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = bounds
            middle = (low + high) / 2
            above = self.noise_to_signal(middle) > target
            return jnp.where(above, low, middle), jnp.where(above, middle, high)

        bounds = jnp.zeros_like(target), jnp.full_like(target, self.T)
        return jnp.mean(jnp.stack(jax.lax.fori_loop(0, 50, halve, bounds)), 0)

    @property
    def prior_std(self) -> float:
        """Standard deviation of the prior N(0, prior_std^2 I) that stands for p_T."""
        with jax.ensure_compile_time_eval():
            return float(self.std(jnp.float32(self.T)))

    def prior_logp(self, z: Array) -> Array:
        """Log-density of the prior in nats: z (B, ...) -> (B,)."""
        return jax.scipy.stats.norm.logpdf(z, scale=self.prior_std).reshape(z.shape[0], -1).sum(-1)

    # --- discretisation -----------------------------------------------------------------------------------------------

    def steps(self, ts: Array) -> Step:
        """Reverse steps along the descending times `ts`, shape (n,), with the exact Gaussian transitions between them.

        The last step leads from ts[-1] to noise-free data, where alpha = 1 and var = 0.
        """
        ts = jnp.asarray(ts)
        alpha, var = self.alpha(ts), self.var(ts)
        alpha_next = jnp.append(alpha[1:], 1.0)
        var_next = jnp.append(var[1:], 0.0)
        ratio = alpha / alpha_next
        step_var = jnp.maximum(var - ratio**2 * var_next, 0.0)
        return Step(ts, ts - jnp.append(ts[1:], 0.0), ratio, step_var, step_var * var_next / var)

    def sampling_times(self, n: int) -> Array:
        """The official grid: n evenly spaced times from T down to t_end, at each of which the score is evaluated."""
        return jnp.linspace(self.T, self.t_end, n)

    def discretize(self, n: int) -> Step:
        """The n steps that samplers take by default (Appendix E); the SDEs of the paper have chains of their own."""
        return self.steps(self.sampling_times(n))

    # --- what ties a network to this SDE ------------------------------------------------------------------------------
    # num_scales is None for a network trained in continuous time, else the number of noise levels it was trained on.

    def marginal(self, t: Array, num_scales: int | None = None) -> tuple[Array, Array]:
        """Scale of the data and standard deviation of the noise in the x_t that the network was trained on."""
        del num_scales
        return self.alpha(t), self.std(t)

    def label(self, t: Array, num_scales: int | None = None) -> Array:
        """What a network is told of the time t: 999 t / T, or the (fractional) index of t among the noise levels.

        Times i / (num_scales - 1) T give the index i exactly, whatever float32 makes of them.
        """
        if num_scales is None:
            return 999 * t / self.T
        label = t / self.T * (num_scales - 1)
        nearest = jnp.round(label)
        return jnp.where(jnp.abs(label - nearest) < 5e-4, nearest, label)

    def score_from_output(self, output: Array, t: Array, num_scales: int | None = None) -> Array:
        """The score that a network output stands for. Networks predict the noise z in x_t = alpha x_0 + std z."""
        return -output / expand(self.marginal(t, num_scales)[1], output)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VESDE(SDE):
    """Variance exploding: sigma(t) = sigma_min (sigma_max / sigma_min)^t (Eq. (9), Appendix C). Its chain is SMLD."""

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_end: float = 1e-5

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise InputError(
                f"VESDE needs 0 < sigma_min < sigma_max, got {self.sigma_min} and {self.sigma_max}."
            )

    def alpha(self, t: Array) -> Array:
        return jnp.ones_like(t)

    def std(self, t: Array) -> Array:
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** (t / self.T)

    def var(self, t: Array) -> Array:
        return self.std(t) ** 2

    @property
    def prior_std(self) -> float:
        return float(self.sigma_max)

    def sigmas(self, n: int) -> np.ndarray:
        """The n noise scales of SMLD, geometric, largest first; float64 (n,)."""
        return np.geomspace(self.sigma_max, self.sigma_min, n)

    def discretize(self, n: int) -> Step:
        """SMLD's chain: x_i = x_{i-1} + sqrt(sigma_i^2 - sigma_{i-1}^2) z with sigma_0 = 0 (Eq. (8))."""
        var = self.sigmas(n) ** 2
        var_next = np.append(var[1:], 0.0)
        return _official_steps(self, np.ones(n), var - var_next, (var - var_next) * var_next / var)

    def label(self, t: Array, num_scales: int | None = None) -> Array:
        """sigma(t), or the index of t's noise scale, largest scale first (as int32)."""
        if num_scales is None:
            return self.std(t)
        return jnp.round((1 - t / self.T) * (num_scales - 1)).astype(jnp.int32)

    def score_from_output(self, output: Array, t: Array, num_scales: int | None = None) -> Array:
        """Networks of the VE SDE output the score itself."""
        del t, num_scales
        return output


@dataclasses.dataclass(frozen=True, kw_only=True)
class VPSDE(SDE):
    """Variance preserving: beta(t) linear from beta_min to beta_max (Eq. (11), Appendix C). Its chain is DDPM."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.beta_min <= self.beta_max:
            raise InputError(
                f"{type(self).__name__} needs 0 < beta_min <= beta_max, got {self.beta_min}, {self.beta_max}."
            )

    def log_alpha(self, t: Array) -> Array:
        """-1/2 times the integral of beta from 0 to t."""
        u = t / self.T
        return -self.T * (0.25 * u**2 * (self.beta_max - self.beta_min) + 0.5 * u * self.beta_min)

    def alpha(self, t: Array) -> Array:
        return jnp.exp(self.log_alpha(t))

    def var(self, t: Array) -> Array:
        return -jnp.expm1(2 * self.log_alpha(t))

    @property
    def prior_std(self) -> float:
        """1, the limit for large beta_max; var(T) = 1 - 4e-5 with the defaults."""
        return 1.0

    def betas(self, n: int) -> np.ndarray:
        """DDPM's n noise variances, least first; float64 (n,)."""
        if self.beta_max * self.T >= n:
            raise InputError(
                f"{n} steps are too few for the DDPM chain of a VP SDE with beta_max = {self.beta_max}: "
                f"beta_max / steps must stay below 1."
            )
        return np.linspace(self.beta_min, self.beta_max, n) * self.T / n

    def discretize(self, n: int) -> Step:
        """DDPM's chain x_i = sqrt(1 - beta_i) x_{i-1} + sqrt(beta_i) z (Eq. (10)), with ancestral variance beta_i."""
        betas = self.betas(n)[::-1]
        return _official_steps(self, np.sqrt(1 - betas), betas, betas)

    def marginal(self, t: Array, num_scales: int | None = None) -> tuple[Array, Array]:
        """With num_scales, of DDPM's chain; a time between two of its levels gets the lower one, as officially."""
        if num_scales is None:
            return self.alpha(t), self.std(t)
        log_alpha_bar = np.cumsum(np.log1p(-self.betas(num_scales)))
        index = self.label(t, num_scales).astype(jnp.int32)
        alpha, std = np.exp(log_alpha_bar / 2), np.sqrt(-np.expm1(log_alpha_bar))
        return jnp.asarray(alpha, jnp.float32)[index], jnp.asarray(std, jnp.float32)[index]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubVPSDE(VPSDE):
    """Sub-variance preserving: VP's drift, and the square of its variance (Eq. (12)). Has no discrete-time training."""

    def var(self, t: Array) -> Array:
        return super().var(t) ** 2

    def discretize(self, n: int) -> Step:
        """Euler-Maruyama steps of length T / n, as officially; ancestral noise as in VE's chain."""
        ts, dt = self.sampling_times(n), self.T / n
        var = self.diffusion(ts) ** 2 * dt
        var_next = self.var(jnp.maximum(ts - dt, 0.0))
        ratio = 1 + self.drift_coefficient(ts) * dt
        return Step(ts, jnp.full(n, dt), ratio, var, var * var_next / self.var(ts))

    def marginal(self, t: Array, num_scales: int | None = None) -> tuple[Array, Array]:
        return SDE.marginal(self, t)

    def label(self, t: Array, num_scales: int | None = None) -> Array:
        return SDE.label(self, t)


SDES: dict[str, type[SDE]] = {"vesde": VESDE, "vpsde": VPSDE, "subvpsde": SubVPSDE}


def _value_and_slope(function: Callable[[Array], Array], t: Array) -> tuple[Array, Array]:
    t = jnp.asarray(t)
    return jax.jvp(function, (t,), (jnp.ones_like(t),))


def _official_steps(
    sde: SDE, ratio: np.ndarray, var: np.ndarray, ancestral_var: np.ndarray
) -> Step:
    n = len(ratio)
    tables = (jnp.asarray(a, jnp.float32) for a in (ratio, var, ancestral_var))
    return Step(sde.sampling_times(n), jnp.full(n, sde.T / n), *tables)
