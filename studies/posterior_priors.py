"""Priors whose scores and posteriors are known: mixtures of Gaussians, and random increments.

A score is that of u = x_0 + level z, for standard normal z, at any noise level. Posteriors of
mixtures are mixtures. An event of increments has independent entries N(0, variance), whose variance
is random, which makes them Laplace or Student, for example. Gibbs sampling of the variances, given
which all is Gaussian, draws from their posterior.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.special import softmax

ENTRIES = 64
JUMPS = 0.1  # the probability that a Bernoulli-Laplace increment is not 0
NEVER = 1e-300  # the weight of a component that is not used

# --- mixtures -------------------------------------------------------------------------------------


class Mixture(NamedTuple):
    """Components N(means[k], covariances[k]) in D dimensions with K weights; float64."""

    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray

    @property
    def arrays(self) -> tuple[Any, ...]:
        """What `score` takes: logarithms of the weights, means, eigenvalues and eigenvectors."""
        found = np.log(self.weights + NEVER), self.means, *np.linalg.eigh(self.covariances)
        return tuple(np.asarray(each, np.float32) for each in found)

    @staticmethod
    def score(arrays: tuple[Array, ...], u: Array, level: Array) -> Array:
        """Return the score of u (B, D) at noise levels (B, 1)."""
        logits, means, values, vectors = arrays
        along = jnp.einsum("bkd,kde->bke", u[:, None] - means, vectors)
        total = values + level[:, None] ** 2
        shares = jax.nn.softmax(logits - 0.5 * (along**2 / total + jnp.log(total)).sum(-1))
        return -jnp.einsum("bk,bke,kde->bd", shares, along / total, vectors)

    @property
    def std(self) -> float:
        """The standard deviation of an entry, as a root mean square over entries."""
        mean = self.weights @ self.means
        variances = np.diagonal(self.covariances, axis1=1, axis2=2) + (self.means - mean) ** 2
        return math.sqrt((self.weights @ variances).mean())

    def draw(
        self, rng: np.random.Generator, count: int, number: np.ndarray | None = None
    ) -> np.ndarray:
        """Return events (count, D), of random components or of those with a number (count,)."""
        if number is None:
            number = rng.choice(len(self.weights), count, p=self.weights)
        values, vectors = np.linalg.eigh(self.covariances)
        z = np.sqrt(np.maximum(values, 0))[number] * rng.normal(size=(count, values.shape[1]))
        return self.means[number] + np.einsum("nde,ne->nd", vectors[number], z)

    def posterior(self, matrix: np.ndarray, y: np.ndarray, noise: float) -> tuple[Mixture, float]:
        """Return the mixture given y (M,) = matrix x + noise, and log p(y)."""
        gram = matrix @ self.covariances @ matrix.T + noise**2 * np.eye(len(matrix))
        gain = self.covariances @ matrix.T @ np.linalg.inv(gram)
        residual = y - self.means @ matrix.T
        logs = -0.5 * np.einsum("ki,kij,kj->k", residual, np.linalg.inv(gram), residual)
        logs += np.log(self.weights + NEVER) - 0.5 * np.linalg.slogdet(2 * np.pi * gram)[1]
        means = self.means + np.einsum("kdm,km->kd", gain, residual)
        rest = self.covariances - gain @ matrix @ self.covariances
        rest = (rest + rest.swapaxes(1, 2)) / 2
        return Mixture(softmax(logs), means, rest), float(np.logaddexp.reduce(logs))

    def logits(self, x: np.ndarray) -> np.ndarray:
        """Return the logarithms of each weight times its density at events x (N, D); (N, K)."""
        values, vectors = np.linalg.eigh(self.covariances + 1e-12 * np.eye(x.shape[1]))
        along = np.einsum("nkd,kde->nke", x[:, None] - self.means, vectors)
        logs = along**2 / values + np.log(2 * np.pi * values)
        return np.log(self.weights + NEVER) - 0.5 * logs.sum(-1)

    def shares(self, x: np.ndarray) -> np.ndarray:
        """Return the share of the events x (N, D) that are most likely of each component (K,)."""
        return np.bincount(self.logits(x).argmax(1), minlength=len(self.weights)) / len(x)

    def measured(self, matrix: np.ndarray) -> Mixture:
        """Return the distribution of matrix x."""
        return Mixture(self.weights, self.means @ matrix.T, matrix @ self.covariances @ matrix.T)

    def given(self, matrix: np.ndarray, z: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return an event (N, D) with matrix x = z for each z (N, M)."""
        measured = self.measured(matrix)
        logits = measured.logits(z)
        number = (logits + rng.gumbel(size=logits.shape)).argmax(1)
        gain = self.covariances @ matrix.T @ np.linalg.inv(measured.covariances)
        x = self.draw(rng, len(z), number)
        return x + np.einsum("ndm,nm->nd", gain[number], z - x @ matrix.T)


