"""Few-step solvers as tables of coefficients, their noise levels, and the loop that executes them.

In y = x / alpha every SDE adds noise of level s = std / alpha to the data. Its probability flow is
dy/ds = (y - D) / s with the denoiser D(y, s) = E[x_0 | y] (EDM, arXiv:2206.00364, Section 3). The
solvers of this package are linear in y, in the network's predictions and in the noise, and their
coefficients depend on the noise levels only, so they are computed before sampling starts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Float64

from errors import SHORT, InputError
from options import NOT_NEGATIVE, AnyOf, Name, Option, Options
from options import Sequence as Tuple
from sde_lib import SDE, Score
from solvers.loop import (
    Frames,
    Growth,
    Loop,
    Sampler,
    Setting,
    evaluations,
    fold_in,
    frame_indices,
    note_bad,
    standard_normal,
    to_samples,
)

MOST_ROWS = 1000  # of a plan whose growth is computed; longer ones have short steps


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


class Solver(NamedTuple):
    """A few-step solver.

    Attributes:
      plan: a function from noise levels (n + 1,) to a Plan. The levels descend to 0 or to the level
        at which to stop; to encode, they ascend.
      noise_prediction: whether the plan combines predictions of the noise, not of the data.
      stochastic: whether the plan adds noise. A solver that adds none can encode.
      options: the keyword arguments of `plan`, which are fields of `config.sampling`.
    """

    plan: Callable[..., Plan]
    noise_prediction: bool = False
    stochastic: bool = False
    options: Options = MappingProxyType({})


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
    """Execute a plan from states x (B, ...) at its first level; see `few_step_loop`.

    Returns the states at `final_level` (B, ...), and the states after each row (n, B, ...).
    """
    options: Any = {"noise_prediction": noise_prediction, "shown": np.arange(len(plan.level))}
    return few_step_loop(keys, score, sde, plan, final_level, **options).run(x)[:2]


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
    noise_keys: Any = keys if np.any(plan.added_noise) or np.any(plan.predictor_noise) else ()
    if noise_keys is None:
        raise ValueError("keys = None, but this plan adds noise: give one random key per image.")
    with jax.ensure_compile_time_eval():
        times = sde.time_at(jnp.asarray(np.append(plan.level, final_level)))
        alphas = sde.alpha(times)
    kept, coefficients = Frames(len(plan.level), shown), jax.tree.map(jnp.float32, plan)
    rows = (coefficients, times[:-1], alphas[:-1], alphas[1:])

    def start(x: Array) -> tuple:
        y, k = x / alphas[0], plan.predictor_weights.shape[1]
        return y, y, (jnp.zeros_like(y),) * k, kept.start(y), jnp.zeros(len(y), jnp.int32)

    def execute_row(row: int | Array, carry: tuple) -> tuple:
        y, previous, history, frames, bad_row = carry
        c, t, alpha, next_alpha = jax.tree.map(lambda leaf: leaf[row], rows)
        if len(noise_keys):
            y = y + c.added_noise * _noise(noise_keys, row, 0, y.shape)
        noise = -c.level * alpha * score(alpha * y, jnp.broadcast_to(t, y.shape[:1]))
        prediction = noise if noise_prediction else y - c.level * noise  # Tweedie's formula
        history = (prediction, *history[:-1])
        y = c.corrector_state * y + c.corrector_previous * previous
        previous = y = y + _weighted_sum(c.corrector_weights, history)
        y = c.predictor_state * y + _weighted_sum(c.predictor_weights, history)
        if len(noise_keys):
            y = y + c.predictor_noise * _noise(noise_keys, row, 1, y.shape)
        x = next_alpha * y
        return y, previous, history, kept.put(frames, row, x), note_bad(bad_row, x, row + 1)

    def finish(carry: tuple) -> tuple[Array, Array, Array]:
        y, _, _, frames, bad_row = carry
        return alphas[-1] * y, kept.finish(frames), bad_row

    return Loop(len(plan.level), start, execute_row, finish)


def _noise(keys: Array, row: int | Array, purpose: int, shape: tuple[int, ...]) -> Array:
    return standard_normal(fold_in(fold_in(keys, row), purpose), shape)


def _weighted_sum(weights: Array, values: tuple[Array, ...]) -> Array:
    total = weights[0] * values[0]
    for weight, value in zip(weights[1:], values[1:]):
        total = total + weight * value
    return total


# --- noise levels ---------------------------------------------------------------------------------

Schedule = Callable[[SDE, float, float, int], np.ndarray]
"""(sde, first level, last level, n) -> n levels."""


def karras(first: float, last: float, n: int, rho: float = 7.0) -> Float64[np.ndarray, " levels"]:
    """Return n levels from first to last, evenly spaced in level^(1 / rho) (EDM, Eq. (5))."""
    return np.linspace(first ** (1 / rho), last ** (1 / rho), n) ** rho


SCHEDULES: dict[str, Schedule] = {
    "time": lambda sde, first, last, n: _levels_at(sde, sde.sampling_times(n)),
    "log_snr": lambda sde, first, last, n: np.geomspace(first, last, n),
    "karras": lambda sde, first, last, n: karras(first, last, n),
}


def noise_levels(
    sde: SDE, schedule: str | Sequence[float], n: int, *, denoise: bool = True
) -> Float64[np.ndarray, " levels"]:
    """Return the n + 1 levels of n steps from time T to t_end.

    With `denoise`, the last step leads to level 0, in a named schedule from time t_end.
    Raises InputError for other levels than from T to the end.
    """
    with jax.ensure_compile_time_eval():
        first, last = _levels_at(sde, jnp.array([sde.T, sde.t_end]))
        if isinstance(schedule, str):
            evaluate, count = SCHEDULES[schedule.lower()], n if denoise else n + 1
            return np.append(evaluate(sde, first, last, count), [0.0] * denoise)
    levels, ends = np.array(schedule, np.float64), [first, 0 if denoise else last]
    if not np.allclose(levels[[0, -1]], ends, rtol=1e-3, atol=0) or np.any(np.diff(levels) >= 0):
        raise InputError(
            f"schedule = {SHORT.repr(schedule)} must descend from {ends[0]:.6g}, the noise level "
            f"of time T, to {ends[1]:.6g}."
        )
    return levels


def _levels_at(sde: SDE, t: Array) -> np.ndarray:
    return np.asarray(sde.noise_to_signal(t), np.float64)


# --- the sampler ----------------------------------------------------------------------------------


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
    previous, history, states = y, [np.zeros_like(y)] * history_length, []
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
    exact_states, errors = np.split(np.array(states), [2 * n + 1], 1)
    return Growth(
        np.linalg.norm(exact_states, axis=1) / exact, np.linalg.norm(errors, axis=1) / exact
    )


SCHEDULE = {
    "schedule": Option(
        "log_snr",
        AnyOf((Name(SCHEDULES), Tuple(NOT_NEGATIVE, 2, 10**5))),
        "Noise levels of a few-step solver: their name; or the levels std / alpha, one more than "
        "steps, from that of time T to 0.",
    )
}


def few_step_sampler(
    solver: Solver,
    setting: Setting,
    *,
    schedule: str | tuple[float, ...],
    noise_removal: bool,
    trajectory: bool,
    ascending: bool = False,
    **chosen: Any,
) -> Sampler:
    """Return the sampler of a solver; with `ascending` levels, it leads from data to noise."""
    name, sde, steps, data_std = setting
    levels = noise_levels(sde, schedule, steps, denoise=noise_removal)[:: -1 if ascending else 1]
    plan = solver.plan(levels, **chosen)
    following = np.append(plan.level[1:], levels[-1])
    shown = frame_indices(following) if trajectory else np.array([], int)
    prediction = {"noise_prediction": solver.noise_prediction}

    def loop(keys: Array, score: Score) -> Loop:
        nfe = evaluations(score, sde.time_at(jnp.asarray(plan.level))).sum().astype(jnp.int32)
        found = few_step_loop(keys, score, sde, plan, levels[-1], **prediction, shown=shown)
        return found.then(lambda result: to_samples(result[0], nfe, *result[1:]))

    title, other = f"the schedule {schedule!r}", repr(schedule)
    if not isinstance(schedule, str):
        title = f"the noise levels {', '.join(f'{level:.3g}' for level in schedule)}"
        other = "these levels"
    return Sampler(
        loop,
        len(plan.level),
        f"{name!r}, {steps} steps on {title}",
        functools.partial(plan_growth, plan, data_std, **prediction),
        f"raise the number of steps, now {steps}, or choose another solver than {name!r} "
        f"or schedule than {other}",
        tuple(following[shown].tolist()),
        # Solvers of second order have two evaluations in most steps.
        "step" if len(plan.level) == steps else "evaluation",
        noise_removal,
    )
