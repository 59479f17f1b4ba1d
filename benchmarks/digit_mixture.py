"""A mixture of Gaussians with known score, shaped like the digits, and a distance of samples to it.

The distance is a sliced Wasserstein-2 distance. `sampling_quality` uses both.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from scipy.stats import norm
from sklearn.datasets import load_digits

from sde_lib import SDE, Score


class DigitMixture:
    """Ten equally likely Gaussians in images of 8x8x1.

    They have the pixel means and variances of each class of the dequantized digits.
    """

    shape = (8, 8, 1)

    def __init__(self) -> None:
        levels, labels = map(np.asarray, load_digits(return_X_y=True))
        x = 2 * (levels + 0.5) / 17 - 1
        classes = [x[labels == k] for k in range(10)]
        dequantization_var = (2 / 17) ** 2 / 12
        self.means = np.stack([c.mean(0) for c in classes]).astype(np.float32)
        self.vars = np.stack([c.var(0) + dequantization_var for c in classes]).astype(np.float32)

    def sample(self, seed: int, n: int) -> np.ndarray:
        """Return n samples (n, 64)."""
        rng = np.random.default_rng(seed)
        k = rng.integers(0, 10, n)
        return self.means[k] + np.sqrt(self.vars[k]) * rng.normal(size=(n, 64))

    def score(self, sde: SDE) -> Score:
        """Return the exact score. If a batch has one time, it needs only matrix products."""

        def components(t: Array) -> tuple[Array, Array]:
            alpha = sde.alpha(t)
            return alpha * self.means, alpha**2 * self.vars + sde.var(t)

        def equal_times(x: Array, t: Array) -> Array:
            mean, var = components(t[0])
            offsets = (mean**2 / var + jnp.log(var)).sum(-1)
            logits = x @ (mean / var).T - 0.5 * (x**2 @ (1 / var).T + offsets)
            weights = jax.nn.softmax(logits)
            return weights @ (mean / var) - weights @ (1 / var) * x

        def one_image(x: Array, t: Array) -> Array:
            mean, var = components(t)
            scores = (mean - x) / var
            weights = jax.nn.softmax(-0.5 * (scores**2 * var + jnp.log(var)).sum(-1))
            return weights @ scores

        def score(x: Array, t: Array) -> Array:
            flat = x.reshape(len(x), -1)
            return lax.cond(jnp.all(t == t[0]), equal_times, jax.vmap(one_image), flat, t).reshape(
                x.shape
            )

        return score


@functools.cache
def directions(dims: int = 64) -> np.ndarray:
    """Return unit vectors (dims, 2 dims): the pixels and as many random directions."""
    u = np.random.default_rng(1).normal(size=(dims, dims))
    return np.concatenate([np.eye(dims), u / np.linalg.norm(u, axis=0)], 1)


def sliced_distance(quantiles: np.ndarray, x: np.ndarray) -> float:
    """Return the root mean square over `directions` of the Wasserstein-2 distance.

    `quantiles` (n, 2 dims) are those of the distribution along the directions, `x` (m, ...)
    samples.
    """
    flat = np.asarray(x, np.float64).reshape(len(x), -1)
    projected = np.sort(flat @ directions(flat.shape[1]), 0)
    if len(x) != len(quantiles):
        projected = np.quantile(projected, _levels(len(quantiles)), axis=0)
    return float(np.sqrt(np.mean((projected - quantiles) ** 2)))


def exact_quantiles(mixture: DigitMixture, n: int) -> np.ndarray:
    """Return the quantiles (i + 1/2) / n of the mixture along `directions`, (n, 128).

    Along a direction the mixture consists of ten Gaussians in one dimension.
    """
    mean, std = mixture.means @ directions(), np.sqrt(mixture.vars @ directions() ** 2)
    grid = np.linspace((mean - 6 * std).min(0), (mean + 6 * std).max(0), 4000)
    cdf = norm.cdf((grid[:, None] - mean) / std).mean(1)
    columns = [np.interp(_levels(n), cdf[:, j], grid[:, j]) for j in range(grid.shape[1])]
    return np.stack(columns, 1)


def weighted_quantiles(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the quantiles (i + 1/2) / n along `directions` of images x (n, ...), (n, 2 dims).

    The images have weights (n,).
    """
    flat = x.reshape(len(x), -1)
    projected = flat @ directions(flat.shape[1])
    order = np.argsort(projected, 0)
    middle = np.cumsum(weights[order], 0) - weights[order] / 2
    values = np.take_along_axis(projected, order, 0)
    total = weights.sum()
    columns = [np.interp(_levels(len(x)), m / total, v) for m, v in zip(middle.T, values.T)]
    return np.stack(columns, 1)


def _levels(n: int) -> np.ndarray:
    return (np.arange(n) + 0.5) / n
