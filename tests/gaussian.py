"""Closed forms for Gaussian data: the score at any noise level, and the probability flow."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from sde_lib import SDE, Score, expand


def score(sde: SDE, mean: np.ndarray, std: np.ndarray) -> Score:
    """The score of N(mean, std^2) data under the SDE; mean and std broadcast against one image."""

    def grad_logp(x, t):
        alpha, var = expand(sde.alpha(t), x), expand(sde.var(t), x)
        return -(x - alpha * mean) / (alpha**2 * std**2 + var)

    return grad_logp


def flow(
    sde: SDE, mean: np.ndarray, std: np.ndarray, x: np.ndarray, t0: float, t1: float
) -> np.ndarray:
    """The probability flow of x from t0 to t1, which preserves (x - mean) / std of each entry."""

    def moments(t):
        alpha, var = (np.asarray(f(jnp.float32(t)), np.float64) for f in (sde.alpha, sde.var))
        return alpha * mean, np.sqrt(alpha**2 * std**2 + var)

    mean0, std0 = moments(t0)
    mean1, std1 = moments(t1)
    return mean1 + std1 / std0 * (x - mean0)
