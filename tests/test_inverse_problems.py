"""Inverse problems against recorded official runs, and against the exact posterior of Gaussian data."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import inverse_problems
import operators
import sampling
import solvers
from inverse_problems import Measurement
from sde_lib import VESDE, VPSDE, SubVPSDE, expand
from tests import gaussian, reference

SDES = {"ve": VESDE(), "vp": VPSDE(), "subvp": SubVPSDE()}
KEYS = jax.random.split(jax.random.key(0), 3)

RECORDED = [case for case in reference.notes("controllable") if case.startswith(("inpaint", "colorize"))]


def recorded_measurement(case, a):
    if case.startswith("inpaint"):
        mask = a["inpaint/mask"]  # Of each image another one.
        return Measurement(operators.mask(mask > 0), a["inpaint/data"] * mask)
    return Measurement(operators.channel_mean((8, 8, 3)), a["colorize/gray"].mean(-1, keepdims=True))


@pytest.mark.parametrize("denoise", [True, False])
@pytest.mark.parametrize("case", RECORDED)
def test_recorded_runs(monkeypatch, case, denoise):
    """With `official`, every recorded run; without, the mean of what is not measured is free of noise."""
    note, a = reference.notes("controllable")[case], reference.arrays("controllable")
    sde, measurement = dataclasses.replace(reference.sde(note["sde"]), t_end=note["eps"]), recorded_measurement(case, a)
    score = gaussian.score(sde, a["mu"], a["s"])
    noises = iter(a[f"{case}/noises"])
    draw = lambda keys, shape: jnp.asarray(next(noises))
    monkeypatch.setattr(sampling, "standard_normal", draw)
    # The official colorization draws its noise as coefficients in a basis of its own.
    basis = a["colorize/M"].T if case.startswith("colorize") else np.eye(3, dtype=np.float32)
    monkeypatch.setattr(inverse_problems, "standard_normal", lambda *args: draw(*args) @ basis)
    visited = []
    constraint = inverse_problems.projection(sde, measurement, official=True)

    def watch(keys, x, mean, step):
        x, projected = constraint(keys, x, mean, step)
        visited.append((x, projected, mean))
        return x, projected

    prior = sampling.prior_sample(KEYS, sde, (3, 8, 8, 3))
    start = inverse_problems.projection_start(measurement, prior, official=True)
    options = {"predictor": sampling.PREDICTORS[note["predictor"]], "corrector": sampling.CORRECTORS[note["corrector"]]}
    with jax.disable_jit():
        x, _ = sampling.predictor_corrector(
            KEYS, score, sde, start, sde.discretize(10), snr=note["snr"], denoise=denoise, constraint=watch, **options
        )
    assert next(noises, None) is None
    x = x if note["inverse_scaler"] == "x" else (x + 1) / 2
    assert reference.image_error(x, a[f"{case}/out_{'' if denoise else 'no_'}denoise"]) < 1e-4
    for (x, mean, _), x_there, mean_there in zip(visited[1::2], a[f"{case}/x_iter"], a[f"{case}/x_mean_iter"]):
        assert reference.image_error(x, x_there) < 1e-4
        assert reference.image_error(mean, mean_there) < 1e-4


def test_the_mean_is_free_of_noise_unless_official():
    """The official code leaves the last step's noise in the unmeasured part of the mean; the measured part is y."""
    known = np.arange(8 * 8 * 3).reshape(8, 8, 3) % 2 > 0
    sde, y = SDES["vp"], np.full((3, 8, 8, 3), 0.5, np.float32) * known
    x, mean = jax.random.normal(jax.random.key(1), (2, 3, 8, 8, 3))
    step = jax.tree.map(lambda leaf: leaf[5], sde.discretize(1000))
    for official, unmeasured in ((False, mean), (True, x)):
        project = inverse_problems.projection(sde, Measurement(operators.mask(known), y), official=official)
        projected, projected_mean = project(KEYS, x, mean, step)
        np.testing.assert_allclose(projected[:, ~known], x[:, ~known])
        np.testing.assert_allclose(projected_mean[:, ~known], unmeasured[:, ~known])
        np.testing.assert_allclose(projected_mean[:, known], sde.alpha(step.t) * y[:, known], rtol=1e-6)


