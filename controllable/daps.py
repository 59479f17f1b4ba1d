"""Decoupled annealing posterior sampling, DAPS (Zhang et al. 2024, arXiv:2407.01521, Algorithm 1).

At each noise level, DAPS draws an event x_0 given the state x_t and the measurement y, and adds
noise of the next level to it. The new state depends on x_t through x_0 only, so that errors at high
noise can be corrected later. x_0 given x_t is approximated by N(m, r^2 I), where m is the end of
the probability flow from x_t, computed in a few steps, and

    1 / r^2 = alpha^2 / std^2 + 1 / prior_std^2.

The paper sets r = std / alpha, the limit of a wide prior. With one step of the flow, m is
E[x_0 | x_t]; the approximation is then exact for Gaussian data of covariance prior_std^2 I.

If y is a linear measurement with a singular value decomposition, x_0 given m and y is Gaussian and
drawn exactly. Otherwise it is drawn by the Metropolis-adjusted Langevin algorithm, so that any
differentiable log p(y | x) can be used.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array, lax

from controllable.measurements import Evidence, Measurement
from sde_lib import SDE, Score, Step, expand
from solvers.loop import fold_in, standard_normal, uniform

TARGET_ACCEPTANCE = 0.574  # the best share for many dimensions (Roberts & Rosenthal 1998)


@dataclasses.dataclass(frozen=True)
class DAPS:
    """A predictor of the predictor-corrector loop.

    Attributes:
      measurement: y and how it depends on x_0.
      flow_steps: evaluations of the score on the way from x_t to m.
      langevin_steps: steps of the Langevin algorithm at each noise level.
      prior_std: an approximate standard deviation of the data.
    """

    measurement: Evidence
    flow_steps: int = 5
    langevin_steps: int = 100
    prior_std: float = float("inf")

    @property
    def evaluations(self) -> int:
        """Evaluations of the score in one call."""
        return self.flow_steps

    def __call__(
        self, keys: Array, score: Score, sde: SDE, x: Array, step: Step
    ) -> tuple[Array, Array]:
        """Return the next state and the event x_0, scaled as its noise-free part."""
        level = sde.noise_to_signal(step.t)
        m = follow_flow(score, sde, x, step.t, self.flow_steps)
        r = 1 / jnp.sqrt(level**-2 + self.prior_std**-2)
        clean = draw_event(fold_in(keys, 0), self.measurement, m, r, self.langevin_steps)
        next_alpha, next_std = sde.marginal_after(step)
        noise = standard_normal(fold_in(keys, 1), x.shape)
        return next_alpha * clean + next_std * noise, next_alpha * clean


def follow_flow(score: Score, sde: SDE, x: Array, t: Array, steps: int) -> Array:
    """Return the data (B, *event) at the end of the probability flow from x at time t ().

    The noise levels of the DDIM steps fall by the same factor to one hundredth of the first level,
    but not below that of t_end, and the last step leads to 0. One step gives E[x_0 | x_t].
    """
    first = sde.noise_to_signal(t)
    lowest = jnp.minimum(first, sde.noise_to_signal(jnp.float32(sde.t_end)))

    def level_at(i: int | Array) -> Array:
        share = i / max(steps - 1, 1)
        return jnp.where(i < steps, jnp.maximum(first * 0.01**share, lowest), 0.0)

    def advance(i: int | Array, y: Array) -> Array:
        level = level_at(i)
        time = jnp.where(i == 0, t, sde.time_at(level))
        alpha = sde.alpha(time)
        gradient = score(alpha * y, jnp.broadcast_to(time, y.shape[:1]))
        denoised = y + level**2 * alpha * gradient
        return denoised + level_at(i + 1) / level * (y - denoised)

    return lax.fori_loop(0, steps, advance, x / expand(sde.alpha(t), x))


def draw_event(keys: Array, measurement: Evidence, m: Array, r: Array, steps: int) -> Array:
    """Draw x (B, *event) from the density proportional to N(x; m, r^2 I) p(y | x)."""
    if isinstance(measurement, Measurement):
        return _draw_exactly(keys, measurement, m, r)
    return _langevin(keys, measurement, m, r, steps)


def _draw_exactly(keys: Array, measurement: Measurement, m: Array, r: Array) -> Array:
    """Draw from a product of Gaussians, which is independent in the singular vectors."""
    operator, noise_var = measurement.operator, measurement.noise_std**2
    values, measured = operator.singular_values, operator.measured
    residual = measurement.residual(m)
    total_var = jnp.where(measured, (r * values) ** 2 + noise_var, 1)
    shift = r**2 * values * residual / total_var
    std = r * jnp.sqrt(jnp.where(measured, noise_var / total_var, 1))
    noise = operator.to_basis(standard_normal(keys, m.shape))
    return m + operator.from_basis(shift + std * noise)


def _langevin(keys: Array, measurement: Evidence, m: Array, r: Array, steps: int) -> Array:
    """Take `steps` Metropolis-adjusted Langevin steps from m, with a step size for each event.

    The step size starts at r^2 and is multiplied by exp(acceptance - TARGET_ACCEPTANCE) after each
    step, less and less. Where the density is 0 every move is accepted.
    """

    def log_density(x: Array) -> Array:
        prior = -0.5 * jnp.square(x - m).reshape(len(x), -1).sum(-1) / r**2
        return prior + measurement.log_prob(x)

    def evaluate(x: Array) -> tuple[Array, Array]:
        value, pull_back = jax.vjp(log_density, x)
        return value, pull_back(jnp.ones_like(value))[0]

    def log_transition(difference: Array, gradient: Array, size: Array) -> Array:
        square = jnp.square(difference - expand(size, m) * gradient).reshape(len(m), -1).sum(-1)
        return -square / (4 * size)

    def advance(i: int | Array, carry: tuple) -> tuple:
        x, value, gradient, size = carry
        step_keys = fold_in(keys, i)
        noise = standard_normal(fold_in(step_keys, 0), x.shape)
        move = expand(size, x) * gradient + jnp.sqrt(2 * expand(size, x)) * noise
        new_value, new_gradient = evaluate(x + move)
        log_ratio = new_value - value
        log_ratio += log_transition(-move, new_gradient, size)
        log_ratio -= log_transition(move, gradient, size)
        outside = value == -jnp.inf
        acceptance = jnp.where(jnp.isnan(log_ratio), 0, jnp.exp(jnp.minimum(log_ratio, 0)))
        acceptance = jnp.where(outside & ~jnp.isnan(new_value), 1, acceptance)
        accepted = uniform(fold_in(step_keys, 1), (len(x),)) < acceptance
        x = jnp.where(expand(accepted, x), x + move, x)
        value = jnp.where(accepted, new_value, value)
        gradient = jnp.where(expand(accepted, x), new_gradient, gradient)
        rate = jnp.where(outside, 0, 1 / jnp.sqrt(1 + i / 10))
        return x, value, gradient, size * jnp.exp(rate * (acceptance - TARGET_ACCEPTANCE))

    size = jnp.full(len(m), r**2)
    return lax.fori_loop(0, steps, advance, (m, *evaluate(m), size))[0]
