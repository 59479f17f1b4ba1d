"""Heun's method with churn and with Restart: the noise levels of plans, and their noise.

`test_edm_recorded` has its steps, on all curves.
"""

import math

import numpy as np
import pytest

import solvers
from solvers import single_step
from tests.refusal import refused

OPTIONS = {
    "heun_churn": [{"churn": 1.5}, {"churn": 40.0}, {"churn": 9.0, "churn_interval": (0.1, 3.0)}],
    "restart": [{"restart": (4, 1, 0.06, 0.3)}, {"restart": (3, 2, 0.5, 5.0)}],
    "heun": [{"second_point": share} for share in (1.0, 0.5, 0.3)],
}
CASES = [(name, each) for name in solvers.SOLVERS for each in OPTIONS.get(name, [{}])]
LEVELS = np.append(solvers.karras(10.0, 0.02, 10), 0.0)


@pytest.mark.parametrize("last", [0.0, 0.02])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_levels_are_those_of_the_noise(name, options, last):
    """Each row states the standard deviation of the noise in y as its level, for every solver.

    All data are 0, so D = 0, the predicted noise is y / level, and y consists of noise only.
    """
    solver = solvers.SOLVERS[name]
    levels = LEVELS if last == 0 else LEVELS[:-1]
    plan = solver.plan(levels, **options)
    std = previous = levels[0]
    history = np.zeros(plan.predictor_weights.shape[1])
    for i, level in enumerate(plan.level):
        std = math.hypot(std, plan.added_noise[i])
        assert std == pytest.approx(level, rel=1e-6)
        prediction = std / level if solver.noise_prediction else 0.0
        history = np.append(prediction, history[:-1])
        std = plan.corrector_state[i] * std + plan.corrector_previous[i] * previous
        std += plan.corrector_weights[i] @ history
        previous = std
        std = plan.predictor_state[i] * std + plan.predictor_weights[i] @ history
        std = math.hypot(std, plan.predictor_noise[i])
    assert std == pytest.approx(last, abs=1e-9)


def raised(plan):
    """The rows that add noise: the level before it and after it, in order."""
    rows = np.flatnonzero(plan.added_noise)
    after = plan.level[rows]
    return rows, np.sqrt(after**2 - plan.added_noise[rows] ** 2), after


@pytest.mark.parametrize(("churn", "factor"), [(1.5, 1.15), (40.0, math.sqrt(2))])
def test_churn(churn, factor):
    """Noise raises each level by 1 + churn / n, at most sqrt(2), unless it exceeds the first."""
    _, before, after = raised(single_step.heun(LEVELS, churn=churn))
    expected = [level for level in LEVELS[:-1] if level * factor <= LEVELS[0]]
    assert 0 < len(expected) < 10
    np.testing.assert_allclose(before, expected)
    np.testing.assert_allclose(after, factor * np.array(expected))
    # Only steps that start in the interval add noise; `test_edm_recorded` has its scale.
    _, before, _ = raised(single_step.heun(LEVELS, churn=churn, churn_interval=(0.1, 3.0)))
    np.testing.assert_allclose(before, [level for level in LEVELS if 0.1 <= level <= 3])


@pytest.mark.parametrize("lowest", [0.01, 0.036, 0.5, 6.0])
def test_restart(lowest):
    """Noise leads from the level nearest to the lowest one to the highest, in each repetition."""
    nearest = LEVELS[np.argmin(np.abs(np.log(LEVELS[:-1] / lowest)))]
    plan = single_step.heun(LEVELS, restart=(3, 2, lowest, 8.0))
    rows, before, after = raised(plan)
    np.testing.assert_allclose(before, [nearest] * 2)
    np.testing.assert_allclose(after, [8.0] * 2)
    middle = solvers.karras(8.0, nearest, 3)[1]
    for row in rows:
        np.testing.assert_allclose(plan.level[row : row + 4], [8.0, middle, middle, nearest])
    without = np.delete(plan.level, np.arange(rows[0], rows[0] + 8))
    np.testing.assert_allclose(without, single_step.heun(LEVELS).level)


def test_invalid_values():
    """No noise leads to a lower level: the step nearest to 0.3 begins at 0.4, the highest 0.35."""
    ends = (3, 2, 0.3, 0.06), (3, 2, 0.0, 1.0), (3, 2, 1.0, 11.0)
    for restart in (*ends, (1, 2, 0.1, 1.0), (3, 0, 0.1, 1.0)):
        refused("0 < lowest < highest <= 10", single_step.heun, LEVELS, restart=restart)
    levels, words = np.array([4.0, 0.4, 0.0]), "to the lowest level begins at 0.4, which is not"
    refused(words, single_step.heun, levels, restart=(3, 1, 0.3, 0.35))
    words = "'vp' needs lower noise levels than 1, the lowest one"
    refused(words, single_step.euler, np.array([10.0, 1.0, 0.0]), curve="vp")


@pytest.mark.parametrize("name", single_step.CURVES)
def test_curves(name):
    """Level and time are inverse to each other, and rates are derivatives by time."""
    curve, d = single_step.CURVES[name](LEVELS), 1e-6
    for level in LEVELS[:-1]:
        t, near = curve.time(level), [curve.level(curve.time(level) * (1 + x)) for x in (-d, d)]
        assert curve.level(t) == pytest.approx(level)
        assert (near[1] - near[0]) / (2 * d * t) == pytest.approx(curve.speed(level), rel=1e-6)
        change = math.log(curve.scale(near[1]) / curve.scale(near[0])) / (2 * d * t)
        assert change == pytest.approx(curve.scale_rate(level), rel=1e-5)
        assert curve.scale(level) == (
            pytest.approx(1 / math.hypot(1, level)) if name == "vp" else 1
        )
    assert curve.time(0.0) == 0.0
    if name == "vp":
        assert [curve.time(level) for level in (LEVELS[0], LEVELS[-2])] == pytest.approx([1, 1e-3])
