"""Few-step solvers as tables of coefficients, and the loop that executes such a table.

In y = x / alpha every SDE adds noise of level s = std / alpha to the data. Its probability flow is
dy/ds = (y - D) / s with the denoiser D(y, s) = E[x_0 | y] (EDM, arXiv:2206.00364, Section 3). The
solvers of this package are linear in y, in the network's predictions and in the noise, and their
coefficients depend on the noise levels only, so they are computed before sampling starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from sde_lib import SDE, Score
from solvers.loop import Frames, Loop, fold_in, note_bad, standard_normal


class Plan(NamedTuple):
    """The coefficients of a solver, one row for each evaluation of the network.

    Every field has n rows; the weights have k columns, one for each of the k latest predictions,
    newest first. With z and z' standard normal, a row does four things:

        y = y + added_noise z                                    raise the noise level to `level`
        m = prediction(y, level)                                 evaluate D or noise (y - D) / level
        y = corrector_state y + corrector_previous y_previous    correct y
            + corrector_weights . (m, earlier predictions)
        y = predictor_state y                                    go to the level of the next row
            + predictor_weights . (m, earlier predictions) + predictor_noise z'

    where y_previous is the corrected y of the previous row. A row without a corrector has
    corrector_state = 1 and zeros in the other corrector fields.

    Example: DPM-Solver++(2M) (arXiv:2211.01095, Algorithm 2) predicts the data. Its step from level
    s_i to s_{i+1}, with r = log(s_{i-1} / s_i) / log(s_i / s_{i+1}), is

        y = (s_{i+1} / s_i) y + (1 - s_{i+1} / s_i) ((1 + 1/(2r)) D_i - 1/(2r) D_{i-1}).

    For the levels 4, 1, 0.5 and 0 the rows are

        level   predictor_state   predictor_weights
        4       0.25              ( 0.75,   0    )     first order: there is no D_{i-1}
        1       0.5               ( 0.625, -0.125)     r = 2, weights 0.5 (1.25, -0.25)
        0.5     0                 ( 1,      0    )     first order, to level 0: y becomes D

    with corrector_state = 1 and all other coefficients 0.
    """

    level: np.ndarray
    added_noise: np.ndarray
    corrector_state: np.ndarray
    corrector_previous: np.ndarray
    corrector_weights: np.ndarray  # (n, k)
    predictor_state: np.ndarray
    predictor_weights: np.ndarray  # (n, k)
    predictor_noise: np.ndarray


def identity_plan(levels: np.ndarray, history: int) -> Plan:
    """Return rows that evaluate the network at the levels (n,) and leave y unchanged.

    `history` is the number k of predictions that the weights combine. Solvers fill in the rows.
    """
    n = len(levels)
    return Plan(
        level=np.array(levels, np.float64),
        added_noise=np.zeros(n),
        corrector_state=np.ones(n),
        corrector_previous=np.zeros(n),
        corrector_weights=np.zeros((n, history)),
        predictor_state=np.ones(n),
        predictor_weights=np.zeros((n, history)),
        predictor_noise=np.zeros(n),
    )


def few_step(
    keys: Array | None,
    score: Score,
    sde: SDE,
    x: Float[Array, " b *shape"],
    plan: Plan,
    final_level: float,
    *,
    noise_prediction: bool = False,
) -> tuple[Float[Array, " b *shape"], Float[Array, "n b *shape"]]:
    """Execute a plan: run the loop of `few_step_loop`, which has these arguments.

    Args:
      x: (B, ...), states at the plan's first level: samples from the prior, or data to encode.

    Returns:
      The states at `final_level` (B, ...), and the states after each row (n, B, ...).
    """
    loop = few_step_loop(
        keys,
        score,
        sde,
        plan,
        final_level,
        noise_prediction=noise_prediction,
        shown=np.arange(len(plan.level)),
    )
    return loop.run(x)[:2]


def few_step_loop(
    keys: Array | None,
    score: Score,
    sde: SDE,
    plan: Plan,
    final_level: float,
    *,
    noise_prediction: bool = False,
    shown: np.ndarray | Sequence[int] = (),
) -> Loop:
    """Return a plan as a loop: one evaluation of the score for each of its n rows.

    Args:
      keys: (B,), one random key per image; None if the plan adds no noise.
      final_level: the noise level after the last row; 0 for samples of the data.
      noise_prediction: whether the plan's weights apply to predictions of the noise, not the data.
      shown: the rows (F,) after which the state is returned.

    The result of the loop are the states at `final_level` (B, ...), the states after the rows
    `shown` (F, B, ...), and the row (B,), from 1, after which a state was first not finite, or 0.
    """
    noise_keys, n = _noise_keys(plan, keys), len(plan.level)
    with jax.ensure_compile_time_eval():
        times = sde.time_at(jnp.asarray(np.append(plan.level, final_level)))
        alphas = sde.alpha(times)
    kept = Frames(n, shown)
    coefficients = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), plan)
    rows = (coefficients, times[:-1], alphas[:-1], alphas[1:])

    def start(x: Array) -> tuple:
        y = x / alphas[0]
        history = (jnp.zeros_like(y),) * plan.predictor_weights.shape[1]
        return y, y, history, kept.start(y), jnp.zeros(len(y), jnp.int32)

    def execute_row(row: int | Array, carry: tuple) -> tuple:
        y, previous, history, frames, bad_row = carry
        c, t, alpha, next_alpha = jax.tree.map(lambda leaf: leaf[row], rows)
        if noise_keys is not None:
            y = y + c.added_noise * _noise(noise_keys, row, 0, y.shape)
        noise = -c.level * alpha * score(alpha * y, jnp.broadcast_to(t, y.shape[:1]))
        prediction = noise if noise_prediction else y - c.level * noise  # Tweedie's formula
        history = (prediction, *history[:-1])
        y = c.corrector_state * y + c.corrector_previous * previous
        previous = y = y + _weighted_sum(c.corrector_weights, history)
        y = c.predictor_state * y + _weighted_sum(c.predictor_weights, history)
        if noise_keys is not None:
            y = y + c.predictor_noise * _noise(noise_keys, row, 1, y.shape)
        x = next_alpha * y
        return y, previous, history, kept.put(frames, row, x), note_bad(bad_row, x, row + 1)

    def finish(carry: tuple) -> tuple[Array, Array, Array]:
        y, _, _, frames, bad_row = carry
        return alphas[-1] * y, kept.finish(frames), bad_row

    return Loop(n, start, execute_row, finish)


def _noise_keys(plan: Plan, keys: Array | None) -> Array | None:
    """Return the keys if the plan adds noise. Raises ValueError if it does without keys."""
    if not np.any(plan.added_noise) and not np.any(plan.predictor_noise):
        return None
    if keys is None:
        raise ValueError("keys = None, but this plan adds noise: give one random key per image.")
    return keys


def _noise(keys: Array, row: int | Array, purpose: int, shape: tuple[int, ...]) -> Array:
    return standard_normal(fold_in(fold_in(keys, row), purpose), shape)


def _weighted_sum(weights: Array, values: tuple[Array, ...]) -> Array:
    total = weights[0] * values[0]
    for weight, value in zip(weights[1:], values[1:]):
        total = total + weight * value
    return total
