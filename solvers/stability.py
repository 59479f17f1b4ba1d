"""Whether a sampler is stable: its states for Gaussian data, whose distribution is known.

For data N(0, c^2 I) the score is linear, -x / (alpha^2 c^2 + var), so a step of any sampler here is
a linear map of the state plus noise, and the standard deviation of the states follows in closed
form. If the steps are short enough for the SDE, it stays close to the exact sqrt(alpha^2 c^2 +
var).

A plan can have the right standard deviation and still multiply errors of the network. A step from a
high noise level to a low one subtracts predicted noise of the high level, and its error remains.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sde_lib import SDE, Step
from solvers.plan import Plan

ENTRIES = 2048  # of which the variance of a step's noise is estimated, to 3 %
MOST_ROWS = 1000  # of a plan; longer ones have short steps


class Growth(NamedTuple):
    """How far states of a sampler are from exact ones, after each of n steps.

    Attributes:
      stds: their std (n,), relative to the exact one.
      errors: the std (n,) of the error, relative to the same, if the network predicts the noise
        with independent errors of std 1; empty if it is not computed.
    """

    stds: np.ndarray
    errors: np.ndarray


Predictor = Callable[..., tuple[Array, Array]]
"""See `solvers.predictor_corrector`."""


def predictor_growth(sde: SDE, predictor: Predictor, steps: Step, data_std: float) -> Growth:
    """Return the growth of a predictor, without correctors; its errors are not computed."""

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
    return Growth(np.sqrt(np.array(found) / exact), np.array([]))


def plan_growth(plan: Plan, data_std: float, *, noise_prediction: bool = False) -> Growth:
    """Return the growth of a plan; empty arrays for long plans.

    Each quantity is a vector of its coefficients of the independent normal numbers that it depends
    on: the initial noise, two of each row, and the error of the noise that each row predicts.
    """
    n, history_length = plan.predictor_weights.shape
    if n > MOST_ROWS:
        return Growth(np.array([]), np.array([]))
    y = np.zeros(3 * n + 1)
    y[0] = np.hypot(data_std, plan.level[0])
    previous, history = y, [np.zeros_like(y)] * history_length
    states = []
    for row in range(n):
        level, variance = plan.level[row], data_std**2 + plan.level[row] ** 2
        y = y.copy()
        y[row + 1] += plan.added_noise[row]
        prediction = y * (level if noise_prediction else data_std**2) / variance
        prediction[2 * n + row + 1] += 1 if noise_prediction else level
        history = [prediction, *history[:-1]]
        y = plan.corrector_state[row] * y + plan.corrector_previous[row] * previous
        y = y + plan.corrector_weights[row] @ history
        previous = y
        y = plan.predictor_state[row] * y + plan.predictor_weights[row] @ history
        y[n + row + 1] += plan.predictor_noise[row]
        states.append(y)
    # The next row first adds noise, which its level includes.
    following = np.append(plan.level[1:] ** 2 - plan.added_noise[1:] ** 2, 0.0)
    exact = np.sqrt(data_std**2 + np.maximum(following, 0.0))
    table = np.array(states)
    exact_states, errors = table[:, : 2 * n + 1], table[:, 2 * n + 1 :]
    return Growth(
        np.linalg.norm(exact_states, axis=1) / exact, np.linalg.norm(errors, axis=1) / exact
    )