def random_modes(
    weights: np.ndarray,
    entries: int,
    spread: float,
    widths: tuple[float, float],
    measured: int,
    seed: int = 7,
) -> tuple[Mixture, np.ndarray]:
    """Return a mixture of random modes, and a random matrix (measured, entries)."""
    rng, count = np.random.default_rng(seed), len(weights)
    means = spread * rng.normal(size=(count, entries))
    axes = np.linalg.qr(rng.normal(size=(count, entries, entries)))[0]
    variances = rng.uniform(*widths, (count, 1, entries)) ** 2
    matrix = rng.normal(size=(measured, entries)) / math.sqrt(entries)
    return Mixture(weights, means, axes * variances @ axes.swapaxes(1, 2)), matrix


class Points(Mixture):
    """A mixture of equal weights and equal covariances variance * I, whose score is cheaper."""

    @property
    def arrays(self) -> tuple[Any, ...]:
        """What `score` takes: means, and the variance."""
        return np.float32(self.means), np.float32(self.covariances[0, 0, 0])

    @staticmethod
    def score(arrays: tuple[Array, ...], u: Array, level: Array) -> Array:
        """Return the score of u (B, D) at noise levels (B, 1)."""
        means, variance = arrays
        total = variance + level**2
        products = u @ means.T - 0.5 * jnp.square(means).sum(1)
        return (jax.nn.softmax(products / total) @ means - u) / total


# --- increments -----------------------------------------------------------------------------------


@jax.custom_jvp
def entrywise_score(arrays: tuple[Array, ...], u: Array, level: Array) -> Array:
    """Return the score of increments u (B, D) at noise levels (B, 1)."""
    return _with_slope(arrays, u, level)[0]


@entrywise_score.defjvp
def _(primals: Any, tangents: Any) -> tuple[Array, Array]:
    score, slope = _with_slope(*primals)
    return score, slope * tangents[1]  # Only u is differentiated.


def _with_slope(arrays: tuple[Array, ...], u: Array, level: Array) -> tuple[Array, Array]:
    """Return the score and its derivative of entries u (B, D)."""
    logits, variances = arrays
    total, square = variances + level[..., None] ** 2, u[..., None] ** 2
    shares = jax.nn.softmax(logits - 0.5 * (square / total + jnp.log(total))) / total
    precision = shares.sum(-1)
    return -u * precision, u**2 * ((shares / total).sum(-1) - precision**2) - precision


