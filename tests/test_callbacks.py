"""Scores that PyTorch and NumPy compute, against the same scores in JAX and closed forms."""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import score_sde as ss
from tests import gaussian
from tests.refusal import refused

SDE = ss.VPSDE()
MEAN, STD = 0.3, 0.5


def of_gaussian(library):
    """The score of N(MEAN, STD^2) at all times, by a library with NumPy's names."""

    def score(x, t):
        log_alpha = -(t**2) * (SDE.beta_max - SDE.beta_min) / 4 - t * SDE.beta_min / 2
        alpha, var = library.exp(log_alpha), 1 - library.exp(2 * log_alpha)
        alpha, var = (each.reshape(-1, *[1] * (x.ndim - 1)) for each in (alpha, var))
        return (alpha * MEAN - x) / (alpha**2 * STD**2 + var)

    return score


def prior_of(score, shape=(2, 2)):
    return ss.Prior(score, SDE, shape)


@pytest.fixture(scope="module")
def torch():
    """Imported by the worker that runs these tests only."""
    reason = "PyTorch is not installed (requirements-dev.txt)"
    return pytest.importorskip("torch", reason=reason)


@pytest.fixture(scope="module")
def priors(torch):
    """The same prior by JAX, PyTorch and NumPy."""
    own = prior_of(gaussian.score(SDE, MEAN, STD))
    by_torch = prior_of(ss.from_torch(of_gaussian(torch)))
    return own, by_torch, prior_of(ss.from_numpy(of_gaussian(np)))


def test_samples_are_those_of_the_same_score_in_jax(priors):
    for options in ({}, {"sampler": "pc", "steps": 25}):
        expected, *found = (each.sample(50, seed=1, **options) for each in priors)
        for each in found:
            np.testing.assert_allclose(each, expected, atol=1e-4)


@pytest.mark.slow
def test_densities_and_codes(priors):
    own, by_torch, _ = priors
    x = own.sample(2, seed=0)
    exact = jax.scipy.stats.norm.logpdf(x, MEAN, STD).sum((-2, -1))
    np.testing.assert_allclose(by_torch.log_prob(x), exact, atol=5e-3)
    np.testing.assert_allclose(by_torch.encode(x), own.encode(x), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["moment_matching", "smc"])
def test_posteriors(priors, method):
    def sample(prior):
        known = ss.operators.dense((2, 2), np.eye(4, dtype=np.float32)[:2])
        return prior.posterior(jnp.ones(2), known, noise=0.3, method=method).sample(20, steps=8)

    np.testing.assert_allclose(sample(priors[1]), sample(priors[0]), atol=1e-3)


def make_network(torch):
    """Convolution, normalization and attention, in the layout of PyTorch."""
    torch.manual_seed(0)
    first, last = (torch.nn.Conv2d(a, b, 3, padding=1) for a, b in ((3, 8), (8, 3)))
    norm, attention = torch.nn.GroupNorm(4, 8), torch.nn.MultiheadAttention(8, 2, batch_first=True)

    def network(x, t):
        h = torch.nn.functional.silu(norm(first(x))) * (1 + t[:, None, None, None])
        tokens = h.flatten(2).transpose(1, 2)
        mixed, _ = attention(tokens, tokens, tokens)
        return last(h + mixed.transpose(1, 2).reshape(h.shape))

    return network


@pytest.mark.slow
def test_products_with_the_jacobian_of_a_network(torch):
    """Against PyTorch's Jacobian, one at a time and in batches of directions, compiled or not."""
    network = make_network(torch)
    score = ss.from_torch(network)
    x, t = np.random.default_rng(0).normal(size=(2, 3, 4, 4)).astype(np.float32), np.ones(2, "f4")
    directions = np.random.default_rng(1).normal(size=(5, *x.shape)).astype(np.float32)
    jacobian = torch.autograd.functional.jacobian(
        lambda x: network(x, torch.tensor(t)), torch.tensor(x)
    ).numpy()
    value, push = jax.linearize(lambda x: score(x, t), x)
    pull = jax.vjp(lambda x: score(x, t), x)[1]
    np.testing.assert_allclose(value, network(torch.tensor(x), torch.tensor(t)).detach(), atol=1e-6)
    for apply in (jax.vmap, lambda f: jax.jit(jax.vmap(f))):
        pushed, (pulled,) = apply(push)(directions), apply(pull)(directions)
        expected = np.einsum("abcdefgh,nefgh->nabcd", jacobian, directions)
        np.testing.assert_allclose(pushed, expected, atol=1e-4)
        expected = np.einsum("abcdefgh,nabcd->nefgh", jacobian, directions)
        np.testing.assert_allclose(pulled, expected, atol=1e-4)


def test_what_is_refused(torch, priors):
    _, by_torch, by_numpy = priors
    for message, call in {
        "score_sde.from_torch and from_numpy convert .*Error": lambda: prior_of(of_gaussian(torch)),
        "is not a JAX array. score_sde": lambda: prior_of(lambda x, t: -np.asarray(x)),
        "has no attribute 'foo'": lambda: prior_of(ss.from_torch(lambda x, t: x.foo)),
        r"has shape \(1, 2, 2\)": lambda: prior_of(ss.from_numpy(lambda x, t: x[:1])),
        "derivatives of a NumPy score": lambda: by_numpy.log_prob(np.ones((2, 2))),
        "second derivatives of a PyTorch score": lambda: jax.grad(by_torch.log_prob)(
            jnp.ones((2, 2))
        ),
    }.items():
        refused(message, call)


def test_without_pytorch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    refused("from_torch needs PyTorch: pip install torch", ss.from_torch, of_gaussian(np))
