"""Multistep solvers: DDIM, DPM-Solver++, UniPC and DEIS.

Each step evaluates the network once and combines the prediction with those of earlier steps. With
lambda = -log s, the solvers in data prediction integrate e^lambda D exactly for a polynomial D in
lambda; DEIS does the same for predictions of the noise.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np

from solvers.plan import Plan, identity_plan

QUADRATURE = np.polynomial.legendre.leggauss(20)
Weights = Callable[[np.ndarray, float], np.ndarray]
"""(nodes, h) -> weights of the predictions, which sum to 1.

h is the step in lambda. The nodes are the lambdas of the predictions relative to the present one,
in units of h: 0 for the present prediction, then negative numbers for earlier ones.
"""


def data_multistep(
    levels: np.ndarray,
    *,
    order: int,
    weights: Weights,
    history: int | None = None,
    sde: bool = False,
) -> Plan:
    """Return the plan of a multistep solver in data prediction.

    Its step from level s to s' is y = (s'/s) y + (1 - s'/s) weights . (D_i, D_{i-1}, ...). With
    `sde` it is that of SDE-DPM-Solver++ (arXiv:2211.01095), which has (s'/s)^2 in place of s'/s and
    adds noise.

    Args:
      levels: (n + 1,), noise levels.
      order: the largest number of predictions in a step.
      history: the number of columns of the plan's weights, `order` by default.
    """
    plan = identity_plan(levels[:-1], history or order)
    for i, (level, next_level) in enumerate(itertools.pairwise(levels)):
        ratio = next_level / level
        if sde:
            ratio = ratio**2
            plan.predictor_noise[i] = next_level * np.sqrt(1 - ratio)
        plan.predictor_state[i] = ratio
        used = _order(levels, i, order)
        step_weights = np.ones(1)
        if used > 1:
            step_weights = weights(*_nodes(levels, i, used))
        plan.predictor_weights[i, :used] = (1 - ratio) * step_weights
    return plan


def second_order(nodes: np.ndarray, h: float) -> np.ndarray:
    """Weights of DPM-Solver++(2M): D extrapolated to the middle of the step in lambda."""
    slope = np.array([1.0, -1.0]) / -nodes[1]
    return np.array([1.0, 0.0]) + 0.5 * slope


def third_order(nodes: np.ndarray, h: float, *, curvature_weight: float = 1.0) -> np.ndarray:
    """Weights of DPM-Solver++(3M): the quadratic through three predictions, integrated exactly.

    With u the lambda since the present prediction in units of h, it is
    D + slope u + curvature u^2. The authors' code and diffusers give the last term half of its
    weight (`curvature_weight` = 0.5), which lowers the order of convergence from 3 to 2.
    """
    if len(nodes) == 2:
        return second_order(nodes, h)
    r0 = -nodes[1]
    r1 = nodes[1] - nodes[2]
    newest_slope = np.array([1.0, -1.0, 0.0]) / r0
    older_slope = np.array([0.0, 1.0, -1.0]) / r1
    curvature = (newest_slope - older_slope) / (r0 + r1)
    slope = newest_slope + r0 * curvature
    # Means of u and u^2 over the step, with the weight e^(h u) of the integral.
    e = -np.expm1(-h)
    mean_u = (1 - e / h) / e
    mean_u2 = (1 - 2 * (h - e) / h**2) / e
    return np.array([1.0, 0.0, 0.0]) + mean_u * slope + curvature_weight * mean_u2 * curvature


def unipc(levels: np.ndarray, *, order: int) -> Plan:
    """Return the plan of UniPC (arXiv:2302.04867, Algorithms 5 to 8), B(h) = e^h - 1.

    The corrector repeats the step to the present level from the previous corrected y, with the
    present prediction among those that it combines.
    """
    plan = data_multistep(levels, order=order, weights=_unipc_predictor, history=order + 1)
    for i in range(1, len(plan.level)):
        ratio = levels[i] / levels[i - 1]
        used = _order(levels, i - 1, order)
        weights = _unipc_corrector(*_nodes(levels, i - 1, used))
        plan.corrector_state[i] = 0.0
        plan.corrector_previous[i] = ratio
        plan.corrector_weights[i, : used + 1] = (1 - ratio) * weights
    return plan


def _unipc_predictor(nodes: np.ndarray, h: float) -> np.ndarray:
    """Weights of the present and the earlier predictions."""
    differences = _unipc_differences(nodes[1:], h)
    return np.concatenate([[1 - differences.sum()], differences])


def _unipc_corrector(nodes: np.ndarray, h: float) -> np.ndarray:
    """Weights of the prediction at the end of the step, the one at its start and earlier ones."""
    differences = _unipc_differences(np.append(nodes[1:], 1.0), h)
    return np.concatenate([differences[-1:], [1 - differences.sum()], differences[:-1]])


def _unipc_differences(nodes: np.ndarray, h: float) -> np.ndarray:
    """Coefficients rho_j / r_j of the differences D_j - D_0, for the nodes r_j other than 0."""
    if len(nodes) == 1:
        return 0.5 / nodes
    phi = np.expm1(-h) / -h - 1
    moments = []  # integrals of powers of lambda with the exponential weight
    for j in range(1, len(nodes) + 1):
        moments.append(phi * math.factorial(j) / np.expm1(-h))
        phi = phi / -h - 1 / math.factorial(j + 1)
    rho = np.linalg.solve(np.vander(nodes, increasing=True).T, moments)
    return rho / nodes


def deis(levels: np.ndarray, *, order: int = 3) -> Plan:
    """Return the plan of DEIS (arXiv:2204.13902), in noise prediction.

    A step adds to y the integral over s of the polynomial in log s through the latest predictions.
    Gauss-Legendre quadrature in log s gives its coefficients.
    """
    plan = identity_plan(levels[:-1], order)
    points, point_weights = QUADRATURE
    for i, (level, next_level) in enumerate(itertools.pairwise(levels)):
        used = _order(levels, i, order)
        if used == 1:
            plan.predictor_weights[i, 0] = next_level - level
            continue
        log_levels = np.log(levels[i - np.arange(used)])
        log_ratio = np.log(next_level / level)
        u = np.log(level) + (points + 1) / 2 * log_ratio
        measure = point_weights / 2 * log_ratio * np.exp(u)
        for j in range(used):
            others = np.delete(log_levels, j)
            lagrange = np.prod((u[:, None] - others) / (log_levels[j] - others), 1)
            plan.predictor_weights[i, j] = measure @ lagrange
    return plan


def _order(levels: np.ndarray, i: int, highest: int) -> int:
    """Return the order of step i.

    The first steps have few earlier predictions. A step to level 0 is infinitely long in lambda, so
    it is of first order.
    """
    if levels[i + 1] == 0:
        return 1
    return min(highest, i + 1)


def _nodes(levels: np.ndarray, i: int, count: int) -> tuple[np.ndarray, float]:
    """Return the nodes of the `count` latest predictions at step i, and h; see `Weights`."""
    h = float(np.log(levels[i] / levels[i + 1]))
    return np.log(levels[i] / levels[i - np.arange(count)]) / h, h
