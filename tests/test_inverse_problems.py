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
from sde_lib import EDMSDE, VESDE, VPSDE, CosineSDE, RectifiedFlow, SubVPSDE
from solvers import predictor_corrector
from tests import gaussian, gaussian_posterior, reference
from tests.gaussian_posterior import measure

SDES = {"ve": VESDE(), "vp": VPSDE(), "subvp": SubVPSDE()}
KEYS = jax.random.split(jax.random.key(0), 3)

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
    noises = iter(a[f"{case}/noises"])
    # The official colorization draws its noise as coefficients in its own basis.
    basis = a["colorize/M"].T if case.startswith("colorize") else np.eye(3, dtype=np.float32)

    def draw(keys, shape):
        return jnp.asarray(next(noises))

    def draw_coefficients(keys, shape):
        return draw(keys, shape) @ basis

    monkeypatch.setattr(predictor_corrector, "standard_normal", draw)
    monkeypatch.setattr(inverse_problems, "standard_normal", draw_coefficients)
    projected = []
    constraint = inverse_problems.projection(sde, measurement, official=True)

    def recording_constraint(keys, x, mean, step):
        x, mean = constraint(keys, x, mean, step)
        projected.append((x, mean))
        return x, mean

    prior = sampling.prior_sample(KEYS, sde, (3, 8, 8, 3))
    start = inverse_problems.projection_start(measurement, prior, official=True)
    options = {
        "predictor": sampling.PREDICTORS[note["predictor"]],
        "corrector": sampling.CORRECTORS[note["corrector"]],
    }
    with jax.disable_jit():
        denoised, (noisy,), _ = sampling.predictor_corrector(
            KEYS,
            score,
            sde,
            start,
            sde.discretize(10),
            snr=note["snr"],
            constraint=recording_constraint,
            shown=[9],
            **options,
        )
    assert next(noises, None) is None
    for name, x in (("denoise", denoised), ("no_denoise", noisy)):
        x = x if note["inverse_scaler"] == "x" else (x + 1) / 2
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
    operator, prior = (
        operators.channel_mean((8, 8, 3)),
        50 * jax.random.normal(KEYS[0], (3, 8, 8, 3)),
    )
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
    *(("moment_matching", "correlated", SDES[sde], name, noise, 20, MATCHING)
      for sde, name, noise in zip(
          ("ve", "vp", "subvp", "ve"), gaussian_posterior.OPERATORS, (0.0, 0.2, 0.2, 0.0))),
    # A network trained as EDM or by flow matching has the same posterior.
    *(("moment_matching", "correlated", sde, "mask", 0.2, 20, MATCHING)
      for sde in (CosineSDE(), EDMSDE(), RectifiedFlow())),
    *(("pigdm", "isotropic", SDES["vp"], "dense", noise, 20, GUIDED) for noise in (0.0, 0.2)),
    # The coefficients of isotropic data are independent.
    *(("projection", "isotropic", SDES["ve"], "mask", noise, 150, {}) for noise in (0.0, 0.2)),
    # With one step of the flow, m is E[x_0 | x_t], and the approximation of x_0 is exact.
    *(("daps", "isotropic", sde, "block_mean", noise, 40, {"flow_steps": 1, **GUIDED})
      for sde, noise in zip(SDES.values(), (0.0, 0.2, 0.2))),
]  # fmt: skip
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


def check_guided_scores(operator, matrix, sde, t, guides=GUIDES):
    """PiGDM is exact for isotropic data, moment matching for correlated data, at every time."""
    x, truth, z = jax.random.normal(jax.random.key(0), (3, 4, *gaussian_posterior.SHAPE))
    x = x * jnp.sqrt(sde.alpha(t) ** 2 + sde.var(t))
    measurements = [
        Measurement(operator, operator.observe(truth, z, noise_std), noise_std)
        for noise_std in (0.0, 1e-4, 0.2)
    ]

    @jax.jit
    def scores(x):
        return [
            guide(
                gaussian_posterior.exact_score(sde, gaussian_posterior.COVARIANCES[kind]),
                *(sde, measurement),
                **options,
            )(x, jnp.full(4, t))
            for guide, kind, options in guides
            for measurement in measurements
        ]

    expected = [
        conditional_score(sde, gaussian_posterior.COVARIANCES[kind], matrix, measurement, x, t)
        for _, kind, _ in guides
        for measurement in measurements
    ]
    for guided, exact in zip(scores(x), expected, strict=True):
        np.testing.assert_allclose(guided, exact, rtol=0, atol=1e-3 * np.abs(exact).max())


