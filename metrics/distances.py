"""Distances between two sets of images, given their features (N, D).

Frechet distance (FID), kernel distance (KID), inception score, and precision and recall. The
features decide what a distance is called: a Frechet distance is an FID if they are those of the
published Inception network.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from errors import InputError

CHUNK_ROWS = 1024  # Number of features whose distances to all others are in memory at a time.


class Estimate(NamedTuple):
    """A statistic of N images, its standard error, and its value without the bias of order 1 / N.

    NaN stands for unknown ones. For FID, the last is the value for infinitely many images (Chong &
    Forsyth, arXiv:1911.07023).
    """

    value: float
    stderr: float
    extrapolated: float = math.nan


# --- Frechet distance ---


@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
    """Mean (D,) and unbiased covariance (D, D) of features in float64; `count` may be unknown."""

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
    real: Float[np.ndarray, "real d"], generated: Float[np.ndarray, "generated d"], groups: int = 10
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
    xx, yy, xy = (_kernel_sums(a, b) for a, b in ((x, x), (y, y), (x, y)))
    sizes = np.array([[len(group) for group in each] for each in (x, y)])

    def squared_mmd(kept: np.ndarray) -> float:
        """The unbiased squared MMD of the groups with these numbers."""
        chosen = np.ix_(kept, kept)
        n, m = sizes[:, kept].sum(1)
        within = xx[chosen].sum() / (n * (n - 1)) + yy[chosen].sum() / (m * (m - 1))
        return float(within - 2 * xy[chosen].sum() / (n * m))

    return jackknife(squared_mmd, groups)


def _kernel_sums(a: list[np.ndarray], b: list[np.ndarray]) -> np.ndarray:
    """The sums of the kernel (G, G) over pairs of different images, for each pair of groups."""
    sums = np.zeros((len(a), len(b)))
    for i, j in np.ndindex(sums.shape):
        if a is b and j < i:
            sums[i, j] = sums[j, i]
            continue
        kernel = (a[i] @ b[j].T / a[i].shape[1] + 1) ** 3
        sums[i, j] = kernel.sum() - (np.trace(kernel) if a is b and i == j else 0)
    return sums


# --- inception score ---


def inception_score(logits: Float[np.ndarray, "images classes"]) -> float:
    """exp of the mean KL divergence of p(class | image) from p(class) (arXiv:1606.03498)."""
    logits = np.asarray(logits, np.float64)
    log_p = logits - logits.max(1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(1, keepdims=True))
    log_mean = np.log(np.maximum(np.exp(log_p).mean(0), np.finfo(np.float64).tiny))
    return float(np.exp((np.exp(log_p) * (log_p - log_mean)).sum(1).mean()))


# --- precision and recall ---

HALVES = 20  # Random halves of the generated images, for the standard error of recall.
NEIGHBORS_TO_SEARCH = 12  # For each neighbor required; half of them are in a random half.


def precision_recall(
    real: Float[np.ndarray, "real d"], generated: Float[np.ndarray, "generated d"], k: int = 3
) -> dict[str, Estimate]:
    """Precision and recall of Kynkaanniemi et al. (arXiv:1904.06991), in float32, by name.

    They are the shares of generated images within the real set, and of real images within the
    generated set. An image is within a set if for any image of the set, it is no further away than
    the k-th nearest neighbor of that image. The standard errors are those over draws of the
    generated images, with the real images fixed: for precision a binomial one, and for recall, as
    the distance to a neighbor is not smooth, that of the jackknife that deletes a random half (Shao
    & Wu 1989), NaN for 2 k images or fewer. Raise InputError if a set has k images or fewer.
    """
    if min(len(real), len(generated)) <= k:
        raise InputError(
            f"{len(real)} and {len(generated)} images are too few for neighbor number {k}; "
            f"at least {k + 1} are required."
        )
    shift = np.mean(real, 0, dtype=np.float64)  # Reduces cancellation; distances do not change.
    a, b = (jnp.asarray(x - shift, jnp.float32) for x in (real, generated))
    count = len(b)
    precision = float(_in_chunks(_within, b, a, _squared_radii(a, k)).mean())
    recall = float(_in_chunks(_within, a, b, _squared_radii(b, k)).mean())
    recall_stderr = math.nan
    if count // 2 > k:
        random = np.random.default_rng(0).random((HALVES, count))
        halves = np.argsort(random, 1) < count // 2
        over_halves = _in_chunks(_within, a, b, _squared_radii(b, k, halves)).mean(0)
        recall_stderr = float(over_halves.std(ddof=1))
    binomial = Estimate(precision, math.sqrt(precision * (1 - precision) / count))
    return {"precision": binomial, "recall": Estimate(recall, recall_stderr)}


def _squared_radii(x: Array, k: int, subsets: np.ndarray | None = None) -> Array:
    """Squared distances (S, N) to the k-th neighbor in subsets (S, N) of x; -1 outside of them."""
    selected = jnp.ones((1, len(x)), bool) if subsets is None else jnp.asarray(subsets)
    searched = min(len(x), (1 if subsets is None else NEIGHBORS_TO_SEARCH) * (k + 1))
    nearest = functools.partial(_nearest, k=k, searched=searched)
    return jnp.where(selected, _in_chunks(nearest, x, x, selected).T, -1)


@functools.partial(jax.jit, static_argnames=("k", "searched"))
def _nearest(rows: Array, x: Array, selected: Array, *, k: int, searched: int) -> Array:
    """Squared distances of rows (R, D) of x to the k-th neighbor in each subset, (R, S)."""
    negative, indices = jax.lax.top_k(-_squared_distances(rows, x), searched)
    number = jnp.cumsum(selected[:, indices], -1)  # Of each selected neighbor, from 1.
    position = jnp.argmax(number == k + 1, -1)  # The nearest is the point itself.
    return jnp.take_along_axis(-negative[None], position[..., None], -1)[..., 0].T


@jax.jit
def _within(points: Array, centers: Array, squared_radii: Array) -> Array:
    """Whether each point is within any of the balls (P, S), for each set of radii (S, N)."""
    distances = _squared_distances(points, centers)
    return jax.lax.map(lambda radii: (distances <= radii).any(1), squared_radii).T


@jax.jit
def _squared_distances(a: Float[Array, "n d"], b: Float[Array, "m d"]) -> Float[Array, "n m"]:
    products = jnp.matmul(a, b.T, precision="highest")
    return jnp.maximum(jnp.sum(a * a, 1)[:, None] + jnp.sum(b * b, 1) - 2 * products, 0)


def _in_chunks(function: Callable[..., Array], x: Array, *others: Array) -> np.ndarray:
    """function(x, *others), computed for CHUNK_ROWS rows of x at a time."""
    chunks = (x[start : start + CHUNK_ROWS] for start in range(0, len(x), CHUNK_ROWS))
    return np.concatenate([np.asarray(function(chunk, *others)) for chunk in chunks])


# --- standard errors ---


def jackknife(statistic: Callable[[np.ndarray], float], groups: int) -> Estimate:
    """The jackknife (Quenouille 1956) of a statistic of the numbers of equally large groups."""
    numbers = np.arange(groups)
    value = statistic(numbers)
    without = np.array([statistic(np.delete(numbers, group)) for group in numbers])
    stderr = math.sqrt((groups - 1) / groups * np.sum((without - without.mean()) ** 2))
    return Estimate(value, stderr, float(groups * value - (groups - 1) * without.mean()))
