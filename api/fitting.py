"""Noise levels fitted to the score of a prior, by the trajectories of a few events."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

import sampling
import solvers
from api.execution import bound
from errors import InputError
from options import listed
from sampling import Fitted
from sde_lib import SDE, Score
from solvers.fitting import Reference, best_path, step_errors

if TYPE_CHECKING:
    from api.prior import Prior

EVENTS, GRID = 64, 64  # trajectories, and their levels
ACCURATE = "dpm++_3m"  # the solver of trajectories without noise


def check_solver(name: str, steps: int) -> solvers.Solver:
    """Return a solver whose levels can be fitted. Raises InputError for others."""
    known = {
        each: solver
        for each, solver in solvers.SOLVERS.items()
        if not solver.options and len(solver.plan(np.array([2.0, 1.0, 0.5])).level) == 2
    }
    if name not in known:
        raise InputError(
            f"sampler = {name!r}: noise levels are fitted for solvers with one evaluation a step "
            f"and no options: {listed(known)}."
        )
    if not 2 <= steps <= GRID // 2:
        raise InputError(f"steps = {steps} must be from 2 to {GRID // 2} for levels to be fitted.")
    return known[name]


def fit_levels(prior: Prior, name: str, steps: int, key: Array) -> Fitted:
    """Return the levels of the steps of a solver with the smallest errors; see `solvers.fitting`.

    With noise, the squares of the errors of steps are added up, since they are not correlated. A
    solver without noise is executed at the levels with the smallest sum of errors, of squares, and
    at those of the schedule `log_snr`; what ends nearest to the accurate trajectories is returned.
    Raises InputError as `check_solver` does.
    """
    solver = check_solver(name, steps)
    default = solvers.noise_levels(prior.sde, "log_snr", steps)
    grid = np.geomspace(default[0], default[-2], GRID)
    apart = np.abs(np.log(grid[:, None] / default[:-1])).min(1) > 0.1 * np.log(grid[0] / grid[1])
    levels = np.sort(np.append(grid[apart], default))[::-1]
    score = prior.score_given(prior.condition_rows(np.arange(EVENTS)))
    keys = sampling.image_keys(key, np.arange(EVENTS))
    size = math.prod(prior.event_shape)

    def follow(name: str, levels: np.ndarray) -> list[np.ndarray]:
        given = score, keys, prior.sde, prior.event_shape, name, tuple(levels[:-1].tolist())
        return [np.asarray(x, np.float64).reshape(-1, EVENTS, size) for x in _trajectories(*given)]

    states, denoised = follow(name if solver.stochastic else ACCURATE, levels)
    reference = Reference(levels[:-1], states, denoised, 2 if solver.stochastic else 1)
    errors = step_errors(solver.plan, reference, noise_prediction=solver.noise_prediction)
    found = [levels[best_path(errors**2, steps)]]
    if not solver.stochastic:
        found += [levels[best_path(errors, steps)], default]
        found.sort(key=lambda each: np.square(follow(name, each)[1][-1] - denoised[-1]).mean())
    return Fitted(name, tuple(found[0].tolist()))


@eqx.filter_jit
def _trajectories(
    score: Score,
    keys: Array,
    sde: SDE,
    shape: tuple[int, ...],
    name: str,
    levels: tuple[float, ...],
) -> tuple[Array, Array]:
    """Return states, divided by alpha, and predictions of the data at all levels (n, B, *shape)."""
    chosen, solver, times = bound(score), solvers.SOLVERS[name], sde.time_at(jnp.asarray(levels))
    x = sampling.prior_sample(keys, sde, (len(keys), *shape))
    _, after = solvers.few_step(
        *(keys, chosen, sde, x, solver.plan(np.array(levels)), levels[-1]),
        noise_prediction=solver.noise_prediction,
    )

    def at(row: tuple[Array, Array]) -> tuple[Array, Array]:
        x, ts = row[0], jnp.broadcast_to(row[1], len(keys))
        return x / sde.alpha(row[1]), sde.posterior_mean(chosen(x, ts), x, ts)

    return lax.map(at, (jnp.concatenate([x[None], after]), times))
