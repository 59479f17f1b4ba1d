"""DAPS and general measurements against closed forms: Gaussian and gamma posteriors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sampling
from controllable import daps
from controllable.measurements import (
    GaussianMeasurement,
    LogLikelihood,
    Measurement,
    PoissonMeasurement,
)
from sde_lib import VESDE, VPSDE, SubVPSDE
from tests import gaussian, reference
from tests.gaussian_posterior import OPERATORS, SHAPE, SIZE

SDES = {"ve": VESDE(), "vp": VPSDE(), "subvp": SubVPSDE()}
KEYS = sampling.image_keys(jax.random.key(0), jnp.arange(4000))


def observations(noise_std):
    """The same measurement of the sums of 2x2 blocks as an operator, a function and a density."""
    operator = OPERATORS["block_mean"]
    y = operator.forward(jnp.full((1, *SHAPE), 0.6))

    def function(x):
        return operator.forward(x[None])[0]

    def log_prob(x, y):
        return -0.5 * jnp.square((y - function(x)) / noise_std).sum()

    return {
        "operator": Measurement(operator, y, noise_std),
        "function": GaussianMeasurement(function, y, noise_std),
        "density": LogLikelihood(log_prob, y),
    }


def repeat(measurement, count):
    return jax.tree.map(lambda leaf: jnp.repeat(leaf, count, 0), measurement)


@pytest.mark.parametrize(("name", "steps"), [("subvp", 1), ("ve", 40)])
def test_flow(name, steps):
    """One step gives the posterior mean; more converge to the flow of Gaussian data."""
    sde, t, std = SDES[name], jnp.float32(0.4), 0.5
    score = gaussian.score(sde, 0.3, std)
    x = jax.random.normal(jax.random.key(0), (5, 3)) * sde.std(t)
    end = daps.follow_flow(score, sde, x, t, steps)
    mean = sde.posterior_mean(score(x, jnp.full(5, t)), x, t)
    exact = gaussian.flow(sde, 0.3, std, np.asarray(x, np.float64), float(t), 1e-9)
    error = np.abs(np.asarray(end) - exact).max()
    if steps == 1:
        np.testing.assert_allclose(end, mean, rtol=1e-4, atol=1e-4)
        assert error > 0.1
    else:
        assert error < 0.03


@pytest.mark.parametrize("kind", reference.cases(["operator", "density"], ["density"]))
def test_draws_follow_the_product_of_gaussians(kind):
    """N(m, r^2 I) times N(y; A x, noise^2) has a known mean and covariance."""
    noise_std, r, count = 0.3, 0.7, len(KEYS)
    measurement = observations(noise_std)[kind]
    m = jax.random.normal(jax.random.key(1), (1, *SHAPE))
    draw = jax.jit(daps.draw_event, static_argnums=4)
    x = draw(KEYS, repeat(measurement, count), jnp.repeat(m, count, 0), jnp.float32(r), 300)
    operator = OPERATORS["block_mean"]
    a = np.asarray(operator.forward(jnp.eye(SIZE).reshape(SIZE, *SHAPE)), np.float64)
    a = a.reshape(SIZE, -1).T
    y = a @ np.full(SIZE, 0.6)
    covariance = np.linalg.inv(np.eye(SIZE) / r**2 + a.T @ a / noise_std**2)
    mean = covariance @ (np.asarray(m).reshape(-1) / r**2 + a.T @ y / noise_std**2)
    x = np.asarray(x, np.float64).reshape(count, SIZE)
    np.testing.assert_allclose(x.mean(0), mean, atol=4 * r / np.sqrt(count))
    np.testing.assert_allclose(np.cov(x.T), covariance, atol=0.05 * r**2 + 0.01)


def test_counts():
    """Poisson counts of rate x, with a wide Gaussian around m, have a gamma posterior."""
    count, y = len(KEYS), 7.0
    measurement = PoissonMeasurement(lambda x: x, jnp.full((count, 1), y))
    m = jnp.full((count, 1), 5.0)
    x = jax.jit(daps.draw_event, static_argnums=4)(KEYS, measurement, m, jnp.float32(300.0), 400)
    # Shape y + 1 and rate 1; the Gaussian of std 300 changes it by less than 1e-3.
    assert np.mean(x) == pytest.approx(y + 1, abs=4 * np.sqrt((y + 1) / count))
    assert np.var(x) == pytest.approx(y + 1, rel=0.12)


def test_a_function_is_treated_as_its_operator():
    """Misfit, log p(y | x) and the linearization agree with those of the operator."""
    x = jax.random.normal(jax.random.key(2), (1, *SHAPE))
    found = observations(0.3)
    expected, function = found["operator"], found["function"]
    np.testing.assert_allclose(function.misfit(x), expected.misfit(x), rtol=1e-4)
    for each in (function, found["density"]):
        np.testing.assert_allclose(each.log_prob(x), expected.log_prob(x), rtol=1e-4)
    # The operator's is scaled, which the gradient of log p(y | x) and its Hessian do not depend on.
    near, exact = (each.linearize(x, jnp.full(1, 0.5)) for each in (function, expected))
    for v in (lambda each: each.residual, lambda each: each.forward(x)):
        products = [each.adjoint(v(each) / each.noise_var) for each in (near, exact)]
        np.testing.assert_allclose(*products, rtol=1e-4, atol=1e-4)
    assert near.noise_var == pytest.approx(0.09)


def test_linearization_of_a_nonlinear_function():
    """The derivative of x^2 is 2 x, and the variance of a count is its rate."""
    x, y = jnp.array([[1.0, -2.0], [0.5, 0.0]]), jnp.ones((2, 2))
    near = PoissonMeasurement(lambda x: x**2, y).linearize(x, jnp.ones(2))
    np.testing.assert_allclose(near.residual, 1 - x**2)
    np.testing.assert_allclose(near.forward(jnp.ones((2, 2))), 2 * x)
    np.testing.assert_allclose(near.adjoint(jnp.ones((2, 2))), 2 * x)
    np.testing.assert_allclose(near.noise_var, jnp.maximum(x**2, 1e-3))
    misfit = PoissonMeasurement(lambda x: x**2, 4 * y).misfit(x)
    np.testing.assert_allclose(misfit, jnp.linalg.norm((4 - x**2) / 2, axis=1), rtol=1e-6)
