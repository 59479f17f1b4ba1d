"""Single-step solvers: Euler's and Heun's methods of EDM (arXiv:2206.00364), and Restart.

EDM's churn adds noise before each step. Restart (arXiv:2306.14878) returns to a higher noise level
at one point of the trajectory and repeats the steps from there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from errors import InputError
from solvers.plan import Plan, identity_plan, karras


class _Step(NamedTuple):
    """Noise is added to raise the level from `start` to `level`; Heun's step leads to `target`."""

    start: float
    level: float
    target: float


def euler(levels: np.ndarray, *, curve: str = "linear") -> Plan:
    """Return the plan of Euler's method on a curve, in noise prediction; see `heun`."""
    steps = [_Step(start, start, target) for start, target in itertools.pairwise(levels)]
    chosen = CURVES[curve.lower()](levels)
    return _joined([_euler_row(step, chosen) for step in steps])


def heun(
    levels: np.ndarray,
    *,
    curve: str = "linear",
    second_point: float = 1.0,
    churn: float = 0.0,
    churn_interval: Sequence[float] = (0.0, math.inf),
    churn_noise: float = 1.0,
    restart: Sequence[float] = (),
) -> Plan:
    """Return the plan of Heun's method (EDM, Algorithms 1 to 3), in noise prediction.

    A step has two evaluations of the network. A last step to level 0 has one.

    Args:
      levels: (n + 1,), noise levels.
      curve: the name of a curve in `CURVES`.
      second_point: where the second evaluation is, as a share of the step (alpha of Algorithm 3).
      churn: S_churn of Algorithm 2. Before each step, added noise raises the level by the factor
        1 + min(churn / n, sqrt(2) - 1), unless the result would exceed the first level.
      churn_interval: S_min and S_max, the levels between which noise is added.
      churn_noise: S_noise, the scale of the added noise.
      restart: (number of levels, repetitions, lowest level, highest level). At the level nearest to
        the lowest one, noise up to the highest one is added and removed again, as often as stated.

    Raises InputError for invalid values in `restart`.
    """
    steps = _churned_steps(levels, churn, churn_interval)
    if restart:
        position = _restart_position(levels, restart)
        cycle = _restart_cycle(levels[position], restart)
        steps[position:position] = cycle
    chosen = CURVES[curve.lower()](levels)
    plan = _joined([row for step in steps for row in _rows(step, chosen, second_point)])
    return plan._replace(added_noise=churn_noise * plan.added_noise)


def _joined(rows: list[Plan]) -> Plan:
    return Plan(*(np.concatenate(leaves) for leaves in zip(*rows)))


def _churned_steps(levels: np.ndarray, churn: float, interval: Sequence[float]) -> list[_Step]:
    gamma = min(churn / (len(levels) - 1), math.sqrt(2) - 1)
    lowest, highest = interval
    if not lowest < highest:
        raise InputError(
            f"churn_interval = {tuple(interval)} must state the lower noise level before the "
            "higher one."
        )
    steps = []
    for start, target in itertools.pairwise(levels):
        level = start * (1 + gamma) if lowest <= start <= highest else start
        if level > levels[0]:
            level = start
        steps.append(_Step(start, level, target))
    return steps


def _restart_position(levels: np.ndarray, restart: Sequence[float]) -> int:
    """Return the index of the step before which the cycles of `restart` belong, after checks."""
    count, repetitions, lowest, highest = restart
    if not 0 < lowest < highest <= levels[0] or count < 2 or repetitions < 1:
        raise InputError(
            f"restart = {tuple(restart)} must be (number of levels, repetitions, "
            f"lowest level, highest level) with at least two levels and one repetition, and "
            f"0 < lowest < highest <= {levels[0]:.6g}."
        )
    position = int(np.argmin(np.abs(np.log(np.maximum(levels[:-1], 1e-9) / lowest))))
    if levels[position] >= highest:
        raise InputError(
            f"restart = {tuple(restart)}: of the {len(levels) - 1} steps, the one nearest "
            f"to the lowest level begins at {levels[position]:.6g}, which is not below the highest "
            "level. Raise the highest level, or use more steps."
        )
    return position


def _restart_cycle(start: float, restart: Sequence[float]) -> list[_Step]:
    """Return the steps of all repetitions, from noise added at the level `start` back to it."""
    count, repetitions, _, highest = restart
    pairs = itertools.pairwise(karras(highest, start, int(count)))
    cycle = [_Step(level, level, target) for level, target in pairs]
    cycle[0] = cycle[0]._replace(start=start)
    return cycle * int(repetitions)


