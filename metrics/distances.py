"""Distances between two sets of images, given their features (N, D).

Frechet distance (FID), kernel distance (KID), inception score, and precision and recall. The
features decide what a distance is called: a Frechet distance is an FID if they are those of the
published Inception network.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from errors import InputError

CHUNK_ROWS = 1024  # Number of features whose distances to all others are in memory at a time.


class Estimate(NamedTuple):
    """A value and its standard error, NaN if it is unknown."""

    value: float
    stderr: float


# --- Frechet distance ---


@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
    """Mean (D,) and unbiased covariance (D, D) of features, in float64; 0 for a single image.

    Attributes:
      count: the number of images; None if a file does not state it. Such moments cannot be merged.
    """

    count: int | None
    mean: Float[np.ndarray, " d"]
    covariance: Float[np.ndarray, "d d"]

    @classmethod
    def from_features(cls, features: Float[np.ndarray, "images d"]) -> Moments:
        """The moments of features (N, D), N > 0. Raise InputError if any is not finite."""
        x = np.asarray(features, np.float64)
        mean = x.mean(0)
        if not np.isfinite(mean).all():
            raise InputError(
                f"Features of {len(x)} images are not finite: check that the network of "
                "eval.features is not damaged."
            )
        centered = x - mean
        return cls(len(x), mean, centered.T @ centered / max(len(x) - 1, 1))

    def merge(self, other: Moments) -> Moments:
        """The moments of the union of both sets (Chan, Golub & LeVeque 1983)."""
        if self.count is None or other.count is None:
            raise ValueError("Moments of an unknown number of images cannot be merged.")
        count = self.count + other.count
        delta = other.mean - self.mean
        scatter = (self.count - 1) * self.covariance + (other.count - 1) * other.covariance
        scatter += np.outer(delta, delta) * (self.count * other.count / count)
        return Moments(count, self.mean + delta * (other.count / count), scatter / (count - 1))

    @functools.cached_property
    def factor(self) -> Float[np.ndarray, "d rank"]:
        """L (D, rank) with L L^T the covariance; eigenvalues within rounding error count as 0."""
        values, vectors = np.linalg.eigh(self.covariance)
        positive = values > values[-1] * len(values) * np.finfo(np.float64).eps
        return vectors[:, positive] * np.sqrt(values[positive])

    @property
    def rank_deficient(self) -> bool:
        """Whether the covariance is singular: too few images, or linearly dependent features."""
        return self.factor.shape[1] < len(self.mean)


def frechet_distance(a: Moments, b: Moments) -> float:
    """The distance between Gaussians with these moments (arXiv:1706.08500, Eq. (6)).

    tr (A B)^(1/2) is computed as the sum of the square roots of the eigenvalues of L_B^T A L_B.
    These are real and, up to rounding, not negative, for covariances of any rank; a matrix root may
    be complex. L_B is computed once for each b. Raise InputError if the dimensions differ.
    """
    if a.mean.shape != b.mean.shape:
        raise InputError(
            f"Features with {len(a.mean)} and {len(b.mean)} entries come from different networks; "
            "compare features of the same one."
        )
    trace = np.trace(a.covariance) + np.trace(b.covariance)
    squares = np.linalg.eigvalsh(b.factor.T @ a.covariance @ b.factor)
    root_trace = np.sqrt(np.maximum(squares, 0)).sum()
    return max(0.0, float(np.sum((a.mean - b.mean) ** 2) + trace - 2 * root_trace))


# --- kernel distance ---


def kernel_distance(
    real: Float[np.ndarray, "real d"],
    generated: Float[np.ndarray, "generated d"],
    max_block_size: int = 1000,
) -> Estimate:
    """KID (arXiv:1801.01401): the unbiased squared MMD of the kernel (x y / D + 1)^3.

    The value is a mean over blocks of images, in the given order; as in TF-GAN there are as few
    blocks as possible, of nearly equal sizes. The standard error of a single block is NaN. Raise
    InputError if a block would have fewer than two images.
    """
    count = math.ceil(max(len(real), len(generated)) / max_block_size)
    if min(len(real), len(generated)) < 2 * count:
        raise InputError(
            f"{len(real)} and {len(generated)} images cannot be split into {count} blocks of at "
            f"least 2: raise max_block_size = {max_block_size}."
        )
    values = []
    for x, y in zip(_split(real, count), _split(generated, count)):
        values.append(_squared_mmd(x.astype(np.float64), y.astype(np.float64)))
    blocks = np.array(values)
    stderr = blocks.std(ddof=1) / math.sqrt(count) if count > 1 else math.nan
    return Estimate(float(blocks.mean()), float(stderr))


def _split(x: np.ndarray, count: int) -> list[np.ndarray]:
    """Split into `count` blocks of nearly equal sizes, the longer ones last."""
    sizes = np.full(count, len(x) // count)
    sizes[count - len(x) % count :] += 1
    return np.split(x, np.cumsum(sizes)[:-1])


def _squared_mmd(x: np.ndarray, y: np.ndarray) -> float:
    within = _mean_off_diagonal(_kernel(x, x)) + _mean_off_diagonal(_kernel(y, y))
    return within - 2 * _kernel(x, y).mean()


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _mean_off_diagonal(k: np.ndarray) -> float:
    return (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))


# --- inception score ---


def inception_score(logits: Float[np.ndarray, "images classes"]) -> float:
    """exp of the mean KL divergence of p(class | image) from p(class) (arXiv:1606.03498).

    All images form one group; the official score averages over ten.
    """
    logits = np.asarray(logits, np.float64)
    log_p = logits - logits.max(1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(1, keepdims=True))
    log_mean = np.log(np.maximum(np.exp(log_p).mean(0), np.finfo(np.float64).tiny))
    return float(np.exp((np.exp(log_p) * (log_p - log_mean)).sum(1).mean()))


# --- precision and recall ---


class PrecisionRecall(NamedTuple):
    """Shares of images: generated ones within the real set; real ones within the generated set."""

    precision: float
    recall: float


def precision_recall(
    real: Float[np.ndarray, "real d"], generated: Float[np.ndarray, "generated d"], k: int = 3
) -> PrecisionRecall:
    """Precision and recall of Kynkaanniemi et al. (arXiv:1904.06991), in float32.

    An image is within a set if for any image of the set, it is no further away than the k-th
    nearest neighbor of that image. Raise InputError if a set has k images or fewer.
    """
    if min(len(real), len(generated)) <= k:
        raise InputError(
            f"{len(real)} and {len(generated)} images are too few for neighbor number {k}; "
            f"at least {k + 1} are required."
        )
    shift = np.mean(real, 0, dtype=np.float64)  # Reduces cancellation; distances do not change.
    a, b = (jnp.asarray(x - shift, jnp.float32) for x in (real, generated))
    precision = _within(b, a, _squared_radii(a, k))
    recall = _within(a, b, _squared_radii(b, k))
    return PrecisionRecall(float(precision.mean()), float(recall.mean()))


@jax.jit
def _squared_distances(a: Float[Array, "n d"], b: Float[Array, "m d"]) -> Float[Array, "n m"]:
    products = jnp.matmul(a, b.T, precision="highest")
    return jnp.maximum(jnp.sum(a * a, 1)[:, None] + jnp.sum(b * b, 1) - 2 * products, 0)


def _squared_radii(x: Float[Array, "n d"], k: int) -> np.ndarray:
    """Squared distances (N,) to the k-th neighbor; the nearest of k + 1 is the point itself."""

    def radii(rows: Array) -> Array:
        return -jax.lax.top_k(-_squared_distances(rows, x), k + 1)[0][:, -1]

    return _in_chunks(radii, x)


def _within(points: Array, centers: Array, squared_radii: np.ndarray) -> np.ndarray:
    """Whether each point (N, D) is within any of the balls."""

    def within(rows: Array) -> Array:
        return (_squared_distances(rows, centers) <= squared_radii).any(1)

    return _in_chunks(within, points)


def _in_chunks(function: Callable[[Array], Array], x: Array) -> np.ndarray:
    """`function` of CHUNK_ROWS rows at a time, concatenated."""
    starts = range(0, len(x), CHUNK_ROWS)
    return np.concatenate([np.asarray(function(x[i : i + CHUNK_ROWS])) for i in starts])


# --- standard errors ---


class Jackknife(NamedTuple):
    """The jackknife's estimates for a statistic of N images.

    Attributes:
      stderr: its standard error.
      extrapolated: its value without the bias of order 1 / N. For FID this is the value for
        infinitely many images (Chong & Forsyth, arXiv:1911.07023).
    """

    stderr: float
    extrapolated: float


def jackknife(full: float, leave_one_out: Sequence[float] | np.ndarray) -> Jackknife:
    """The grouped jackknife (Quenouille 1956).

    `full` is the statistic of all images; `leave_one_out` holds its G values without each of G > 1
    groups of equal size.
    """
    groups = len(leave_one_out)
    values = np.asarray(leave_one_out, np.float64)
    stderr = math.sqrt((groups - 1) / groups * np.sum((values - values.mean()) ** 2))
    return Jackknife(stderr, float(groups * full - (groups - 1) * values.mean()))
