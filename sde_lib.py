"""Forward SDEs that turn data into noise (Song et al. 2021, arXiv:2011.13456).

An SDE is defined by its perturbation kernel, x_t | x_0 ~ N(alpha(t) x_0, var(t) I). It states alpha
and var, or std in its place; the base class derives the rest (Section 3, Appendix B). Times t are
float arrays of shape () or (B,) in [0, T]; states x have shape (B, ...).
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import functools
import math
import operator
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from errors import Bound, InputError, printable

Score = Callable[[Array, Array], Array]
"""score(x, t) = grad_x log p_t(x): x (B, ...), t (B,) -> (B, ...)."""


class Step(NamedTuple):
    """One step of a discretized reverse process, from time t to time s = t - dt.

    It reverses x_t = ratio x_s + sqrt(var) z, Eqs. (41), (45). All attributes are scalars, or
    arrays with one entry per image or per step, in the order in which a sampler takes them.
    """

    t: Array
    dt: Array
    ratio: Array
    var: Array
    ancestral_var: Array
    """Variance of the noise that ancestral sampling adds."""


def expand(coefficient: Array, x: Array) -> Array:
    """Append axes to a coefficient () or (B,), so that it broadcasts against x (B, ...)."""
    coefficient = jnp.asarray(coefficient)
    return coefficient.reshape(coefficient.shape + (1,) * (x.ndim - coefficient.ndim))


_compiled = functools.partial(jax.jit, static_argnums=0, inline=True)
"""Compiles a method once for an SDE and a shape; within a program it is part of the program."""

ORDERS = {"<": operator.lt, "<=": operator.le}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SDE(Bound, abc.ABC):
    """dx = f(t) x dt + g(t) dw with Gaussian kernel N(alpha(t) x_0, var(t) I), as in Eq. (29).

    Attributes:
      T: final time, at which p_T is close to the prior.
      t_min: smallest time of training and of the likelihood; the score diverges as t -> 0.
      t_end: last time at which samplers evaluate the score; a denoising step may follow.
    """

    T: float = 1.0
    t_min: float = 1e-5
    t_end: float = 1e-3

    relations: ClassVar[tuple[str, ...]] = ("0 < t_min < T", "0 < t_end < T")
    """What holds for the fields: numbers and names between < and <=; subclasses add theirs."""

    def __post_init__(self) -> None:
        """Make numbers those of Python. Raises InputError for others, and if a relation fails."""
        name = type(self).__name__
        for field in dataclasses.fields(self):
            if field.type in ("float", float):
                value = getattr(self, field.name)
                with contextlib.suppress(Exception):  # Arrays without a value raise various types.
                    value = value.item()
                if type(value) not in (int, float) or not -1e30 <= value <= 1e30:
                    shown = f"{field.name} = {printable(value):.100}"
                    raise InputError(f"{name}: {shown} must be a finite number.")
                object.__setattr__(self, field.name, value)
        for relation in self.relations:
            terms, signs = relation.split()[::2], relation.split()[1::2]
            fields = {each: getattr(self, each) for each in terms if each.isidentifier()}
            values = [fields[each] if each in fields else float(each) for each in terms]
            if not all(ORDERS[sign](*pair) for sign, *pair in zip(signs, values, values[1:])):
                got = " and ".join(f"{each} = {value}" for each, value in fields.items())
                raise InputError(f"{name} requires {relation}; got {got}.")

    @abc.abstractmethod
    def alpha(self, t: Array) -> Array:
        """Scale of the data at time t, in the shape of t."""

    def var(self, t: Array) -> Array:
        """Variance of the noise at time t, in the shape of t, by expm1 where 1 - exp cancels."""
        return self.std(t) ** 2

    def std(self, t: Array) -> Array:
        """Standard deviation of the noise at time t, in the shape of t."""
        return jnp.sqrt(self.var(t))

    def drift_coefficient(self, t: Array) -> Array:
        """f(t) = alpha'(t) / alpha(t); the drift of Eq. (5) is f(t) x."""
        t = jnp.asarray(t)
        alpha, derivative = jax.jvp(self.alpha, (t,), (jnp.ones_like(t),))
        return derivative / alpha

    def diffusion(self, t: Array) -> Array:
        """g(t) of Eq. (5), from the variance equation var' = 2 f var + g^2, for VP Eq. (26)."""
        t = jnp.asarray(t)
        var, derivative = jax.jvp(self.var, (t,), (jnp.ones_like(t),))
        return jnp.sqrt(derivative - 2 * self.drift_coefficient(t) * var)

    def drift(self, x: Array, t: Array) -> Array:
        """Drift f(t) x of Eq. (5), in the shape of x."""
        return expand(self.drift_coefficient(t), x) * x

    def reverse_drift(
        self, score: Array, x: Array, t: Array, *, probability_flow: bool = False
    ) -> Array:
        """Drift of Eq. (6), or of the probability flow, Eqs. (13), (38), from score(x, t)."""
        weight = 0.5 if probability_flow else 1.0
        return self.drift(x, t) - weight * expand(self.diffusion(t) ** 2, x) * score

    def posterior_mean(self, score: Array, x: Array, t: Array) -> Array:
        """E[x_0 | x_t = x] (B, ...) from the value of score(x, t) (Tweedie's formula)."""
        return (x + expand(self.var(t), x) * score) / expand(self.alpha(t), x)

    def marginal_after(self, step: Step) -> tuple[Array, Array]:
        """Return alpha and std at the time s of a step, from the transition that it reverses."""
        remaining = jnp.maximum(self.var(step.t) - step.var, 0.0)  # Rounding may make it negative.
        return self.alpha(step.t) / step.ratio, jnp.sqrt(remaining) / step.ratio

    @_compiled
    def noise_to_signal(self, t: Array) -> Array:
        """std(t) / alpha(t), which increases with t: the std of the noise in x_t / alpha(t)."""
        return self.std(t) / self.alpha(t)

    @_compiled
    def time_at(self, noise_to_signal: Array) -> Array:
        """Invert `noise_to_signal` by bisection, for any shape; results lie in [0, T]."""
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
        """Standard deviation of the prior N(0, prior_std^2 I), which approximates p_T."""
        with jax.ensure_compile_time_eval():
            return float(self.std(jnp.float32(self.T)))

    def prior_logp(self, z: Array) -> Array:
        """Log-density of the prior in nats (B,), for z (B, ...)."""
        logps = jax.scipy.stats.norm.logpdf(z, scale=self.prior_std)
        return logps.reshape(z.shape[0], -1).sum(-1)

    def steps(self, ts: Array) -> Step:
        """The n reverse steps along descending times ts (n,) and from the last one to the data."""
        ts = jnp.asarray(ts)
        alpha, var = self.alpha(ts), self.var(ts)
        ratio, var_next = alpha / jnp.append(alpha[1:], 1.0), jnp.append(var[1:], 0.0)
        step_var = jnp.maximum(var - ratio**2 * var_next, 0.0)
        dt = ts - jnp.append(ts[1:], 0.0)
        return Step(ts, dt, ratio, step_var, step_var * var_next / var)

    def sampling_times(self, n: int) -> Array:
        """n evenly spaced times (n,) from T down to t_end, the grid of the official samplers."""
        return jnp.linspace(self.T, self.t_end, n)

    def discretize(self, n: int) -> Step:
        """The n default steps of a predictor-corrector sampler (Appendix E), in sampling order."""
        return self.steps(self.sampling_times(n))