def _euler_row(step: _Step, curve: Curve, share: float = 1.0) -> Plan:
    """Return the row of an Euler step over a share of the way."""
    start, level, target = step
    row = identity_plan(np.array([level]), 2)
    row.added_noise[0] = math.sqrt(max(level**2 - start**2, 0.0))
    h = share * (curve.time(target) - curve.time(level))
    reached = target if share == 1 else curve.level(curve.time(level) + h)
    ratio = curve.scale(level) / curve.scale(reached)
    row.predictor_state[0] = ratio * (1 + h * curve.scale_rate(level))
    row.predictor_weights[0, 0] = ratio * h * curve.speed(level)
    return row


def _rows(step: _Step, curve: Curve, share: float) -> list[Plan]:
    """Return the row of an Euler step to the second point, and the row that corrects it.

    With h the whole step and w = 1 / (2 share), the corrected step is x + h ((1 - w) dx/dt +
    w dx/dt at the second point), which is the trapezoidal rule for a share of 1.
    """
    if step.target == 0:
        return [_euler_row(step, curve)]
    _, level, target = step
    t, h = curve.time(level), curve.time(target) - curve.time(level)
    second, w = target if share == 1 else curve.level(t + share * h), 1 / (2 * share)
    ratio, second_ratio = (curve.scale(each) / curve.scale(target) for each in (level, second))
    row = identity_plan(np.array([second]), 2)
    row.corrector_state[0] = second_ratio * h * w * curve.scale_rate(second)
    row.corrector_previous[0] = ratio * (1 + h * (1 - w) * curve.scale_rate(level))
    row.corrector_weights[0] = (
        second_ratio * h * w * curve.speed(second),
        ratio * h * (1 - w) * curve.speed(level),
    )
    return [_euler_row(step, curve, share), row]


# --- curves ---------------------------------------------------------------------------------------


class Curve(NamedTuple):
    """The time and the scale in which a solver takes straight steps.

    A curve sets x = s(t) y and sigma(t), where y has noise of level sigma. The probability flow is
    then dx/dt = s ((s'/s) y + sigma' n), with the noise n = (y - D) / sigma that the network
    predicts (EDM, Eq. (4)). Solvers that step in x and t have different errors on different curves.
    All but `level`, a function of t, are functions of sigma.

    Attributes:
      time: t.
      level: t -> sigma.
      speed: sigma' = d sigma / dt, for sigma > 0.
      scale: s.
      scale_rate: s' / s, for sigma > 0.
    """

    time: Callable[[float], float]
    level: Callable[[float], float]
    speed: Callable[[float], float]
    scale: Callable[[float], float] = lambda level: 1.0
    scale_rate: Callable[[float], float] = lambda level: 0.0


LINEAR = Curve(lambda level: level, lambda t: t, lambda level: 1.0)
"""sigma = t: the straight lines of EDM."""
VE = Curve(lambda level: level**2, math.sqrt, lambda level: 1 / (2 * level))
"""sigma = sqrt(t), for which the VE SDE has a constant diffusion."""


def _vp(levels: np.ndarray) -> Curve:
    """The VP SDE: log(1 + sigma^2) = slope t^2 / 2 + beta_min t, and s = 1 / sqrt(1 + sigma^2).

    The highest level is at t = 1 and the lowest positive one at 1e-3, as those of the paper's SDE
    are for beta from 0.1 to 20.
    """
    end, (lowest, highest) = 1e-3, np.log1p([levels[levels > 0].min() ** 2, levels.max() ** 2])
    slope = 2 * (highest - lowest / end) / (1 - end)
    if slope <= 0:
        raise InputError(
            f"curve = 'vp' needs lower noise levels than {levels[levels > 0].min():.4g}, "
            "the lowest one; raise sampling.num_steps, or use another curve."
        )
    beta_min = highest - slope / 2

    def time(level: float) -> float:
        root = math.sqrt(beta_min**2 + 2 * slope * math.log1p(level**2))
        return (root - beta_min) / slope if level else 0.0

    def speed(level: float) -> float:
        return (beta_min + slope * time(level)) / 2 * (level + 1 / level)

    return Curve(
        time=time,
        level=lambda t: math.sqrt(math.expm1(slope * t**2 / 2 + beta_min * t)),
        speed=speed,
        scale=lambda level: 1 / math.sqrt(1 + level**2),
        scale_rate=lambda level: -level * speed(level) / (1 + level**2),
    )


CURVES: dict[str, Callable[[np.ndarray], Curve]] = {
    "linear": lambda levels: LINEAR,
    "ve": lambda levels: VE,
    "vp": _vp,
}
"""By `config.sampling.curve`: functions of the noise levels (n + 1,) that a curve connects."""
