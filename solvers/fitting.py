"""Noise levels fitted to one score: a dynamic program over the steps of a few-step solver.

Reference trajectories have states y and predictions D at many levels. The error of a step between
two of these levels, given the level of the step before, follows without further evaluations: step
and reference start from the same state and have the same noise. So the root mean square of their
difference is a bound of the Wasserstein-2 distance that the step adds. It is multiplied by the
contraction of the flow until the last level, which is that of Gaussian data of the same variance.
Compare arXiv:2404.14507 and arXiv:2503.21774.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from solvers.plan import Plan


class Reference(NamedTuple):
    """Trajectories of B events with D entries each on a grid of n noise levels.

    Attributes:
      levels: (n,), which descend.
      states: y (n, B, D).
      denoised: the predictions of the data (n, B, D) for these states.
      decay: 1 for the probability flow, and 2 for the reverse SDE: where the prediction is 0, the
        state at level s' is (s' / s)^decay times that at s, plus noise.
    """

    levels: np.ndarray
    states: np.ndarray
    denoised: np.ndarray
    decay: int

    def without_noise(self) -> np.ndarray:
        """Return y (n, B, D) without its noise, which is the part due to the prediction."""
        if self.decay == 1:
            return self.states
        powers = self.levels[:, None, None] ** -self.decay
        parts = np.cumsum(self.denoised[:-1] * np.diff(powers, axis=0), 0)
        return np.concatenate([0 * self.states[:1], parts]) / powers


def step_errors(
    make_plan: Callable[[np.ndarray], Plan], reference: Reference, *, noise_prediction: bool
) -> np.ndarray:
    """Return the errors [h, i, j] (n, n, n + 1) of steps from level i to j, after one from h to i.

    Level n is 0. The first step, which has none before it, is [0, 0, j]. What does not descend has
    an infinite error. Plans of solvers that combine more than two predictions combine two here.
    """
    n, levels = len(reference.levels), np.append(reference.levels, 0.0)
    y, data = (each.reshape(n, -1).astype(np.float64) for each in reference[1:3])
    predictions = (y - data) / levels[:-1, None] if noise_prediction else data
    moved = np.concatenate([reference.without_noise().reshape(n, -1), data[-1:]])
    vectors = np.concatenate([y, predictions, moved])
    products = vectors @ vectors.T / vectors.shape[1]
    variances = [each.var(0).mean() for each in (*reference.states, reference.denoised[-1])]
    (state, total, slope), corrector = _coefficients(make_plan, levels)
    h, i, j = np.ogrid[:n, :n, : n + 1]
    # The weight of the prediction before; 0 if there is none.
    earlier = slope / np.where(h < i, np.log(levels[i] / levels[h]), np.inf)
    natural = (levels / levels[:-1, None]) ** reference.decay
    of_state, of_previous, *weights = state * corrector[..., None]
    weights = weights[0] + total - earlier, weights[1] + earlier
    difference = of_state - natural, of_previous, *weights, natural, -np.ones(n + 1)
    terms = list(zip(difference, (i, h, n + i, n + h, 2 * n + i, 2 * n + j)))
    square = sum(a * b * products[p, q] for (a, p), (b, q) in itertools.product(terms, terms))
    contraction = (variances[-1] / np.array(variances)) ** reference.decay
    is_step = ((h < i) | (h + i == 0)) & (i < j)
    return np.where(is_step, np.sqrt(np.maximum(square * contraction, 0)), np.inf)


def _coefficients(
    make_plan: Callable[[np.ndarray], Plan], levels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return what steps between levels (n + 1,) combine, from plans of two or three levels.

    That is, from i to j (3, n, n + 1): the coefficient of y, the total weight of the predictions,
    and the weight of the slope of predictions, which are interpolated linearly in log s. And at j,
    after a step from i (4, n, n): the fields of the corrector, of y, the y before and predictions.
    """
    n = len(levels) - 1
    predictor, corrector = np.zeros((3, n, n + 1)), np.zeros((4, n, n))
    corrector[0] = 1
    for i, j in itertools.combinations(range(n + 1), 2):
        c = make_plan(levels[[i - 1, i, j] if i else [i, j]])
        earlier = np.append(c.predictor_weights[-1], 0)[1]
        slope = earlier * np.log(levels[i] / levels[i - 1]) if i else 0
        predictor[:, i, j] = c.predictor_state[-1], c.predictor_weights[-1][0] + earlier, slope
        if j < n:
            c = make_plan(levels[[i, j, n]])
            corrector[:2, i, j] = c.corrector_state[-1], c.corrector_previous[-1]
            corrector[2:, i, j] = np.append(c.corrector_weights[-1], 0)[:2]
    return predictor, corrector


def best_path(costs: np.ndarray, steps: int) -> list[int]:
    """Return the numbers (steps + 1,) of the levels of the path from 0 to n with the least cost.

    `costs` [h, i, j] are as in `step_errors`; those of the steps of a path add up.
    """
    n, origins = len(costs), []
    total = np.full((n, n + 1), np.inf)
    total[0] = costs[0, 0]
    for _ in range(steps - 1):
        sums = total[:, :n, None] + costs
        origins.append(sums.argmin(0))
        total = sums.min(0)
    path = [n, int(total[:, n].argmin())]
    for origin in reversed(origins):
        path.append(int(origin[path[-1], path[-2]]))
    return path[::-1]
