"""Closed forms for Gaussian data: the score at any noise level, and the probability flow."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sde_lib import SDE, Score, expand


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["mean", "std"], meta_fields=["sde"]
)
@dataclasses.dataclass(frozen=True, eq=False)
class _Score:
    """A pytree, so that programs are shared by all means and standard deviations."""

    sde: SDE
    mean: np.ndarray | jax.Array
    std: np.ndarray | jax.Array

    def __call__(self, x: jax.Array, t: jax.Array) -> jax.Array:
        alpha, var = expand(self.sde.alpha(t), x), expand(self.sde.var(t), x)
        return -(x - alpha * self.mean) / (alpha**2 * self.std**2 + var)


def score(sde: SDE, mean: Any, std: Any) -> Score:
    """The score of N(mean, std^2) data under the SDE; mean and std broadcast against one image."""
    mean, std = (each if isinstance(each, jax.Array) else np.asarray(each) for each in (mean, std))
    return _Score(sde, mean, std)


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