# --- Gaussian data, whose posterior is known --------------------------------------------------------------------------

SHAPE, COUNT = (4, 4, 1), 2000
MEAN = np.full(16, 0.3)
ALONG = np.exp(-np.abs(np.subtract.outer(np.arange(4), np.arange(4))) / 2)
COVARIANCES = {"isotropic": 0.25 * np.eye(16), "correlated": 0.25 * np.kron(ALONG, ALONG)}
OPERATORS = {
    "mask": operators.mask(operators.box(SHAPE, 0.5)),
    "block_mean": operators.block_mean(SHAPE, 2),
    "dense": operators.dense(SHAPE, np.random.default_rng(0).normal(size=(5, 16))),
    "convolution": operators.convolution(SHAPE, operators.motion_kernel(2, 45)),
}


def exact_score(sde, covariance):
    """The score of N(MEAN, covariance) data."""
    values, vectors = (np.asarray(a, np.float32) for a in np.linalg.eigh(covariance))

    def score(x, t):
        alpha, var = expand(sde.alpha(t), x[:, :, 0, 0]), expand(sde.var(t), x[:, :, 0, 0])
        centred = (x.reshape(-1, 16) - alpha * MEAN.astype(np.float32)) @ vectors
        return -((centred / (alpha**2 * values + var)) @ vectors.T).reshape(x.shape)

    return score


def posterior(covariance, operator, y, noise_std):
    """Mean (16,) and covariance (16, 16) of images given y, from Gaussian conditioning in float64."""
    a = np.asarray(operator.forward(jnp.eye(16).reshape(16, *SHAPE)), np.float64).reshape(16, -1).T
    u, s, _ = np.linalg.svd(a, full_matrices=False)
    u = u[:, s > 1e-4 * s.max()]
    a, y = u.T @ a, u.T @ np.asarray(y, np.float64).reshape(-1)
    gain = covariance @ a.T @ np.linalg.inv(a @ covariance @ a.T + noise_std**2 * np.eye(len(a)))
    return MEAN + gain @ (y - a @ MEAN), covariance - gain @ a @ covariance


def errors(sde, kind, name, noise_std, approach, run):
    """Of COUNT answers to one measurement: errors of their mean and covariance in units of the data's std and norm,
    and what the mean's Monte-Carlo error alone would be."""
    covariance, operator = COVARIANCES[kind], OPERATORS[name]
    truth = jnp.asarray(np.random.default_rng(3).multivariate_normal(MEAN, covariance), jnp.float32).reshape(1, *SHAPE)
    y = operator.observe(truth, jax.random.normal(jax.random.key(6), truth.shape), noise_std)
    measurement = Measurement(operator, jnp.repeat(y, COUNT, 0), noise_std)
    keys = sampling.image_keys(jax.random.key(1), jnp.arange(COUNT))
    prior = sampling.prior_sample(keys, sde, (COUNT, *SHAPE))
    x = run(keys, exact_score(sde, covariance), sde, measurement, approach, prior)
    x = np.asarray(x, np.float64).reshape(COUNT, 16)
    mean, exact = posterior(covariance, operator, y, noise_std)
    of_mean = np.sqrt(np.mean((x.mean(0) - mean) ** 2)) / 0.5
    return of_mean, np.linalg.norm(np.cov(x.T) - exact) / np.linalg.norm(covariance), np.sqrt(exact.trace() / 4 / COUNT)


def by_deis(keys, score, sde, measurement, approach, x):
    solver, levels = solvers.SOLVERS["deis"], solvers.noise_levels(sde, "karras", 20)
    run = lambda x: sampling.few_step(
        keys,
        approach(score, sde, measurement),
        sde,
        x,
        solver.plan(levels),
        0.0,
        noise_prediction=solver.noise_prediction,
    )[0]
    return jax.jit(run)(x)


def by_steps(keys, score, sde, measurement, approach, x):
    """`approach` says what goes to the predictor-corrector loop, and where it begins."""
    options, x = approach(sde, measurement, x)
    run = lambda x: sampling.predictor_corrector(keys, score, sde, x, sde.discretize(150), **options)[0]
    return jax.jit(run)(x)