@pytest.mark.parametrize(
    ("name", "sde", "t"),
    [("mask", "ve", 0.4), ("block_mean", "vp", 0.3), ("dense", "subvp", 0.6)]
    + [("convolution", "vp", 0.6)],
)
def test_guided_scores_of_gaussian_data(name, sde, t):
    operator = gaussian_posterior.OPERATORS[name]
    check_guided_scores(operator, gaussian_posterior.matrix(operator), SDES[sde], t)


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


def decimated_blur(width):
    a = gaussian_blur(width)[1].reshape(4, 4, 16)[::2].reshape(8, 16)
    return operators.dense(gaussian_posterior.SHAPE, a), a


ILL_CONDITIONED = [
    *((gaussian_blur, width) for width in (0.5, 0.8, 1.1, 1.5)),
    *((decimated_blur, width) for width in (0.8, 1.5)),
    *((random_matrix, condition) for condition in (1e4, 1e8)),
]


@pytest.mark.parametrize(("make", "parameter"), ILL_CONDITIONED)
def test_ill_conditioned_operators(make, parameter):
    """The error does not depend on the condition number: it is 20 % if solved for y itself.

    Compared in float64 with the same matrix, without its negligible singular values.
    """
    operator, a = make(parameter)
    matrix = gaussian_posterior.measured_part(a)
    check_guided_scores(operator, matrix, SDES["vp"], 0.3, GUIDES[1:])


# Bounds of the error of the mean for correlated data; measured: 0.29, 0.10, 0.04 to 0.12 and 0.12.
BIASED = [
    *(("projection", sde, 150, {}, (0.2, 0.4)) for sde in ("ve", "vp")),
    *(("dps", sde, 150, {"scale": 0.5}, (0.05, 0.2)) for sde in ("ve", "vp")),
    *(("ddrm", sde, 150, {}, (0.02, 0.2)) for sde in ("ve", "vp")),
    ("daps", "vp", 100, {}, (0.05, 0.15)),
]


@pytest.mark.parametrize(("method", "sde", "steps", "options", "bounds"), BIASED)
def test_bias_of_the_others(method, sde, steps, options, bounds):
    """It is present, bounded, and similar for the VE and VP SDEs."""
    errors = measure(SDES[sde], "correlated", "mask", 0.0, method, steps=steps, **options)
    assert bounds[0] < errors.mean < bounds[1]
    assert errors.covariance < 0.15


@pytest.mark.parametrize("name", SDES)
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
DIAGONAL = operators.Operator(np.array([0, 2, 0.1], np.float32).reshape(1, 1, 3))
STDS = np.array([np.inf, 0.05, 1.0])  # of the solutions, with noise of 0.1


def step_of(sde):
    """A step of `sde` between noise levels std / alpha, and these: both lie between 0.05 and 1."""
    steps = sde.steps(sde.time_at(jnp.array([0.8, 0.5])))
    return jax.tree.map(lambda leaf: leaf[0], steps), 0.8, 0.5


@pytest.mark.parametrize("eta", [0.3, 0.85])
@pytest.mark.parametrize("name", SDES)
def test_ddrm_step(monkeypatch, name, eta):
    """Eqs. (7) and (8) with D = 0.4. The unmeasured entry has the noise of the next level."""
    sde, eta_b = SDES[name], 0.6
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
    expected = [0.4 + kept, 0.4 * (1 - eta_b) + eta_b * 0.5, 0.4 + kept * (3 - 0.4) / STDS[2]]
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


