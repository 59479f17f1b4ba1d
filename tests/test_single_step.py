"""Heun's method with churn and with Restart: the noise levels of plans, and their noise."""

import itertools
import math

import numpy as np
import pytest
import scipy.optimize

import solvers
from solvers import single_step
from solvers.curves import CURVES
from tests.refusal import refused
from tests.test_solvers import execute

OPTIONS = {
    "heun_churn": [{"churn": 1.5}, {"churn": 40.0}],
    "restart": [{"restart": (4, 1, 0.06, 0.3)}, {"restart": (3, 2, 0.5, 5.0)}],
}
OPTIONS["heun"] = [{"second_point": share} for share in (1.0, 0.5, 0.3)]
OPTIONS["heun_churn"].append({"churn": 9.0, "churn_interval": (0.1, 3.0)})
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


def test_heun():
    """Two rows a step: Euler to the next level, and the mean of the two slopes."""
    plan = single_step.heun(np.array([4.0, 1.0, 0.0]))
    np.testing.assert_allclose(plan.level, [4, 1, 1])
    np.testing.assert_allclose(plan.corrector_state, [1, 0, 1])
    np.testing.assert_allclose(plan.corrector_previous, [0, 1, 0])
    np.testing.assert_allclose(plan.corrector_weights, [[0, 0], [-1.5, -1.5], [0, 0]])
    np.testing.assert_allclose(plan.predictor_state, [1, 1, 1])
    np.testing.assert_allclose(plan.predictor_weights, [[-3, 0], [0, 0], [-1, 0]])
    assert not plan.added_noise.any()
    assert not plan.predictor_noise.any()


def test_invalid_values():
    """No noise leads to a lower level: the step nearest to 0.3 begins at 0.4, the highest 0.35."""
    ends = (3, 2, 0.3, 0.06), (3, 2, 0.0, 1.0), (3, 2, 1.0, 11.0)
    for restart in (*ends, (1, 2, 0.1, 1.0), (3, 0, 0.1, 1.0)):
        refused("0 < lowest < highest <= 10", single_step.heun, LEVELS, restart=restart)
    levels, words = np.array([4.0, 0.4, 0.0]), "to the lowest level begins at 0.4, which is not"
    refused(words, single_step.heun, levels, restart=(3, 1, 0.3, 0.35))


def test_churn_between_two_levels():
    """Only steps that start in the interval add noise, and its scale leaves the levels alone."""
    options = {"churn": 1.5, "churn_interval": (0.1, 3.0)}
    plan = single_step.heun(LEVELS, **options)
    _, before, _ = raised(plan)
    np.testing.assert_allclose(before, [level for level in LEVELS if 0.1 <= level <= 3])
    scaled = single_step.heun(LEVELS, **options, churn_noise=1.01)
    np.testing.assert_allclose(scaled.added_noise, 1.01 * plan.added_noise)
    np.testing.assert_allclose(scaled.level, plan.level)


def scale_and_level(curve, levels):
    """s(t) and sigma(t) of Karras et al. (2022), Table 1, with complex arguments allowed.

    The VP curve has the first level at t = 1 and the last but one at t = 1e-3.
    """
    if curve == "linear":
        return lambda t: 1, lambda t: t
    if curve == "ve":
        return lambda t: 1, lambda t: t**0.5
    ends = np.array([1, 1e-3])
    powers = np.stack([ends**2 / 2, ends], 1)
    slope, beta_min = np.linalg.solve(powers, np.log(1 + levels[[0, -2]] ** 2))

    def exponent(t):
        return slope / 2 * t**2 + beta_min * t

    return lambda t: np.exp(-exponent(t) / 2), lambda t: (np.exp(exponent(t)) - 1) ** 0.5


def follow(curve, denoiser, y, levels, share):
    """Karras et al. (2022), Algorithm 3, in x and t; share = 0 stands for Euler's method."""
    scale, level = scale_and_level(curve, levels)
    end = 2 if curve == "vp" else 1e4

    def time(each):
        return scipy.optimize.brentq(lambda t: level(t) - each, 0, end, xtol=1e-15)

    def slope(x, t):
        s, sigma = scale(t), level(t)
        s_rate, rate = (np.imag(f(t + 1e-20j)) * 1e20 for f in (scale, level))  # derivatives
        return (rate / sigma + s_rate / s) * x - rate * s / sigma * denoiser(x / s, sigma)

    x = scale(time(levels[0])) * y
    for t, target in itertools.pairwise(map(time, levels)):
        h, d = target - t, slope(x, t)
        if share and target:
            second = slope(x + share * h * d, t + share * h)
            d = (1 - 1 / (2 * share)) * d + second / (2 * share)
        x = x + h * d
    return x


@pytest.mark.parametrize("share", [0, 1.0, 0.5, 0.3])
@pytest.mark.parametrize("curve", CURVES)
def test_steps_on_curves(curve, share):
    """Plans in y = x / s are the algorithm in x and t, for a denoiser that is not linear."""

    def denoiser(y, sigma):
        return np.tanh(y / (0.3 + sigma**2))

    y = np.linspace(-20, 20, 7)
    expected = follow(curve, denoiser, y, LEVELS, share)
    if share:
        plan = single_step.heun(LEVELS, curve=curve, second_point=share)
    else:
        plan = single_step.euler(LEVELS, curve=curve)
    found = execute(plan, y, np.zeros(len(plan.level)), True, lambda level, y: denoiser(y, level))
    np.testing.assert_allclose(found[-1], expected, rtol=1e-7, atol=1e-9)


def test_the_vp_curve():
    """It is that of the paper's SDE, for the levels of its times; high levels alone have none."""
    t = np.linspace(1, 1e-3, 7)
    levels = np.sqrt(np.expm1(19.9 / 2 * t**2 + 0.1 * t))
    curve = CURVES["vp"](np.append(levels, 0.0))
    np.testing.assert_allclose([curve.time(level) for level in levels], t, rtol=1e-9)
    assert curve.time(0.0) == 0
    words = "'vp' needs lower noise levels than 1, the lowest one"
    refused(words, single_step.euler, np.array([10.0, 1.0, 0.0]), curve="vp")