@pytest.mark.parametrize("noise_std", [0.0, 0.2])
@pytest.mark.parametrize(
    ("sde", "name"), [("ve", "mask"), ("vp", "block_mean"), ("subvp", "dense"), ("ve", "convolution")]
)
def test_moment_matching_is_exact_for_gaussian_data(sde, name, noise_std):
    """20 steps of DEIS give the posterior's mean and covariance, for correlated data, with noise in y or without."""
    match = functools.partial(inverse_problems.moment_matching, iterations=16)
    of_mean, of_covariance, floor = errors(SDES[sde], "correlated", name, noise_std, match, by_deis)
    assert of_mean < 3 * floor + 0.02
    assert of_covariance < 0.06


def project(sde, measurement, x):
    return {"constraint": inverse_problems.projection(sde, measurement)}, inverse_problems.projection_start(
        measurement, x
    )


def descend(sde, measurement, x):
    return {"predictor": inverse_problems.dps(sampling.reverse_diffusion, measurement, scale=0.5)}, x


def ddrm(sde, measurement, x):
    return {"predictor": inverse_problems.ddrm(measurement)}, x


PIGDM = functools.partial(inverse_problems.pigdm, prior_std=0.5)
STEPWISE = {"projection": project, "dps": descend, "ddrm": ddrm}


@pytest.mark.parametrize("noise_std", [0.0, 0.2])
def test_pigdm_is_exact_for_isotropic_data(noise_std):
    of_mean, of_covariance, floor = errors(SDES["vp"], "isotropic", "dense", noise_std, PIGDM, by_deis)
    assert of_mean < 3 * floor + 0.01
    assert of_covariance < 0.1


@pytest.mark.parametrize("noise_std", [0.0, 0.2])
def test_projection_is_exact_for_isotropic_data(noise_std):
    """Coefficients are independent then; noise in y is honoured."""
    of_mean, of_covariance, floor = errors(SDES["ve"], "isotropic", "mask", noise_std, project, by_steps)
    assert of_mean < 3 * floor + 0.02
    assert of_covariance < 0.1


# Errors of the mean for correlated data, measured 0.29, 0.10 and 0.04 to 0.12 (docs/inverse_problems.md), and bounds.
BIASED = {"projection": (0.2, 0.4), "dps": (0.05, 0.2), "ddrm": (0.02, 0.2)}


@pytest.mark.parametrize("sde", ["ve", "vp"])
@pytest.mark.parametrize("method", STEPWISE)
def test_bias_of_the_others(method, sde):
    """It is there, and on VE what it is on VP: VE does not explode."""
    of_mean, of_covariance, _ = errors(SDES[sde], "correlated", "mask", 0.0, STEPWISE[method], by_steps)
    assert BIASED[method][0] < of_mean < BIASED[method][1]
    assert of_covariance < 0.15


def test_conjugate_gradients():
    """They solve symmetric positive systems, each by itself, and stop before a direction of negative curvature."""
    a = np.random.default_rng(0).normal(size=(3, 6, 6))
    a = np.asarray(a @ a.swapaxes(1, 2) + np.eye(6), np.float32)
    b = np.random.default_rng(1).normal(size=(3, 6)).astype(np.float32)
    solve = lambda a: inverse_problems.conjugate_gradients(lambda v: jnp.einsum("bij,bj->bi", a, v), b, 12)
    np.testing.assert_allclose(solve(a), np.linalg.solve(a, b[..., None])[..., 0], atol=1e-3)
    a[1] *= -1
    v = solve(a)
    np.testing.assert_allclose(v[1], 0)
    np.testing.assert_allclose(v[0], np.linalg.solve(a, b[..., None])[0, :, 0], atol=1e-3)


def test_means_stay_within_the_range():
    """The clipped score is the score where its mean of the data lies in the range, and points to the end otherwise."""
    sde, x, t = SDES["vp"], jax.random.normal(jax.random.key(0), (50, 4, 4, 1)), jnp.full(50, 0.3)
    score = exact_score(sde, COVARIANCES["isotropic"])
    clipped = inverse_problems.within(score, sde, -0.5, 0.5)
    mean = lambda score: inverse_problems.denoiser(score, sde, t)(x)[0]
    np.testing.assert_allclose(mean(clipped), jnp.clip(mean(score), -0.5, 0.5), atol=1e-4)
