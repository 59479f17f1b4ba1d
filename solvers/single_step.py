"""Single-step solvers: Heun's method of EDM (arXiv:2206.00364), with churn and with Restart.

EDM's churn adds noise before each step. Restart (arXiv:2306.14878) returns to a higher noise level
at one point of the trajectory and repeats the steps from there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from errors import InputError
from solvers.plan import Plan, identity_plan
from solvers.schedules import karras


class _Step(NamedTuple):
    """Noise is added to raise the level from `start` to `level`; Heun's step leads to `target`."""

    start: float
    level: float
    target: float


def heun(levels: np.ndarray, *, churn: float = 0.0, restart: Sequence[float] = ()) -> Plan:
    """Return the plan of Heun's method (EDM, Algorithms 1 and 2), in noise prediction.

    A step has two evaluations of the network. A last step to level 0 has one.

    Args:
      levels: (n + 1,), noise levels.
      churn: S_churn of Algorithm 2. Before each step, added noise raises the level by the factor
        1 + min(churn / n, sqrt(2) - 1), unless the result would exceed the first level.
      restart: (number of levels, repetitions, lowest level, highest level). At the level nearest to
        the lowest one, noise up to the highest one is added and removed again, as often as stated.

    Raises InputError for invalid values in `restart`.
    """
    steps = _churned_steps(levels, churn)
    if restart:
        _check_restart(restart, levels[0])
        position, cycle = _restart_cycle(levels, *restart)
        steps[position:position] = cycle
    rows = [row for step in steps for row in _rows(step)]
    return Plan(*(np.concatenate(leaves) for leaves in zip(*rows)))


def _churned_steps(levels: np.ndarray, churn: float) -> list[_Step]:
    gamma = min(churn / (len(levels) - 1), math.sqrt(2) - 1)
    steps = []
    for start, target in itertools.pairwise(levels):
        level = start * (1 + gamma)
        if level > levels[0]:
            level = start
        steps.append(_Step(start, level, target))
    return steps


def _check_restart(restart: Sequence[float], first_level: float) -> None:
    count, repetitions, lowest, highest = restart
    if not 0 < lowest < highest <= first_level or min(count, repetitions) < 1:
        raise InputError(
            f"sampling.restart = {tuple(restart)} must be (number of levels, repetitions, "
            f"lowest level, highest level) with at least one level and one repetition, and "
            f"0 < lowest < highest <= {first_level:.6g}."
        )


def _restart_cycle(
    levels: np.ndarray, count: float, repetitions: float, lowest: float, highest: float
) -> tuple[int, list[_Step]]:
    """Return the steps of all repetitions, and the index of the step before which they belong."""
    distances = np.abs(np.log(np.maximum(levels[:-1], 1e-9) / lowest))
    position = int(np.argmin(distances))
    cycle = []
    for level, target in itertools.pairwise(karras(highest, levels[position], int(count))):
        cycle.append(_Step(level, level, target))
    if cycle:
        cycle[0] = cycle[0]._replace(start=levels[position])
    return position, cycle * int(repetitions)


def _rows(step: _Step) -> list[Plan]:
    """Return the row of an Euler step and the row that corrects it to the trapezoidal rule."""
    start, level, target = step
    euler = identity_plan(np.array([level]), 2)
    euler.added_noise[0] = math.sqrt(max(level**2 - start**2, 0.0))
    euler.predictor_weights[0, 0] = target - level
    if target == 0:
        return [euler]
    trapezoid = identity_plan(np.array([target]), 2)
    trapezoid.corrector_state[0] = 0.0
    trapezoid.corrector_previous[0] = 1.0
    trapezoid.corrector_weights[0] = (target - level) / 2
    return [euler, trapezoid]
