"""Inverse problems: recorded official runs, and the exact posterior of Gaussian data."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sampling
from controllable import inverse_problems, operators
from controllable.measurements import Measurement
from sde_lib import VESDE, VPSDE, RectifiedFlow, SubVPSDE
from tests import gaussian, gaussian_posterior, reference
from tests.gaussian_posterior import measure
from tests.reference import KEYS

SDES = {"ve": VESDE(), "vp": VPSDE(), "subvp": SubVPSDE()}

RECORDED = [
    case for case in reference.notes("controllable") if case.startswith(("inpaint", "colorize"))
]


def recorded_measurement(case, a):
    if case.startswith("inpaint"):
        mask = a["inpaint/mask"]  # a different one for each image
        return Measurement(operators.mask(mask > 0), jnp.asarray(a["inpaint/data"] * mask))
    gray = a["colorize/gray"].mean(-1, keepdims=True)
    return Measurement(operators.channel_mean((8, 8, 3)), jnp.asarray(gray))


@pytest.mark.parametrize("case", RECORDED)
def test_recorded_runs(monkeypatch, case):
    """`official` projection reproduces each state of the recorded runs."""
    note, a = reference.notes("controllable")[case], reference.arrays("controllable")
    sde = dataclasses.replace(reference.sde(note["sde"]), t_end=note["eps"])
    measurement = recorded_measurement(case, a)
    score = gaussian.score(sde, a["mu"], a["s"])
    noises = reference.replay(monkeypatch, a[f"{case}/noises"])
    # The official colorization draws its noise as coefficients in its own basis.
    basis = a["colorize/M"].T if case.startswith("colorize") else np.eye(3, dtype=np.float32)

    def draw_coefficients(keys, shape):
        return jnp.asarray(next(noises)) @ basis

    monkeypatch.setattr(inverse_problems, "standard_normal", draw_coefficients)
    projected = []
    constraint = inverse_problems.projection(sde, measurement, official=True)

    def recording_constraint(keys, x, mean, step):
        x, mean = constraint(keys, x, mean, step)
        projected.append((x, mean))
        return x, mean

    prior = sampling.prior_sample(KEYS, sde, (3, 8, 8, 3))
    start = inverse_problems.projection_start(measurement, prior, official=True)
    found = reference.trajectory(note, score, sde, noises, start, constraint=recording_constraint)
    for name, x in zip(("denoise", "no_denoise"), found, strict=True):
        assert reference.image_error(x, a[f"{case}/out_{name}"]) < 1e-4
    for (x, mean), recorded_x, recorded_mean in zip(
        projected[1::2], a[f"{case}/x_iter"], a[f"{case}/x_mean_iter"]
    ):
        assert reference.image_error(x, recorded_x) < 1e-4
        assert reference.image_error(mean, recorded_mean) < 1e-4


def test_the_mean_is_free_of_noise_unless_official():
    """The official code leaves the noise of the last step in the unmeasured part of the mean."""
    known = np.arange(8 * 8 * 3).reshape(8, 8, 3) % 2 > 0
    sde, y = SDES["vp"], jnp.full((3, 8, 8, 3), 0.5) * known
    x, mean = jax.random.normal(jax.random.key(1), (2, 3, 8, 8, 3))
    step = jax.tree.map(lambda leaf: leaf[5], sde.discretize(1000))
    for official, unmeasured in ((False, mean), (True, x)):
        project = inverse_problems.projection(
            sde, Measurement(operators.mask(known), y), official=official
        )
        projected, projected_mean = project(KEYS, x, mean, step)
        np.testing.assert_allclose(projected[:, ~known], x[:, ~known])
        np.testing.assert_allclose(projected_mean[:, ~known], unmeasured[:, ~known])
        np.testing.assert_allclose(
            projected_mean[:, known], sde.alpha(step.t) * y[:, known], rtol=1e-6
        )


def test_colorization_starts_from_the_measurement_unless_official():
    """Its grey channel is y, and the others are the prior's. The official one has noise of VE."""
    operator, prior = operators.channel_mean((8, 8, 3)), jax.random.normal(KEYS[0], (3, 8, 8, 3))
    prior = 50 * prior
    measurement = Measurement(operator, jax.random.uniform(KEYS[1], (3, 8, 8, 1)))
    start = inverse_problems.projection_start(measurement, prior)
    np.testing.assert_allclose(operator.forward(start), measurement.y, atol=1e-4)
    coefficients = (operator.to_basis(image)[..., 1:] for image in (start, prior))
    np.testing.assert_allclose(*coefficients, rtol=1e-4, atol=1e-3)
    official = inverse_problems.projection_start(measurement, prior, official=True)
    assert np.std(operator.forward(official) - measurement.y) > 20