@dataclasses.dataclass(frozen=True, kw_only=True)
class VESDE(SDE):
    """The variance-exploding SDE, whose discrete chain is SMLD, Eqs. (9), (30), (31)."""

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_end: float = 1e-5
    relations: ClassVar = (*SDE.relations, "0 < sigma_min < sigma_max")

    def alpha(self, t: Array) -> Array:
        return jnp.ones_like(t)

    def std(self, t: Array) -> Array:
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** (t / self.T)

    @property
    def prior_std(self) -> float:
        return float(self.sigma_max)  # Without rounding.

    def sigmas(self, n: int) -> np.ndarray:
        """The n noise scales of SMLD, a descending geometric sequence; float64 (n,)."""
        return np.geomspace(self.sigma_max, self.sigma_min, n)

    def discretize(self, n: int) -> Step:
        """SMLD's chain, Eq. (8): x_i = x_{i-1} + sqrt(sigma_i^2 - sigma_{i-1}^2) z, sigma_0 = 0."""
        var = self.sigmas(n) ** 2
        var_next = np.append(var[1:], 0.0)
        step_var = var - var_next
        tables = map(jnp.float32, (np.ones(n), step_var, step_var * var_next / var))
        return Step(self.sampling_times(n), jnp.full(n, self.T / n), *tables)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VPSDE(SDE):
    """The variance-preserving SDE with linear beta(t), and DDPM as chain, Eqs. (11), (32), (33)."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    relations: ClassVar = (*SDE.relations, "0 < beta_min <= beta_max")

    def log_alpha(self, t: Array) -> Array:
        """log alpha(t): -1/2 times the integral of beta from 0 to t."""
        u = t / self.T
        return -self.T * (0.25 * u**2 * (self.beta_max - self.beta_min) + 0.5 * u * self.beta_min)

    def alpha(self, t: Array) -> Array:
        return jnp.exp(self.log_alpha(t))

    def var(self, t: Array) -> Array:
        return -jnp.expm1(2 * self.log_alpha(t))

    @property
    def prior_std(self) -> float:
        """1, the limit for large beta_max. With the default values var(T) is 1 - 4e-5."""
        return 1.0

    def betas(self, n: int) -> np.ndarray:
        """The n noise variances beta_i < 1 of DDPM, beta / n, Eq. (23), ascending; float64 (n,)."""
        if self.beta_max * self.T >= n:
            raise InputError(
                f"{n} steps are too few for the chain of the VP or sub-VP SDE with beta_max = "
                f"{self.beta_max}; use more than {self.beta_max * self.T:g} steps."
            )
        return np.linspace(self.beta_min, self.beta_max, n) * self.T / n

    def discretize(self, n: int) -> Step:
        """DDPM's chain, Eq. (10): x_i = sqrt(1 - beta_i) x_{i-1} + sqrt(beta_i) z.

        As in the official code, ancestral sampling adds noise of variance beta_i, and the last step
        removes that of variance beta_min T / n from a state at t_end, which fits n = T / t_end;
        docs/sampling.md has the error of other n.
        """
        betas = self.betas(n)[::-1]
        tables = map(jnp.float32, (np.sqrt(1 - betas), betas, betas))
        return Step(self.sampling_times(n), jnp.full(n, self.T / n), *tables)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubVPSDE(VPSDE):
    """The sub-VP SDE: VP's drift, and the square of VP's variance, Eqs. (12), (28), (34)."""

    def var(self, t: Array) -> Array:
        return super().var(t) ** 2

    def discretize(self, n: int) -> Step:
        """Euler-Maruyama steps of length T / n, as in the official code; see `VPSDE.discretize`."""
        self.betas(n)  # Raises the error of too few steps.
        ts, dt = self.sampling_times(n), self.T / n
        var = self.diffusion(ts) ** 2 * dt
        var_next = self.var(jnp.maximum(ts - dt, 0.0))
        ratio = 1 + self.drift_coefficient(ts) * dt
        return Step(ts, jnp.full(n, dt), ratio, var, var * var_next / self.var(ts))


@dataclasses.dataclass(frozen=True, kw_only=True)
class CosineSDE(SDE):
    """The variance-preserving SDE of the cosine schedule (arXiv:2102.09672, Eq. (17), s = 0.008).

    alpha(t) = cos(pi/2 (t + s) / (1 + s)) / cos(pi/2 s / (1 + s)). At t = 1 it is 0 and the drift
    infinite, so T is smaller: alpha(T) = 0.008, as small as that of the VP SDE.
    """

    T: float = 0.995
    offset: float = 0.008
    relations: ClassVar = (*SDE.relations, "T < 1", "0 <= offset")

    def alpha(self, t: Array) -> Array:
        return jnp.cos(self._angle(t)) / math.cos(self._angle(0.0))

    def var(self, t: Array) -> Array:
        start, difference = self._angle(0.0), math.pi / 2 * t / (1 + self.offset)
        # 1 - alpha^2, without its cancellation at small times.
        return jnp.sin(difference) * jnp.sin(self._angle(t) + start) / math.cos(start) ** 2

    def betas(self, n: int) -> np.ndarray:
        """The n noise variances of the discrete chain, at most 0.999; float64 (n,)."""
        alpha_bar = np.cos(self._angle(np.arange(n + 1) / n)) ** 2
        return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)

    def _angle(self, t: Any) -> Any:
        return math.pi / 2 * (t + self.offset) / (1 + self.offset)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EDMSDE(SDE):
    """The SDE of EDM (arXiv:2206.00364) for images in [-1, 1]: alpha = 1, and std(t) = t."""

    T: float = 80.0
    t_min: float = 0.002
    t_end: float = 0.002

    def alpha(self, t: Array) -> Array:
        return jnp.ones_like(t)

    def std(self, t: Array) -> Array:
        return jnp.asarray(t)

    def sampling_times(self, n: int) -> Array:
        """n times (n,) from T down to t_end, evenly spaced in t^(1/7) (EDM, Eq. (5))."""
        return jnp.linspace(self.T ** (1 / 7), self.t_end ** (1 / 7), n) ** 7


@dataclasses.dataclass(frozen=True, kw_only=True)
class RectifiedFlow(SDE):
    """Rectified flow, x_t = (1 - t) x_0 + t z (arXiv:2209.03003, arXiv:2210.02747).

    T is smaller than 1, where the drift is infinite: x_T holds 0.005 x_0, less than with VP.
    """

    T: float = 0.995
    t_min: float = 1e-3
    t_end: float = 1e-2
    relations: ClassVar = (*SDE.relations, "T < 1")

    def alpha(self, t: Array) -> Array:
        return 1 - jnp.asarray(t)

    def std(self, t: Array) -> Array:
        return jnp.asarray(t)


SDES: dict[str, type[SDE]] = {"vesde": VESDE, "vpsde": VPSDE, "subvpsde": SubVPSDE}
SDES |= {"cosinesde": CosineSDE, "edmsde": EDMSDE, "rectifiedflow": RectifiedFlow}
"""The SDEs by `config.training.sde`."""
