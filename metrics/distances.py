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
    groups: int = 10,
) -> Estimate:
    """KID (arXiv:1801.01401): the unbiased squared MMD of the kernel (x y / D + 1)^3.

    The value is that of all pairs of images, so their order does not change it. The standard error
    is that of the jackknife over `groups` groups, each of which is the same share of both sets, in
    the given order: shuffle sets that are sorted. Raise InputError if a set has fewer than three
    images for each group.
    """
    if min(len(real), len(generated)) < 3 * groups:
        raise InputError(
            f"{len(real)} and {len(generated)} images are too few for the kernel distance with "
            f"{groups} groups; at least {3 * groups} are required."
        )
    x, y = (np.array_split(np.asarray(each, np.float64), groups) for each in (real, generated))
    sums = KernelSums(_kernel_sums(x, x), _kernel_sums(y, y), _kernel_sums(x, y))
    n, m = (np.array([len(group) for group in each]) for each in (x, y))
    value = sums.squared_mmd(n, m, np.ones(groups, bool))
    without = [sums.squared_mmd(n, m, np.arange(groups) != group) for group in range(groups)]
    return Estimate(value, jackknife(value, without).stderr)


class KernelSums(NamedTuple):
    """Sums of the kernel over pairs of different images, for each pair of groups (G, G)."""

    real: np.ndarray
    generated: np.ndarray
    between: np.ndarray

    def squared_mmd(self, real: np.ndarray, generated: np.ndarray, keep: np.ndarray) -> float:
        """The unbiased squared MMD of the groups that `keep` (G,) selects, of these sizes (G,)."""
        chosen = np.ix_(keep, keep)
        n, m = real[keep].sum(), generated[keep].sum()
        within = self.real[chosen].sum() / (n * (n - 1))
        within += self.generated[chosen].sum() / (m * (m - 1))
        return float(within - 2 * self.between[chosen].sum() / (n * m))


def _kernel_sums(a: list[np.ndarray], b: list[np.ndarray]) -> np.ndarray:
    """The sums (G, G) over pairs; within a group, over pairs of different images."""
    sums = np.empty((len(a), len(b)))
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            if a is b and j < i:
                sums[i, j] = sums[j, i]
                continue
            kernel = (x @ y.T / x.shape[1] + 1) ** 3
            sums[i, j] = kernel.sum() - (np.trace(kernel) if a is b and i == j else 0)
    return sums


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

HALVES = 20  # Random halves of the generated images, for the standard error of recall.
NEIGHBORS_TO_SEARCH = 12  # For each neighbor required; half of them are in a random half.


class PrecisionRecall(NamedTuple):
    """Shares of images: generated ones within the real set; real ones within the generated set."""

    precision: Estimate
    recall: Estimate


def precision_recall(
    real: Float[np.ndarray, "real d"], generated: Float[np.ndarray, "generated d"], k: int = 3
) -> PrecisionRecall:
    """Precision and recall of Kynkaanniemi et al. (arXiv:1904.06991), in float32.

    An image is within a set if for any image of the set, it is no further away than the k-th
    nearest neighbor of that image. The standard errors are those over draws of the generated
    images, with the real images fixed: binomial for precision, and for recall by `_recall_stderr`.
    Raise InputError if a set has k images or fewer.
    """
    if min(len(real), len(generated)) <= k:
        raise InputError(
            f"{len(real)} and {len(generated)} images are too few for neighbor number {k}; "
            f"at least {k + 1} are required."
        )
    shift = np.mean(real, 0, dtype=np.float64)  # Reduces cancellation; distances do not change.
    a, b = (jnp.asarray(x - shift, jnp.float32) for x in (real, generated))
    precision = float(_within(b, a, _squared_radii(a, k)).mean())
    recall = float(_within(a, b, _squared_radii(b, k)).mean())
    binomial = math.sqrt(precision * (1 - precision) / len(b))
    return PrecisionRecall(Estimate(precision, binomial), Estimate(recall, _recall_stderr(a, b, k)))


def _recall_stderr(real: Array, generated: Array, k: int) -> float:
    """The standard error of recall over draws of the generated images; NaN for 2 k or fewer.

    A draw changes the radii as well as the centers, and the distance to a neighbor is not a smooth
    statistic. The jackknife that deletes a random half is consistent for such statistics (Shao & Wu
    1989): the deviation of recall over halves of the images estimates that over draws of all.
    """
    count = len(generated)
    if count // 2 <= k:
        return math.nan
    rng = np.random.default_rng(0)
    chosen = np.argsort(rng.random((HALVES, count)), 1) < count // 2
    radii = _squared_radii_of_halves(generated, k, chosen)

    def within(rows: Array) -> Array:
        distances = _squared_distances(rows, generated)
        return jax.lax.map(lambda radii: (distances <= radii).any(1), radii).T

    return float(_in_chunks(jax.jit(within), real).mean(0).std(ddof=1))


def _squared_radii_of_halves(x: Array, k: int, chosen: np.ndarray) -> Array:
    """Squared distances (S, N) to the k-th neighbor among the points that `chosen` (S, N) selects.

    They are -1 for points that are not selected.
    """
    neighbors = min(len(x), NEIGHBORS_TO_SEARCH * (k + 1))
    selected = jnp.asarray(chosen)

    def nearest(rows: Array) -> Array:
        negative, indices = jax.lax.top_k(-_squared_distances(rows, x), neighbors)
        number = jnp.cumsum(selected[:, indices], -1)  # Of each selected neighbor, from 1.
        position = jnp.argmax(number == k + 1, -1)  # The nearest is the point itself.
        return jnp.take_along_axis(-negative[None], position[..., None], -1)[..., 0].T

    return jnp.where(selected, _in_chunks(jax.jit(nearest), x).T, -1)


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