# --- Gaussian data, whose posterior is known ----------------------------------------------------


MATCHING = {"iterations": 16}
GUIDED = {"prior_std": gaussian_posterior.STD}
EXACT = [
    *(
        ("moment_matching", "correlated", sde, name, noise, 20, MATCHING)
        for sde, name, noise in (
            (SDES["ve"], "mask", 0.0),
            (SDES["vp"], "dense", 0.2),
            (RectifiedFlow(), "block_mean", 0.2),
        )
    ),
    ("pigdm", "isotropic", SDES["vp"], "dense", 0.2, 20, GUIDED),
    # The coefficients of isotropic data are independent.
    ("projection", "isotropic", SDES["ve"], "mask", 0.2, 150, {}),
    # With one step of the flow, m is E[x_0 | x_t], and the approximation of x_0 is exact.
    *(
        ("daps", "isotropic", SDES[sde], "block_mean", noise, 40, {"flow_steps": 1, **GUIDED})
        for sde, noise in (("ve", 0.0), ("subvp", 0.2))
    ),
]
BOUNDS = {
    "moment_matching": (0.02, 0.06),
    "pigdm": (0.01, 0.1),
    "projection": (0.02, 0.1),
    "daps": (0, 0.1),  # The Monte-Carlo error of the covariance is about 0.09.
}


@pytest.mark.parametrize(("method", "kind", "sde", "name", "noise", "steps", "options"), EXACT)
def test_methods_that_are_exact(method, kind, sde, name, noise, steps, options):
    """They give the posterior of Gaussian data, with and without noise in y."""
    errors = measure(sde, kind, name, noise, method, steps=steps, **options)
    mean, covariance = BOUNDS[method]
    assert errors.mean < 3 * errors.floor + mean
    assert errors.covariance < covariance


def conditional_score(sde, covariance, matrix, measurement, x, t):
    """grad log p_t(x | y) of N(MEAN, covariance) data in float64, in the shape of x.

    `matrix` is what `gaussian_posterior.measured_part` returns.
    """
    (u, a), size = matrix, gaussian_posterior.SIZE
    alpha, var = (float(f(jnp.float32(t))) for f in (sde.alpha, sde.var))
    precision = np.linalg.inv(alpha**2 * covariance + var * np.eye(size))
    jacobian = alpha * covariance @ precision  # of E[x_0 | x_t]
    posterior = covariance - alpha * jacobian @ covariance
    y_covariance = a @ posterior @ a.T + measurement.noise_std**2 * np.eye(len(a))
    centred = np.asarray(x, np.float64).reshape(-1, size) - alpha * gaussian_posterior.MEAN
    mean = gaussian_posterior.MEAN + centred @ jacobian.T
    residual = np.asarray(measurement.y, np.float64).reshape(len(x), -1) @ u - mean @ a.T
    guidance = np.linalg.solve(y_covariance, residual.T).T @ a @ jacobian
    return (guidance - centred @ precision).reshape(x.shape)


GUIDES = (
    (inverse_problems.pigdm, "isotropic", {"prior_std": gaussian_posterior.STD}),
    (inverse_problems.moment_matching, "correlated", {"iterations": 16}),
)


def gaussian_blur(width):
    """An operator, and its matrix in float64."""
    distance = np.arange(4) - 2
    line = np.exp(-(distance**2) / (2 * width**2))
    kernel = np.outer(line, line) / line.sum() ** 2
    rows = [np.roll(kernel, (i - 2, j - 2), (0, 1)).ravel() for i in range(4) for j in range(4)]
    return operators.convolution(gaussian_posterior.SHAPE, kernel), np.array(rows)


def random_matrix(condition):
    rng = np.random.default_rng(0)
    (u, _), (v, _) = (np.linalg.qr(rng.normal(size=(16, 16))) for _ in range(2))
    a = u[:10, :10] * np.geomspace(1, 1 / condition, 10) @ v[:10]
    return operators.dense(gaussian_posterior.SHAPE, a), a


