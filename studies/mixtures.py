"""Mixtures of Gaussians with diagonal covariances: their exact scores, samples and quantiles."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from scipy.stats import norm
from sklearn.datasets import load_digits

from sde_lib import SDE, Score
from studies.distances import directions, levels


class Mixture(NamedTuple):
    """Equally likely Gaussians over events of a shape.

    Attributes:
      means, variances: (K, D), D being the size of an event.
      shape: of an event.
    """

    means: np.ndarray
    variances: np.ndarray
    shape: tuple[int, ...]

    def sample(self, seed: int, n: int) -> np.ndarray:
        """Return n samples (n, D)."""
        rng = np.random.default_rng(seed)
        k = rng.integers(0, len(self.means), n)
        return self.means[k] + np.sqrt(self.variances[k]) * rng.normal(size=(n, len(self.means.T)))

    def score(self, sde: SDE) -> Score:
        """Return the exact score. If a batch has one time, it needs only matrix products."""

        def components(t: Array) -> tuple[Array, Array]:
            alpha = sde.alpha(t)
            return alpha * self.means, alpha**2 * self.variances + sde.var(t)

        def equal_times(x: Array, t: Array) -> Array:
            mean, var = components(t[0])
            offsets = (mean**2 / var + jnp.log(var)).sum(-1)
            logits = x @ (mean / var).T - 0.5 * (x**2 @ (1 / var).T + offsets)
            weights = jax.nn.softmax(logits)
            return weights @ (mean / var) - weights @ (1 / var) * x

        def one_event(x: Array, t: Array) -> Array:
            mean, var = components(t)
            scores = (mean - x) / var
            weights = jax.nn.softmax(-0.5 * (scores**2 * var + jnp.log(var)).sum(-1))
            return weights @ scores

        def score(x: Array, t: Array) -> Array:
            flat = x.reshape(len(x), -1)
            same = jnp.all(t == t[0])
            return lax.cond(same, equal_times, jax.vmap(one_event), flat, t).reshape(x.shape)

        return score

    def quantiles(self, n: int) -> np.ndarray:
        """Return the quantiles (i + 1/2) / n along `directions`, (n, 2 D).

        Along a direction the mixture consists of Gaussians in one dimension.
        """
        vectors = directions(len(self.means.T))
        mean, std = self.means @ vectors, np.sqrt(self.variances @ vectors**2)
        grid = np.linspace((mean - 6 * std).min(0), (mean + 6 * std).max(0), 4000)
        columns = []
        for j, points in enumerate(grid.T):
            cdf = norm.cdf((points[:, None] - mean[:, j]) / std[:, j]).mean(1)
            columns.append(np.interp(levels(n), cdf, points))
        return np.stack(columns, 1)


def of_digits() -> Mixture:
    """Return ten Gaussians with the pixel means and variances of the classes of the digits.

    The digits are dequantized and scaled to [-1, 1]; an event has the shape (8, 8, 1).
    """
    grey, labels = map(np.asarray, load_digits(return_X_y=True))
    x = 2 * (grey + 0.5) / 17 - 1
    groups = [x[labels == k] for k in range(10)]
    dequantization_var = (2 / 17) ** 2 / 12
    means = np.stack([group.mean(0) for group in groups]).astype(np.float32)
    variances = np.stack([group.var(0) + dequantization_var for group in groups])
    return Mixture(means, variances.astype(np.float32), (8, 8, 1))
