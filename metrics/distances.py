"""Distances between sets of images, from features of theirs: FID, KID, inception score, precision and recall.

Features are arrays (N, D), whatever network they come from; which one is what makes a Frechet distance an FID.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from errors import InputError

ROWS = 1024  # features whose distances to all others are in memory at a time


class Estimate(NamedTuple):
    """A value and its standard error, NaN if that is not known."""

    value: float
    stderr: float


# --- Frechet distance -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
    """Mean (D,) and covariance (D, D) of features, in float64; the covariance is the unbiased one, 0 of a single image.

    Attributes:
      count: of how many images; None if a file does not tell, which cannot be merged.
    """

    count: int | None
    mean: np.ndarray
    covariance: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> Moments:
        """Of features (N, D), N > 0. Raises InputError if any is not finite."""
        x = np.asarray(features, np.float64)
        mean = x.mean(0)
        if not np.isfinite(mean).all():
            raise InputError(
                f"Features of {len(x)} images are not finite: there is no mean to give."
            )
        centered = x - mean
        return cls(len(x), mean, centered.T @ centered / max(len(x) - 1, 1))

    def merge(self, other: Moments) -> Moments:
        """Of both sets together (Chan, Golub & LeVeque 1983)."""
        count, delta = self.count + other.count, other.mean - self.mean
        scatter = (self.count - 1) * self.covariance + (other.count - 1) * other.covariance
        scatter += np.outer(delta, delta) * (self.count * other.count / count)
        return Moments(count, self.mean + delta * (other.count / count), scatter / (count - 1))

    @functools.cached_property
    def factor(self) -> np.ndarray:
        """L (D, rank) with L L^T the covariance; what is below rounding counts as 0."""
        values, vectors = np.linalg.eigh(self.covariance)
        kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
        return vectors[:, kept] * np.sqrt(values[kept])

    @property
    def rank_deficient(self) -> bool:
        """Whether the covariance is singular: there are too few images, or features that depend on each other."""
        return self.factor.shape[1] < len(self.mean)


def frechet_distance(a: Moments, b: Moments) -> float:
    """Between the Gaussians of these moments (arXiv:1706.08500, Eq. (6)); never negative, for any rank.

    tr (A B)^(1/2) is the sum of the square roots of the eigenvalues of L_B^T A L_B, which are real and not negative but
    for rounding; where a matrix root would be neither. L_B is computed once for each b.
    """
    if a.mean.shape != b.mean.shape:
        raise InputError(
            f"Features with {len(a.mean)} and {len(b.mean)} entries are not those of one network."
        )
    trace = np.trace(a.covariance) + np.trace(b.covariance)
    squares = np.linalg.eigvalsh(b.factor.T @ a.covariance @ b.factor)
    root_trace = np.sqrt(np.maximum(squares, 0)).sum()
    return max(0.0, float(np.sum((a.mean - b.mean) ** 2) + trace - 2 * root_trace))


# --- kernel distance --------------------------------------------------------------------------------------------------


def kernel_distance(
    real: np.ndarray, generated: np.ndarray, max_block_size: int = 1000
) -> Estimate:
    """KID (arXiv:1801.01401): the unbiased squared MMD of the kernel (x y / D + 1)^3, a mean over blocks.

    Blocks are as few as they can be, of nearly equal sizes, as in TF-GAN; their order is that of the images. With one
    block there is no standard error. Raises InputError if a block would have fewer than two images.
    """
    count = -(-max(len(real), len(generated)) // max_block_size)
    if min(len(real), len(generated)) < 2 * count:
        raise InputError(
            f"{len(real)} and {len(generated)} images cannot be {count} blocks of at least two: raise max_block_size = "
            f"{max_block_size}."
        )
    pairs = zip(
        np.split(real, _ends(len(real), count)), np.split(generated, _ends(len(generated), count))
    )
    blocks = np.array([_squared_mmd(x.astype(np.float64), y.astype(np.float64)) for x, y in pairs])
    stderr = blocks.std(ddof=1) / math.sqrt(count) if count > 1 else math.nan
    return Estimate(float(blocks.mean()), float(stderr))


def _ends(length: int, count: int) -> np.ndarray:
    """Where the blocks of a split end, but for the last; longer blocks come last."""
    sizes = np.full(count, length // count)
    sizes[count - length % count :] += 1
    return np.cumsum(sizes)[:-1]


def _squared_mmd(x: np.ndarray, y: np.ndarray) -> float:
    kernel = lambda a, b: (a @ b.T / a.shape[1] + 1) ** 3
    within = lambda k: (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))
    return within(kernel(x, x)) + within(kernel(y, y)) - 2 * kernel(x, y).mean()


# --- inception score --------------------------------------------------------------------------------------------------


def inception_score(logits: np.ndarray) -> float:
    """exp of the mean KL divergence of p(class | image) from p(class) (arXiv:1606.03498), of all images at once."""
    logits = np.asarray(logits, np.float64)
    log_p = logits - logits.max(1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(1, keepdims=True))
    log_mean = np.log(np.maximum(np.exp(log_p).mean(0), np.finfo(np.float64).tiny))
    return float(np.exp((np.exp(log_p) * (log_p - log_mean)).sum(1).mean()))


# --- precision and recall ---------------------------------------------------------------------------------------------


class PrecisionRecall(NamedTuple):
    """precision: the part of the generated images that lies among the real ones; recall: the reverse."""

    precision: float
    recall: float


def precision_recall(real: np.ndarray, generated: np.ndarray, k: int = 3) -> PrecisionRecall:
    """Kynkaanniemi et al. (arXiv:1904.06991): an image is among others if it is no further from one of them than that
    one's k-th neighbour. Computed in float32, on the default device.

    Raises InputError if a set has no more than k images.
    """
    if min(len(real), len(generated)) <= k:
        raise InputError(
            f"{len(real)} and {len(generated)} images are too few for neighbour number {k}."
        )
    shift = np.mean(real, 0, dtype=np.float64)  # Distances stay; less cancels in them.
    real, generated = (jnp.asarray(x - shift, jnp.float32) for x in (real, generated))
    precision = _among(generated, real, _squared_radii(real, k))
    recall = _among(real, generated, _squared_radii(generated, k))
    return PrecisionRecall(float(precision.mean()), float(recall.mean()))


@jax.jit
def _squared_distances(a: Array, b: Array) -> Array:
    """(N, D), (M, D) -> (N, M)."""
    products = jnp.matmul(a, b.T, precision="highest")
    return jnp.maximum(jnp.sum(a * a, 1)[:, None] + jnp.sum(b * b, 1) - 2 * products, 0)


def _squared_radii(x: Array, k: int) -> Array:
    """Squared distances (N,) to the k-th neighbour; the first of the k + 1 nearest is the point itself."""
    nearest = lambda rows: -jax.lax.top_k(-_squared_distances(rows, x), k + 1)[0][:, -1]
    return jnp.concatenate([nearest(x[i : i + ROWS]) for i in range(0, len(x), ROWS)])


def _among(points: Array, centres: Array, squared_radii: Array) -> np.ndarray:
    """Whether each of the points (N, D) lies in any of the balls."""
    inside = lambda rows: (_squared_distances(rows, centres) <= squared_radii).any(1)
    return np.concatenate(
        [np.asarray(inside(points[i : i + ROWS])) for i in range(0, len(points), ROWS)]
    )


# --- errors -----------------------------------------------------------------------------------------------------------


class Jackknife(NamedTuple):
    """stderr: of a statistic, over draws of the images; extrapolated: without the part of its bias that falls as 1 / N
    (for FID, what Chong & Forsyth, arXiv:1911.07023, call its value for infinitely many images)."""

    stderr: float
    extrapolated: float


def jackknife(whole: float, without: Sequence[float]) -> Jackknife:
    """From a statistic of all images, and of all but each of G equal groups of them, G > 1 (Quenouille 1956)."""
    groups, values = len(without), np.asarray(without, np.float64)
    stderr = math.sqrt((groups - 1) / groups * np.sum((values - values.mean()) ** 2))
    return Jackknife(stderr, float(groups * whole - (groups - 1) * values.mean()))
