"""The variational bound of -log p as a sum over noise levels.

The forward process adds noise of variance S = sigma^2 - sigma(t_min)^2 to y = x / alpha(t_min),
where sigma = std / alpha. Let sigma_0 < ... < sigma_n be noise levels from t_min to T, and x_i the
states there. The bound of `likelihood.elbo` is the mean of a sum of

- the divergence of x_T from the prior, which needs no network;
- for each i >= 1 the integral of |score + z / sqrt(S)|^2 / 2 over S from S_i to S_{i+1}, for the
  score of y and the noise sqrt(S) z, which is the part of the network;
- the rest, which is -log p(x | x_1): the detail of x that the noise of sigma_1 hides.

With the exact score, the part of the network is the difference of the mutual informations I(x; x_i)
and I(x; x_{i+1}). See Kingma et al. 2021 (arXiv:2107.00630, Eq. (11)), where x is discrete.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import likelihood
import sampling
import score_sde as ss
from sde_lib import SDE, Score
from solvers.scaled_flow import DATA_STD, find_endpoints


class Terms(NamedTuple):
    """The terms of the bound for B images, in nats; their sum is that of `likelihood.elbo`.

    Attributes:
      sigma: the noise levels std / alpha (n + 1,), from that of t_min to that of T.
      detail: the detail of x that the noise of sigma[1] hides (B,).
      levels: the network between sigma[i] and sigma[i + 1], for i = 1 .. n - 1 (n - 1, B).
      prior: the divergence of x_T from the prior (B,).
    """

    sigma: Array
    detail: Array
    levels: Array
    prior: Array


def bound_terms(score: Score, sde: SDE, x: Array, keys: Array, *, levels: int = 32) -> Terms:
    """Return the terms of `likelihood.elbo`, whose arguments these are, for n = `levels`.

    `elbo` states what the n parts of the range of sigma add to the bound of N(0, c^2 I) data. The
    terms of that bound follow from the divergences of x_i from N(0, (c^2 + sigma_i^2) I).
    """
    ends, dims = find_endpoints(sde), math.prod(x.shape[1:])
    q = jnp.linspace(0, jnp.arccosh(ends.sigma[1] / ends.sigma[0]), levels + 1)
    added = (ends.sigma[0] * jnp.sinh(q)[:, None]) ** 2
    total = DATA_STD**2 + ends.sigma[0] ** 2 + added
    y = x.reshape(len(x), -1) / ends.alpha[0]
    mean_square = jnp.square(y).sum(-1) + dims * added
    cross = 0.5 * (mean_square / total + dims * jnp.log(2 * math.pi * total))
    entropy = 0.5 * dims * jnp.log(2 * math.pi * math.e * added[1:])
    gaussian = jnp.concatenate([cross[:1] + dims * jnp.log(ends.alpha[0]), cross[1:] - entropy])

    prior_var = sde.prior_std**2
    prior_cross = 0.5 * (
        ends.alpha[1] ** 2 * mean_square[-1] / prior_var + dims * jnp.log(2 * math.pi * prior_var)
    )
    prior = prior_cross - entropy[-1] - dims * jnp.log(ends.alpha[1])
    parts = gaussian[:-1] - gaussian[1:] + likelihood.elbo(score, sde, x, keys, pairs=levels).parts
    return Terms(ends.sigma[0] * jnp.cosh(q), parts[0], parts[1:], prior)


class Contributions(NamedTuple):
    """What noise levels contribute to the bound of images, in bits/dim.

    Attributes:
      sigma: the levels (n + 1,), from a quarter of a grey level.
      network, independent: those of the parts between two levels (n,), for the network and for
        independent Gaussian pixels of the same variances.
      detail: that of all finer levels.
      total: the bound.
    """

    sigma: np.ndarray
    network: np.ndarray
    independent: np.ndarray
    detail: float
    total: float


def contributions(model: ss.TrainedModel, count: int, levels: int) -> Contributions:
    """Return the contributions to the bound of the first `count` held-out images of a model."""
    pixels, scaler = model.experiment.test.batch(np.arange(count)).pixels, model.experiment.scaler
    x, dims = model.from_images(pixels, seed=0), pixels[0].size
    keys = sampling.image_keys(jax.random.key(1), jnp.arange(count))
    run = functools.partial(bound_terms, model.score, model.sde, levels=levels)
    terms = jax.jit(run)(x, keys)

    def bits(nats: Array, log_scale: float = 0.0) -> np.ndarray:
        return np.asarray(likelihood.bits_per_dim(-nats, dims, log_scale).mean(-1))

    parts = np.array([bits(terms.detail, scaler.log_scale), *bits(terms.levels)])
    edges, grey_level = np.asarray(terms.sigma), np.exp(scaler.log_scale)
    first = int(np.searchsorted(edges, grey_level / 4))
    variances = np.var(x, 0).reshape(-1, 1)
    information = 0.5 * np.log2(1 + variances / edges[first:] ** 2).mean(0)
    return Contributions(
        edges[first:],
        parts[first:],
        -np.diff(information),
        detail=parts[:first].sum(),
        total=parts.sum() + bits(terms.prior),
    )