class Increments(NamedTuple):
    """Independent entries N(0, variance), whose variance is variances[k] with weights[k]."""

    weights: np.ndarray
    variances: np.ndarray
    entries: int = ENTRIES

    @property
    def arrays(self) -> tuple[Any, ...]:
        """What `score` takes: logarithms of the weights, and variances."""
        found = np.log(self.weights + NEVER), self.variances
        return tuple(np.asarray(each, np.float32) for each in found)

    score = staticmethod(entrywise_score)

    @property
    def std(self) -> float:
        """The standard deviation of an entry."""
        return math.sqrt(self.weights @ self.variances)

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Return events (count, D)."""
        shape = (count, self.entries)
        number = rng.choice(len(self.weights), shape, p=self.weights)
        return np.sqrt(self.variances[number]) * rng.normal(size=shape)

    def shares(self, x: np.ndarray) -> np.ndarray:
        """Return the shares of the entries of events (N, D) that are large, for two components."""
        return 2 / x.shape[1] * (np.abs(x) > 0.2).mean(0)

    def mixture(self) -> Mixture:
        """Return the same distribution with a component for each combination of variances."""
        found = np.array(list(itertools.product(range(len(self.weights)), repeat=self.entries)))
        covariances = self.variances[found][:, :, None] * np.eye(self.entries)
        return Mixture(self.weights[found].prod(1), np.zeros(found.shape), covariances)


def increments(kind: str) -> Increments:
    """Return increments of variance 1: 'Gaussian', 'Laplace', 'Bernoulli-Laplace' or 'Student'.

    Variances are on a grid of equal steps of their logarithm, so that densities differ by less than
    0.5 % from those of the names. Student has 3 degrees of freedom.
    """
    grid = np.exp(np.linspace(math.log(1e-6), math.log(1e5), 33))
    laplace = grid * np.exp(-grid)
    density = {
        "Gaussian": grid == grid[18],
        "Laplace": laplace,
        "Bernoulli-Laplace": laplace,
        "Student": grid**-1.5 * np.exp(-0.5 / grid),
    }[kind]
    weights = density / density.sum() * (JUMPS if kind == "Bernoulli-Laplace" else 1)
    weights, variances = np.append(weights, 1 - weights.sum()), np.append(grid, 0.0)
    weights = np.maximum(weights, 0)
    return Increments(weights, variances / (weights @ variances))


def gibbs(
    prior: Increments,
    matrix: np.ndarray,
    y: np.ndarray,
    noise: float,
    rng: np.random.Generator,
    *,
    count: int,
    burn_in: int,
) -> np.ndarray:
    """Return `count` events of each of B Markov chains given y (B, M) = matrix x + noise.

    A sweep draws the variance of each entry given the others and y, with x integrated out, and then
    x given all variances; (B, count, D). So entries that are 0 need no moves between models.
    """
    chains, (rows, entries) = len(y), matrix.shape
    logits, choices = np.log(prior.weights + NEVER), prior.variances
    variances = choices[rng.choice(len(choices), (chains, entries), p=prior.weights)]
    drawn = []
    for sweep in range(burn_in + count):
        inverse = _inverse_gram(matrix, variances, noise)
        for i, column in enumerate(matrix.T):
            along = inverse @ column
            rest = 1 - variances[:, i] * (along @ column)  # without entry i
            size, match = (along @ column) / rest, (along * y).sum(1) / rest
            factor = 1 + choices * size[:, None]
            logs = logits + 0.5 * (choices * match[:, None] ** 2 / factor - np.log(factor))
            new = choices[(logs + rng.gumbel(size=logs.shape)).argmax(1)]
            change = (new - variances[:, i]) / (1 + (new - variances[:, i]) * (along @ column))
            inverse -= change[:, None, None] * along[:, :, None] * along[:, None]
            variances[:, i] = new
        if sweep >= burn_in:
            inverse = _inverse_gram(matrix, variances, noise)
            x = np.sqrt(variances) * rng.normal(size=variances.shape)
            error = y - x @ matrix.T - noise * rng.normal(size=(chains, rows))
            gain = np.einsum("bij,bj->bi", inverse, error) @ matrix
            drawn.append(x + variances * gain)
    return np.stack(drawn, 1)


def _inverse_gram(matrix: np.ndarray, variances: np.ndarray, noise: float) -> np.ndarray:
    gram = (matrix * variances[:, None]) @ matrix.T
    return np.linalg.inv(gram + noise**2 * np.eye(len(matrix)))
