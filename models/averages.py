"""Moving averages of parameters with power-function profiles, and their combinations.

After t steps, the parameters of step s have a weight proportional to s^gamma. A profile is named by
its relative width std: the standard deviation of the step, divided by t (Karras et al. 2024,
arXiv:2312.02696, section 3 and appendix C, where it is sigma_rel).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import ArrayLike

from models.building import Params

CUTOFF = 1e-12  # Smaller relative eigenvalues of inner products are rounding errors.


def exponent(std: float) -> float:
    """Return gamma, the root above -0.382 of std^2 (gamma + 2)^2 (gamma + 3) = gamma + 1.

    `std` is from 0 to 0.3; the largest possible width is 0.30028.
    """
    inverse = float(std) ** -2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def follow(average: Params, params: Params, std: float, t: Array) -> Params:
    """Return the average after step t = 1, 2, ..., whose parameters are `params`.

    Its decay is beta = (1 - 1 / t)^(gamma + 1), which is 0 at t = 1.
    """
    # float32 would round beta to steps of 6e-8, and 1 - beta is as small as 1e-5.
    share = -jnp.expm1((exponent(std) + 1) * jnp.log1p(-1 / t))
    return jax.tree.map(lambda old, new: old + share * (new - old), average, params)


def inner_products(t: ArrayLike, gamma: ArrayLike, s: ArrayLike, delta: ArrayLike) -> np.ndarray:
    """Return the integrals of products of the profiles (t, gamma) and (s, delta), which broadcast.

    A profile (t, gamma) is (gamma + 1) x^gamma / t^(gamma + 1) for 0 < x <= t, and 0 for x > t.
    """
    t, gamma, s, delta = (np.asarray(each, np.float64) for each in (t, gamma, s, delta))
    last = np.maximum(t, s)
    ratio = (np.minimum(t, s) / last) ** np.where(t > s, gamma, delta)
    return (gamma + 1) * (delta + 1) / (gamma + delta + 1) * ratio / last


def combination(
    t: np.ndarray, stds: np.ndarray, last: float, std: float
) -> tuple[np.ndarray, float]:
    """Return the weights (n,) of stored averages whose sum is closest to another average.

    Args:
      t, stds: the steps (n,) and relative widths (n,) of the stored averages.
      last, std: those of the other average.

    Returns:
      The weights by least squares of the profiles, and the norm of the remaining difference of the
      profiles, divided by that of the wanted one.
    """
    # The unit of time does not matter. With `last`, all values are of moderate size.
    t, gamma, wanted = t / last, np.array([exponent(each) for each in stds]), exponent(std)
    norms = np.sqrt(inner_products(t, gamma, t, gamma))
    norm = np.sqrt(inner_products(1, wanted, 1, wanted))
    cosines = inner_products(t[:, None], gamma[:, None], t, gamma) / np.outer(norms, norms)
    target = inner_products(t, gamma, 1, wanted) / (norms * norm)
    found = np.linalg.lstsq(cosines, target, rcond=CUTOFF)[0]
    squared = 1 - 2 * found @ target + found @ cosines @ found
    return found * norm / norms, float(np.sqrt(max(0.0, squared)))
