"""Adaptive steps: the algorithm for the reverse SDE written out in numpy, and the ODE solver."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sampling
from sde_lib import VPSDE
from solvers import adaptive_sde, integrate
from tests import gaussian

KEYS = sampling.image_keys(jax.random.key(0), jnp.arange(2))


def written_out(x, noise, t_end, tolerance):
    """Algorithm 1 for one image and the VP SDE in float64: x, times, and which were accepted."""

    def euler_maruyama(x, t, h, z):
        times.append(t)
        beta, log_alpha = 0.1 + 19.9 * t, -0.25 * 19.9 * t**2 - 0.05 * t
        alpha, var = np.exp(log_alpha), -np.expm1(2 * log_alpha)
        score = -(x - alpha * 0.4) / (alpha**2 * 0.09 + var)
        return x + h * (beta / 2 * x + beta * score) + np.sqrt(beta * h) * z

    times, accepted = [], []
    previous, t, h = x, 1.0, 0.01
    for z in noise:
        if t <= t_end:
            return x, times, accepted
        low = euler_maruyama(x, t, h, z)
        next_t = max(t - h, t_end)
        high = (x + euler_maruyama(low, next_t, h, z)) / 2
        scale = np.maximum(2 / 256, tolerance * np.maximum(np.abs(low), np.abs(previous)))
        error = np.sqrt(np.mean(((low - high) / scale) ** 2))
        accepted.append(error <= 1)
        if accepted[-1]:
            x, previous, t = high, low, next_t
        h = min(t - t_end, 0.9 * h * error**-0.9)
    raise AssertionError("not finished")


def test_adaptive_sde_is_algorithm_1():
    """Samples, all times of evaluation, and the evaluations of two images."""
    sde, tolerance = VPSDE(t_end=0.9), 0.05
    x = sampling.prior_sample(KEYS, sde, (2, 16))
    score = gaussian.score(sde, 0.4, 0.3)
    times = []

    def recording_score(x, t):
        jax.debug.callback(times.append, t, ordered=True)
        return score(x, t)

    solve = functools.partial(adaptive_sde, tolerance=tolerance, denoise=False)
    samples, nfe = jax.jit(lambda x: solve(KEYS, recording_score, sde, x))(x)
    jax.effects_barrier()
    draw = jax.jit(jax.vmap(lambda i: sampling.standard_normal(sampling.fold_in(KEYS, i), x.shape)))
    noise = np.asarray(draw(jnp.arange(60)), np.float64)
    rejections = 0
    for i in range(2):
        exact, exact_times, accepted = written_out(
            np.asarray(x[i], np.float64), noise[:, i], sde.t_end, tolerance
        )
        assert nfe[i] == len(exact_times)
        np.testing.assert_allclose([t[i] for t in times[: nfe[i]]], exact_times, atol=1e-4)
        np.testing.assert_allclose(samples[i], exact, atol=2e-3)
        rejections += accepted.count(False)
    assert rejections > 0


def test_images_that_fail():
    """They are NaN, and end after a few evaluations; the others are not affected.

    Without that, a network whose output is not finite would be evaluated for hours. The solution of
    y' = y^2 from y = 1 diverges at t = 1; that from 0.1 does not.
    """
    fields = [
        lambda t, y: jnp.nan * y,
        lambda t, y: jnp.where(t > 1.5, jnp.inf, y),
        lambda t, y: 1e30 * y**3,
        lambda t, y: 1e9 * y,  # Stages overflow, and their difference is NaN.
        lambda t, y: y**2,
        lambda t, y: y**2,
    ]
    starts, tolerances = jnp.ones((6, 1)).at[5].set(0.1), {"rtol": 1e-5, "atol": 1e-5}

    def field(t, y, number):
        return jax.lax.switch(number, fields, t, y)

    y, nfe = integrate(field, starts, 0.0, 2.0, args=jnp.arange(6), **tolerances)
    assert np.isnan(y[:5]).all()
    assert (nfe[:4] < 500).all()
    assert y[5, 0] == pytest.approx(0.125, rel=1e-3)


def test_integrate():
    """Each image has its own steps, constants and count of evaluations; time runs both ways."""
    rates, y0 = jnp.array([0.0, -1.0, -20.0]), jnp.ones((3, 2))

    def field(t, y, rate):
        return rate * y * jnp.cos(t)

    for t0, t1 in ((0.0, 1.5), (1.5, 0.0)):
        y, nfe = integrate(field, y0, t0, t1, args=rates, rtol=1e-6, atol=1e-6)
        exact = np.exp(rates * (np.sin(t1) - np.sin(t0)))
        np.testing.assert_allclose(y, np.repeat(exact[:, None], 2, 1), rtol=1e-4, atol=1e-5)
        assert (np.diff(nfe) > 0).all()
        assert (nfe % 6 == 1).all()