@pytest.mark.parametrize(
    ("guides", "operator", "matrix", "sde", "t"),
    [
        *((GUIDES, operator, gaussian_posterior.matrix(operator), sde, t)
          for operator, sde, t in (
              (gaussian_posterior.OPERATORS["block_mean"], SDES["vp"], 0.3),
              (gaussian_posterior.OPERATORS["dense"], SDES["subvp"], 0.6),
              (gaussian_posterior.OPERATORS["convolution"], SDES["ve"], 0.4))),
        # In float64, without negligible singular values. It was 20 % off if solved for y itself.
        *((GUIDES[1:], operator, gaussian_posterior.measured_part(a), SDES["vp"], 0.3)
          for operator, a in (gaussian_blur(0.8), gaussian_blur(1.5), random_matrix(1e8))),
    ],
)  # fmt: skip
def test_guided_scores_of_gaussian_data(guides, operator, matrix, sde, t):
    """PiGDM is exact for isotropic data, moment matching for correlated data, at every time.

    Its error does not depend on the condition number of the operator.
    """
    x, truth, z = jax.random.normal(jax.random.key(0), (3, 4, *gaussian_posterior.SHAPE))
    x = x * jnp.sqrt(sde.alpha(t) ** 2 + sde.var(t))
    problems = []
    for guide, kind, options in guides:
        covariance = gaussian_posterior.COVARIANCES[kind]
        score = gaussian_posterior.exact_score(sde, covariance)
        for std in (0.0, 1e-4, 0.2):
            measurement = Measurement(operator, operator.observe(truth, z, std), std)
            guided = functools.partial(guide, score, sde, measurement, **options)
            exact = conditional_score(sde, covariance, matrix, measurement, x, t)
            problems.append((guided, exact))
    found = jax.jit(lambda x: [guided()(x, jnp.full(4, t)) for guided, _ in problems])(x)
    for each, (_, exact) in zip(found, problems, strict=True):
        np.testing.assert_allclose(each, exact, rtol=0, atol=1e-3 * np.abs(exact).max())


