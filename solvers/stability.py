"""Whether a sampler is stable: its states for Gaussian data, whose distribution is known.

For data N(0, c^2 I) the score is linear, -x / (alpha^2 c^2 + var), so a step of any sampler here is
a linear map of the state plus noise, and the standard deviation of the states follows in closed
form. A stable sampler keeps it close to the exact sqrt(alpha^2 c^2 + var); one whose steps are too
long for the SDE multiplies it.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sde_lib import SDE, Step
from solvers.plan import Plan

ENTRIES = 2048  # of which the variance of a step's noise is estimated, to 3 %
MOST_ROWS = 1000  # of a plan; longer ones have short steps

Predictor = Callable[..., tuple[Array, Array]]
"""See `sampling`."""


def predictor_stds(sde: SDE, predictor: Predictor, steps: Step, data_std: float) -> np.ndarray:
    """Return the std after each step (n,), relative to the exact one, without correctors."""

    def variance(t: Array) -> Array:
        return sde.alpha(t) ** 2 * data_std**2 + sde.var(t)

    def score(x: Array, t: Array) -> Array:
        return -x / variance(t)[:, None]

    def follow(step: Step, key: Array) -> tuple[Array, Array]:
        x, mean = predictor(key[None], score, sde, jnp.ones((1, ENTRIES)), step)
        return mean.mean(), jnp.mean((x - mean) ** 2)

    with jax.ensure_compile_time_eval():  # The caller may be compiled itself.
        keys = jax.random.split(jax.random.key(0), len(steps.t))
        factors, noises = jax.device_get(jax.jit(jax.vmap(follow))(steps, keys))
        exact = np.append(jax.device_get(variance(jnp.asarray(steps.t)))[1:], data_std**2)
    now, found = sde.prior_std**2, []
    for factor, noise in zip(factors.astype(np.float64), noises.astype(np.float64)):
        now = factor**2 * now + noise
        found.append(now)
    return np.sqrt(np.array(found) / exact)


def plan_stds(plan: Plan, data_std: float, *, noise_prediction: bool = False) -> np.ndarray:
    """Return the std after each row (n,), relative to the exact one; () for long plans.

    Each quantity is a vector of its coefficients of the independent normal numbers that it depends
    on: the initial noise, and two of each row.
    """
    n, history_length = plan.predictor_weights.shape
    if n > MOST_ROWS:
        return np.array([])
    y = np.zeros(2 * n + 1)
    y[0] = np.hypot(data_std, plan.level[0])
    previous, history = y, [np.zeros_like(y)] * history_length
    found = []
    for row in range(n):
        level, variance = plan.level[row], data_std**2 + plan.level[row] ** 2
        y = y.copy()
        y[2 * row + 1] += plan.added_noise[row]
        prediction = y * (level if noise_prediction else data_std**2) / variance
        history = [prediction, *history[:-1]]
        y = plan.corrector_state[row] * y + plan.corrector_previous[row] * previous
        y = y + sum(w * h for w, h in zip(plan.corrector_weights[row], history))
        previous = y
        y = plan.predictor_state[row] * y
        y = y + sum(w * h for w, h in zip(plan.predictor_weights[row], history))
        y[2 * row + 2] += plan.predictor_noise[row]
        found.append(np.linalg.norm(y))
    # The next row first adds noise, which its level includes.
    following = np.append(plan.level[1:] ** 2 - plan.added_noise[1:] ** 2, 0.0)
    return np.array(found) / np.sqrt(data_std**2 + np.maximum(following, 0.0))
