"""Priors of data x = loc + scale z, given by the score of z: everything is in units of x."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import score_sde as ss
from tests import gaussian

MEAN, STD = 0.3, 0.5  # of z
LOC = np.array([1000.0, -50.0, 3.0])
SCALES = {"one": 200.0, "each": np.array([200.0, 50.0, 10.0])}
MATRIX = np.array([[1.0, 2.0, 0.0], [0.0, 1.0, -1.0]])


def make(scale, **options) -> ss.Prior:
    sde = ss.VPSDE()
    return ss.Prior(gaussian.score(sde, MEAN, STD), sde, (3,), loc=LOC, scale=scale, **options)


@pytest.mark.slow
def test_samples_densities_and_codes():
    scale = SCALES["each"]
    prior, mean, std = make(scale), LOC + scale * MEAN, scale * STD
    x = prior.sample(2000, steps=50)
    np.testing.assert_allclose((x.mean(0) - mean) / std, 0, atol=0.1)
    np.testing.assert_allclose(x.std(0) / std, 1, atol=0.05)
    np.testing.assert_allclose(prior.std, np.sqrt(np.mean(std**2)), rtol=0.2)
    logp = prior.log_prob(x[:4])
    np.testing.assert_allclose(logp, scipy.stats.norm.logpdf(x[:4], mean, std).sum(-1), atol=0.03)
    gradient = jax.grad(lambda x: prior.log_prob(x, steps=64).sum())(x[:4])
    np.testing.assert_allclose(gradient * std, (mean - x[:4]) / std, atol=0.05)
    z = prior.encode(x[:4])
    np.testing.assert_allclose(prior.decode(z), x[:4], rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(z, (x[:4] - mean) / std, atol=0.03)


def predict(x):
    return jnp.asarray(MATRIX, x.dtype) @ x


OPERATORS = {"operator": ss.operators.dense((3,), MATRIX), "function": predict}
CASES = [
    ("one", "operator", "pigdm"),
    *(("each", "operator", method) for method in ("moment_matching", "smc")),
    ("each", "function", "moment_matching"),
    ("one", "log_likelihood", "daps"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "kind", "method"), CASES)
def test_posteriors(scale, kind, method):
    """Mean, spread and evidence of Gaussian posteriors, with noise in units of y."""
    prior, noise = make(SCALES[scale], support=(-2000.0, 4000.0)), 30.0
    covariance = np.diag((SCALES[scale] * STD * np.ones(3)) ** 2)
    mean = LOC + SCALES[scale] * MEAN
    law_of_y = scipy.stats.multivariate_normal(
        MATRIX @ mean, MATRIX @ covariance @ MATRIX.T + noise**2 * np.eye(2)
    )
    y = law_of_y.mean + np.array([80.0, -40.0])
    gain = covariance @ MATRIX.T @ np.linalg.inv(law_of_y.cov)
    exact_mean = mean + gain @ (y - law_of_y.mean)
    exact_std = np.sqrt(np.diag(covariance - gain @ MATRIX @ covariance))
    given = {"operator": OPERATORS.get(kind), "noise": noise}
    if kind == "log_likelihood":
        given = {kind: lambda x, y: -jnp.square((y - predict(x)) / noise).sum() / 2}
    options = {"prior_std": SCALES[scale] * STD} if method in ("pigdm", "daps") else {}
    options |= {"daps": {"flow_steps": 1}, "smc": {"particles": 4000}}.get(method, {})
    posterior = prior.posterior(y, method=method, **given, **options)
    x = posterior.sample(500 if method == "daps" else 2000, steps=60)
    np.testing.assert_allclose((x.mean(0) - exact_mean) / exact_std, 0, atol=0.15)
    np.testing.assert_allclose(x.std(0) / exact_std, 1, atol=0.1)
    if method == "smc":
        np.testing.assert_allclose(posterior.log_evidence(steps=60), law_of_y.logpdf(y), atol=0.2)


@pytest.mark.slow
def test_measurements_without_noise():
    known = ss.operators.mask([True, False, False])
    y = np.array([1200.0, 0.0, 0.0])
    x = make(SCALES["one"]).posterior(y, known, noise=0.0).sample(20)
    np.testing.assert_allclose(x[:, 0], 1200, atol=0.1)


@pytest.mark.slow
def test_calibration():
    found = make(SCALES["one"]).posterior(None, predict, noise=30.0).calibrate(60, 20)
    assert found.kind == "calibrated"


def test_scales_that_an_operator_cannot_have():
    prior = make(np.array([1.0, 1.0, 1e3]))
    with pytest.raises(ss.InputError, match="Pass a function of one event"):
        prior.posterior(np.zeros(2), OPERATORS["operator"], noise=0.1)