def test_measurements():
    """Deviations of the solution, residuals, and the nearest solution of A x = y."""
    y = jnp.array([5.0, 1.0, 0.3]).reshape(1, 1, 1, 3)
    measurement, x = Measurement(DIAGONAL, y, 0.1), 2 * jnp.ones((1, 1, 1, 3))
    np.testing.assert_allclose(measurement.solution_std.reshape(3), STDS, rtol=1e-6)
    np.testing.assert_allclose(measurement.residual(x).reshape(3), [0, 1 - 4, 0.3 - 0.2], rtol=1e-5)
    np.testing.assert_allclose(measurement.enforce(x).reshape(3), [2, 0.5, 3], rtol=1e-5)
    start = inverse_problems.projection_start(measurement, x)
    np.testing.assert_allclose(start.reshape(3), [2, 0.5, 3], rtol=1e-5)


def test_conjugate_gradients():
    """Each system of a batch is solved, or stops before a direction of negative curvature."""
    a = np.random.default_rng(0).normal(size=(3, 6, 6))
    a = np.asarray(a @ a.swapaxes(1, 2) + np.eye(6), np.float32)
    b = np.random.default_rng(1).normal(size=(3, 6)).astype(np.float32)

    def solve(a):
        def apply(v):
            return jnp.einsum("bij,bj->bi", a, v)

        return inverse_problems.conjugate_gradients(apply, jnp.asarray(b), 12)

    np.testing.assert_allclose(solve(a), np.linalg.solve(a, b[..., None])[..., 0], atol=1e-3)
    a[1] *= -1
    v = solve(a)
    np.testing.assert_allclose(v[1], 0)
    np.testing.assert_allclose(v[0], np.linalg.solve(a, b[..., None])[0, :, 0], atol=1e-3)


@pytest.mark.parametrize("guide", [inverse_problems.pigdm, inverse_problems.moment_matching])
def test_adaptive_steps_keep_images_and_measurements_together(guide):
    """The ODE solver treats images one by one, each with its own y, which the sample satisfies."""
    sde, operator = SDES["vp"], gaussian_posterior.OPERATORS["block_mean"]
    y = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (3, 2, 2, 1)), jnp.float32)
    score = gaussian_posterior.exact_score(sde, gaussian_posterior.COVARIANCES["correlated"])
    guided = inverse_problems.clip_denoised(guide(score, sde, Measurement(operator, y)), sde, -9, 9)
    solve = functools.partial(sampling.probability_flow_ode, sde=sde, rtol=1e-3, atol=1e-3)
    x, _ = jax.jit(solve)(guided, x=sampling.prior_sample(KEYS, sde, (3, 4, 4, 1)))
    np.testing.assert_allclose(operator.forward(x), y, atol=0.05)


def test_clip_denoised():
    """The posterior mean of the clipped score is that of the score, clipped."""
    sde, x, t = SDES["vp"], jax.random.normal(jax.random.key(0), (50, 4, 4, 1)), jnp.full(50, 0.3)
    score = gaussian_posterior.exact_score(sde, gaussian_posterior.COVARIANCES["isotropic"])
    clipped = inverse_problems.clip_denoised(score, sde, -0.5, 0.5)
    mean, _ = inverse_problems.denoiser(score, sde, t)(x)
    clipped_mean, _ = inverse_problems.denoiser(clipped, sde, t)(x)
    np.testing.assert_allclose(clipped_mean, jnp.clip(mean, -0.5, 0.5), atol=1e-4)


def test_derivatives_of_conjugate_gradients_are_finite_for_small_residuals():
    def solve(b):
        return inverse_problems.conjugate_gradients(lambda v: 2 * v, b, 3)

    _, slope = jax.jvp(solve, (jnp.full((1, 3), 1e-13),), (jnp.ones((1, 3)),))
    np.testing.assert_allclose(slope, 0.5, rtol=1e-5)