@pytest.mark.parametrize("name", ["ve", "subvp"])
def test_dps_step(name):
    """The step is the gradient of |y - A D| in units of the x_t of the VP SDE.

    For isotropic data D has the Jacobian alpha STD^2 / (alpha^2 STD^2 + var).
    """
    sde, operator = SDES[name], gaussian_posterior.OPERATORS["block_mean"]
    score = gaussian_posterior.exact_score(sde, gaussian_posterior.COVARIANCES["isotropic"])
    x, truth = jax.random.normal(jax.random.key(0), (2, 3, *gaussian_posterior.SHAPE))
    step = jax.tree.map(lambda leaf: leaf[15], sde.discretize(40))
    alpha, var = sde.alpha(step.t), sde.var(step.t)
    measurement = Measurement(operator, operator.forward(truth))

    def predictor(keys, score, sde, x, step):
        s = score(x, jnp.full(3, step.t))
        return x + s, s

    predict = inverse_problems.dps(predictor, measurement, scale=0.7)
    moved, mean = jax.jit(lambda x: predict(KEYS, score, sde, x, step))(x)
    s = score(x, jnp.full(3, step.t))
    residual = measurement.y - operator.forward(sde.posterior_mean(s, x, step.t))
    unit = residual / jnp.linalg.norm(residual.reshape(3, -1), axis=-1).reshape(3, 1, 1, 1)
    jacobian = alpha * 0.25 / (alpha**2 * 0.25 + var)
    shift = -0.7 * (alpha**2 + var) * jacobian * operator.adjoint(unit)
    np.testing.assert_allclose(moved, x + s - shift, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(mean, s - shift, rtol=1e-4, atol=1e-4)


# An operator with an unmeasured entry, one measured precisely, and one with more noise than x_t.
DIAGONAL = operators.Operator(np.array([0, 2, 0.08], np.float32).reshape(1, 1, 3))
STDS = np.array([np.inf, 0.05, 1.25])  # of the solutions, with noise of 0.1


def step_of(sde):
    """A step of `sde` between noise levels std / alpha, and these, between 0.05 and 1.25."""
    steps = sde.steps(sde.time_at(jnp.array([0.8, 0.5])))
    return jax.tree.map(lambda leaf: leaf[0], steps), 0.8, 0.5


@pytest.mark.parametrize("name", SDES)
def test_ddrm_step(monkeypatch, name):
    """Eqs. (7) and (8) with D = 0.4. The unmeasured entry has the noise of the next level."""
    sde, eta, eta_b = SDES[name], 0.3, 0.6
    step, level, next_level = step_of(sde)
    alpha, next_alpha = sde.alpha(step.t), sde.alpha(sde.time_at(next_level))
    y = jnp.array([0.0, 1.0, 0.3]).reshape(1, 1, 1, 3)
    predict = inverse_problems.ddrm(Measurement(DIAGONAL, y, 0.1), eta=eta, eta_b=eta_b)
    monkeypatch.setattr(inverse_problems, "standard_normal", lambda keys, shape: jnp.ones(shape))
    x = alpha * (0.4 + level * jnp.ones((1, 1, 1, 3)))  # The noise z is 1.
    after, mean = predict(KEYS[:1], gaussian.score(sde, 0.4, 0.0), sde, x, step)
    noise = ((after - mean) / next_alpha).reshape(3)
    mean = (mean / next_alpha).reshape(3)
    kept = next_level * np.sqrt(1 - eta**2)
    expected = [0.4 + kept, 0.4 * (1 - eta_b) + eta_b * 0.5, 0.4 + kept * (3.75 - 0.4) / STDS[2]]
    np.testing.assert_allclose(mean, expected, rtol=1e-4)
    precise = np.sqrt(next_level**2 - (eta_b * STDS[1]) ** 2)
    np.testing.assert_allclose(noise, [eta * next_level, precise, eta * next_level], rtol=1e-4)
    assert (mean[0] - 0.4) ** 2 + noise[0] ** 2 == pytest.approx(next_level**2, rel=1e-4)


@pytest.mark.parametrize("name", SDES)
def test_projection_of_noisy_measurements(monkeypatch, name):
    """A measured entry gets the noise that is missing at time t; others are left unchanged."""
    sde = SDES[name]
    step, level, _ = step_of(sde)
    y = jnp.array([0.0, 1.0, 0.3]).reshape(1, 1, 1, 3)
    project = inverse_problems.projection(sde, Measurement(DIAGONAL, y, 0.1))
    monkeypatch.setattr(inverse_problems, "standard_normal", lambda keys, shape: jnp.ones(shape))
    x = jnp.array([7.0, 8.0, 9.0]).reshape(1, 1, 1, 3)
    projected, mean = project(KEYS[:1], x, -x, step)
    alpha = sde.alpha(step.t)
    noised = alpha * (0.5 + np.sqrt(level**2 - STDS[1] ** 2))
    np.testing.assert_allclose(projected.reshape(3), [7, noised, 9], rtol=1e-4)
    np.testing.assert_allclose(mean.reshape(3), [-7, alpha * 0.5, -9], rtol=1e-4)


def test_clip_denoised():
    """The posterior mean of the clipped score is that of the score, clipped."""
    sde, x, t = SDES["vp"], jax.random.normal(jax.random.key(0), (50, 4, 4, 1)), jnp.full(50, 0.3)
    score = gaussian_posterior.exact_score(sde, gaussian_posterior.COVARIANCES["isotropic"])
    clipped = inverse_problems.clip_denoised(score, sde, -0.5, 0.5)
    mean, _ = inverse_problems.denoiser(score, sde, t)(x)
    clipped_mean, _ = inverse_problems.denoiser(clipped, sde, t)(x)
    np.testing.assert_allclose(clipped_mean, jnp.clip(mean, -0.5, 0.5), atol=1e-4)


@pytest.mark.parametrize("dims", [5, 40])
def test_root_ignores_negative_eigenvalues(dims):
    """Denoisers of networks have some; a series of the root diverges there."""
    rng = np.random.default_rng(0)
    vectors = np.linalg.qr(rng.normal(size=(2, dims, dims)))[0]
    values = rng.choice([-0.35, 0.0, 0.1, 0.6, 1.4], (2, 1, dims))
    matrix = (vectors * values) @ vectors.swapaxes(1, 2)
    exact = (vectors * np.sqrt(values.clip(0))) @ vectors.swapaxes(1, 2)
    z = rng.normal(size=(2, dims))

    def apply(v):
        return jnp.einsum("bij,bj->bi", jnp.asarray(matrix, jnp.float32), v)

    found = inverse_problems.root(apply, jnp.asarray(z, jnp.float32))
    np.testing.assert_allclose(found, np.einsum("bij,bj->bi", exact, z), atol=1e-3)


def test_conjugate_gradients():
    """Each system is solved, or stops at too small a curvature or asymmetry (0.4 for the last)."""
    a = np.random.default_rng(0).normal(size=(3, 6, 6))
    a = np.asarray(a @ a.swapaxes(1, 2) + np.eye(6), np.float32)
    a[1] *= -1
    b = np.random.default_rng(1).normal(size=(3, 6)).astype(np.float32)
    solve, small, one = inverse_problems.conjugate_gradients, jnp.full((1, 3), 1e-13), np.eye(2)
    exact = np.linalg.solve(a, b[..., None])[..., 0] * np.array([1, 0, 1])[:, None]
    found = solve(lambda v: jnp.einsum("bij,bj->bi", a, v), jnp.asarray(b), 12)
    np.testing.assert_allclose(found, exact, atol=1e-3)
    cases = (one, 0.5, [1, 2]), (one, 1.1, [0, 0]), (one + [[0, 1], [-1, 1]], 0, [5 / 9, 10 / 9])
    for matrix, least, value in cases:
        found = solve(lambda v, m=matrix: v @ m.T, jnp.array([[1.0, 2.0]]), 3, least=least)
        np.testing.assert_allclose(found[0], value, rtol=1e-5)
    _, slope = jax.jvp(lambda b: solve(lambda v: 2 * v, b, 3), (small,), (jnp.ones((1, 3)),))
    np.testing.assert_allclose(slope, 0.5, rtol=1e-5)
