"""Moving averages of parameters with power-function profiles, and their combinations.

After t steps, the parameters of step s have a weight proportional to s^gamma. The width std of this
profile is the standard deviation of s, divided by t (Karras et al. 2024, arXiv:2312.02696).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from models.building import Params

CUTOFF = 1e-12  # Smaller relative eigenvalues of inner products are rounding errors.


def exponent(std: float) -> float:
    """Return gamma, the largest root of std^2 (gamma + 2)^2 (gamma + 3) = gamma + 1."""
    inverse = float(std) ** -2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def follow(
    averages: tuple[Params, ...], params: Params, stds: Sequence[float], t: Array
) -> tuple[Params, ...]:
    """Return averages after step t = 1, 2, ... to `params`, with decay (1 - 1 / t)^(gamma + 1)."""

    def one(average: Params, std: float) -> Params:
        # float32 would round the decay to steps of 6e-8, and the share may be as small as 1e-5.
        share = -jnp.expm1((exponent(std) + 1) * jnp.log1p(-1 / t))
        return jax.tree.map(lambda old, new: old + share * (new - old), average, params)

    return tuple(map(one, averages, stds))


def inner_products(t: ArrayLike, gamma: ArrayLike, s: ArrayLike, delta: ArrayLike) -> np.ndarray:
    """Return the integrals of the products of profiles (gamma + 1) x^gamma / t^(gamma + 1), x < t,
    and (delta + 1) x^delta / s^(delta + 1), x < s. The arguments broadcast."""
    t, gamma, s, delta = (np.asarray(each, np.float64) for each in (t, gamma, s, delta))
    ratio = (np.minimum(t, s) / np.maximum(t, s)) ** np.where(t > s, gamma, delta)
    return (gamma + 1) * (delta + 1) / (gamma + delta + 1) * ratio / np.maximum(t, s)


def combination(
    steps: Sequence[int], stds: Sequence[float], last: int, std: float
) -> tuple[np.ndarray, float]:
    """Return weights (steps, stds) of averages whose sum comes closest to that of width `std`.

    That is the average at step `last`; the profiles are compared (least squares). The second result
    is the relative norm of the difference that remains.
    """
    t = np.repeat(np.asarray(steps, np.float64) / last, len(stds))  # in units of `last`
    gamma, wanted = np.tile([exponent(each) for each in stds], len(steps)), exponent(std)
    among = inner_products(t[:, None], gamma[:, None], t, gamma)
    with_wanted = inner_products(t, gamma, 1, wanted)
    weights = np.linalg.lstsq(among, with_wanted, rcond=CUTOFF)[0]
    difference = weights @ among @ weights - 2 * weights @ with_wanted
    squared = 1 + difference / inner_products(1, wanted, 1, wanted)
    return weights.reshape(len(steps), len(stds)), float(np.sqrt(max(0, squared)))
