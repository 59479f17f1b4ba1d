"""Twisted sequential Monte Carlo against exact posteriors and evidence: mixtures, quadrature."""

from __future__ import annotations

import functools
import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

import score_sde as ss
import sharding
from api import calibration
from commands import restoration
from controllable import smc
from solvers.plan import noise_levels
from studies.calibration import prior_of
from studies.posterior_cases import FOUR
from studies.posterior_priors import Mixture, random_modes
from tests import gaussian, gaussian_posterior, tiny
from tests.gaussian_posterior import COVARIANCES, OPERATORS, SHAPE, SIZE

VP = ss.VPSDE()


def two_modes():
    covariances = [np.diag([0.2, 0.3]) ** 2, [[0.05, 0.03], [0.03, 0.05]]]
    mixture = Mixture(np.array([0.7, 0.3]), np.array([[-1, 1], [1, -1.0]]), np.array(covariances))
    return mixture, np.array([[1.0, 0.8]]), 0.3


CASES = {
    "2-D, 2 modes": two_modes(),
    "8-D, 4 modes": (*random_modes(FOUR, 8, 1.0, (0.05, 0.5), 2), 0.1),
    "16-D, 10 modes": (*random_modes(np.full(10, 0.1), 16, 0.7, (0.05, 0.3), 4), 0.1),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sde", "steps"),
    [
        ("2-D, 2 modes", VP, 30),
        ("2-D, 2 modes", ss.EDMSDE(), 30),
        ("8-D, 4 modes", VP, 40),
        ("8-D, 4 modes", ss.VESDE(), 40),
        ("16-D, 10 modes", ss.RectifiedFlow(), 60),
    ],
)
def test_mixtures(name, sde, steps):
    """Weights of modes, means and log p(y) of exact posteriors, for several measurements."""
    mixture, a, noise = CASES[name]
    count, particles, rng = 6, 200, np.random.default_rng(1)
    x = mixture.draw(rng, count)
    y = x @ a.T + noise * rng.normal(size=(count, len(a)))
    operator = ss.operators.dense(x.shape[1:], a)
    posterior = prior_of(mixture, sde).posterior(
        y, operator, noise=noise, method="smc", particles=particles
    )
    found, info = posterior.sample(
        particles, steps=steps, return_info=True, batch_size=count * particles
    )
    found = np.asarray(found, np.float64).swapaxes(0, 1)
    std = math.sqrt(np.mean(mixture.draw(rng, 5000).var(0)))
    distances, errors, gaps = [], [], []
    for i in range(count):
        exact, log_evidence = mixture.posterior(a, y[i], noise)
        draws = exact.draw(rng, 4000)
        distances.append(0.5 * np.abs(exact.shares(found[i]) - exact.shares(draws)).sum())
        errors.append(math.sqrt(np.mean((found[i].mean(0) - draws.mean(0)) ** 2)) / std)
        if info.effective_size[i] > 0.1:
            gaps.append(info.log_evidence[i] - log_evidence)
            assert abs(gaps[-1]) < 5 * info.log_evidence_error[i] + 0.01
    # Rounding changes which particles are drawn, so that single values differ between processors.
    assert np.sqrt(np.mean(np.square(gaps))) < 0.3
    # The share of a mode has this standard error times .5 at most, and the mean at most this one.
    stderr = np.hypot(info.log_evidence_error, 1 / math.sqrt(particles)).mean()
    assert np.mean(distances) < 0.02 + 0.5 * stderr
    assert np.mean(errors) < 0.05 + stderr
    assert np.median(info.effective_size) > 0.1


GAUSSIANS = [
    *((VP, "mask", 0.2, steps) for steps in (1, 2, 20)),
    (ss.VESDE(), "dense", 0.2, 3),
    (ss.SubVPSDE(), "block_mean", 0.0, 3),
    (ss.RectifiedFlow(), "convolution", 0.003, 3),
]


@pytest.mark.parametrize(("sde", "name", "noise", "steps"), GAUSSIANS)
def test_gaussian_priors(sde, name, noise, steps):
    """Weights are constant, so that log p(y) is exact; samples are independent."""
    covariance, operator = COVARIANCES["correlated"], OPERATORS[name]
    prior = ss.Prior(gaussian_posterior.exact_score(sde, covariance), sde, SHAPE)
    y = gaussian_posterior.observe(covariance, operator, noise)
    posterior = prior.posterior(y[0], operator, noise=noise, method="smc")
    x, info = posterior.sample(512, steps=steps, return_info=True)
    assert info.effective_size > 0.995
    u, a = gaussian_posterior.matrix(operator)
    residual = u.T @ np.asarray(y, np.float64).ravel() - a @ gaussian_posterior.MEAN
    gram = a @ covariance @ a.T + noise**2 * np.eye(len(a))
    exact = -0.5 * residual @ np.linalg.solve(gram, residual)
    exact -= 0.5 * np.linalg.slogdet(2 * np.pi * gram)[1]
    # To first order, if dD/du is rounded at time T: C = level^2 dD/du. Further steps correct it.
    change = np.trace(np.linalg.solve(gram, a @ a.T))
    change += np.square(a.T @ np.linalg.solve(gram, residual)).sum()
    rounding = 0.5 * change * noise_levels(sde, "log_snr", 1)[0] ** 2 / 2**24
    assert info.log_evidence == pytest.approx(exact, abs=0.01 + (steps < 3) * rounding)
    errors = gaussian_posterior.errors(
        np.asarray(x, np.float64).reshape(-1, SIZE), covariance, operator, y, noise
    )
    assert errors.mean < 2 * errors.floor + 0.01
    assert errors.covariance < 0.2


PEAKS = Mixture(np.array([0.6, 0.4]), np.array([[-1.0], [1.0]]), np.full((2, 1, 1), 0.3**2))
MEASURED = {
    "square": ({"operator": jnp.square, "noise": 0.3}, jnp.array([0.9]),
               lambda x, y: -0.5 * ((y - x**2) / 0.3) ** 2 - math.log(0.3) - 0.9189385),
    "poisson": ({"operator": lambda x: 3 * jnp.exp(x), "noise": "poisson"}, jnp.array([4.0]),
                lambda x, y: 4 * np.log(3 * np.exp(x)) - 3 * np.exp(x) - math.log(24)),
    "density": ({"log_likelihood": lambda x, y: -jnp.abs(x[0] - y).sum() / 0.3}, jnp.array(0.1),
                lambda x, y: -np.abs(x - y) / 0.3),
} | {
    f"logistic, {slope}": (
        {"log_likelihood": lambda x, y, a=slope: jax.nn.log_sigmoid(a * y * (x[0] - 0.9))},
        jnp.array(1.0), lambda x, y, a=slope: -np.logaddexp(0, -a * y * (x - 0.9)))
    for slope in (20, 100)
} | {
    "Student, 0.02": (
        {"log_likelihood": lambda x, y: -2 * jnp.log1p(((y - x[0]) / 0.02) ** 2 / 3)},
        jnp.array(0.8), lambda x, y: -2 * np.log1p(((y - x) / 0.02) ** 2 / 3)),
} | {
    f"Cauchy, {width}": (
        {"log_likelihood": lambda x, y, a=width: -jnp.log1p(((y - x[0]) / a) ** 2)},
        jnp.array(0.8), lambda x, y, a=width: -np.log1p(((y - x) / a) ** 2))
    for width in (0.05, 0.01)
}  # fmt: skip


def quadrature(name):
    """Return log p(y), and mean, standard deviation and interquartile range of PEAKS given y."""
    _, y, log_density = MEASURED[name]
    grid = np.linspace(-4, 4, 32001)
    density = sum(
        weight * np.exp(-0.5 * ((grid - mean) / 0.3) ** 2) / (0.3 * math.sqrt(2 * math.pi))
        for weight, mean in ((0.6, -1), (0.4, 1))
    ) * np.exp(log_density(grid, float(y.ravel()[0])))
    mean = (density * grid).sum() / density.sum()
    std = math.sqrt((density * (grid - mean) ** 2).sum() / density.sum())
    quartiles = grid[np.searchsorted(density.cumsum() / density.sum(), [0.75, 0.25])]
    return math.log(density.sum() * (grid[1] - grid[0])), mean, std, np.subtract(*quartiles)


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASURED)
def test_measurements_that_are_not_linear(name):
    """Mean, spread and evidence of a mixture given y, with a verdict that says so."""
    given, y, _ = MEASURED[name]
    posterior = prior_of(PEAKS, VP).posterior(y, **given, method="smc", particles=1000)
    x, info = posterior.sample(1000, seed=1, steps=40, return_info=True)
    log_evidence, mean, std, inner = quadrature(name)
    assert info.effective_size > (0.03 if name == "square" else 0.5)  # Few ancestors find 2 modes.
    assert info.log_evidence == pytest.approx(log_evidence, abs=4 * info.log_evidence_error + 0.01)
    assert float(x.mean()) == pytest.approx(mean, abs=4 * std / math.sqrt(300))
    # Rare outliers have much of the variance of heavy tails.
    found = np.subtract(*np.quantile(x, [0.75, 0.25]))
    assert found == pytest.approx(inner, rel=0.15)


@pytest.mark.slow
def test_heavy_tails_in_several_dimensions():
    """Three entries of four are observed with Cauchy noise; the truth is by weighted draws."""
    mixture, _ = random_modes(FOUR, 4, 1.0, (0.1, 0.5), 3)
    rng, prior = np.random.default_rng(0), prior_of(mixture, VP)
    y = np.float32(mixture.draw(rng, 1)[0, :3] + [0.03, -0.05, 1.0])  # The last is an outlier.

    def log_likelihood(x, y):
        return -jnp.log1p(((y - x[:3]) / 0.05) ** 2).sum()

    draws = mixture.draw(rng, 1_000_000)
    logs = -np.log1p(((y - draws[:, :3]) / 0.05) ** 2).sum(1)
    weights = np.exp(logs - logs.max())
    posterior = prior.posterior(jnp.asarray(y), log_likelihood=log_likelihood)
    x, info = posterior.sample(300, return_info=True)
    assert info.reliable
    exact = logs.max() + math.log(weights.mean())
    assert info.log_evidence == pytest.approx(exact, abs=4 * info.log_evidence_error + 0.05)
    mean = weights @ draws / weights.sum()
    np.testing.assert_allclose(x.mean(0), mean, atol=0.15 * mixture.std)


@pytest.mark.slow
def test_a_precise_product():
    """Its slope is 0 where particles start. p(y) is a Bessel function, but for the small noise."""
    prior = ss.Prior(gaussian.score(VP, 0.0, 1.0), VP, (2,))
    posterior = prior.posterior(jnp.array([0.5]), lambda x: x[:1] * x[1:], noise=0.01)
    x, info = posterior.sample(500, return_info=True)
    assert info.effective_size > 0.2
    exact = math.log(scipy.special.k0(0.5) / math.pi)
    assert info.log_evidence == pytest.approx(exact, abs=4 * info.log_evidence_error)
    np.testing.assert_allclose(x[:, 0] * x[:, 1], 0.5, atol=0.06)
    assert float((x[:, 0] > 0).mean()) == pytest.approx(0.5, abs=0.15)


@pytest.mark.slow
def test_precise_log_likelihoods():
    """Those of Gaussian noise are as exact as the operator, whose log p(y) is in closed form."""
    rng = np.random.default_rng(0)
    a, noise, count = rng.normal(size=(3, 6)), 0.03, 300
    y = rng.normal(size=(2, 6)) @ a.T

    def log_likelihood(x, y):
        z = (y - jnp.asarray(a, jnp.float32) @ x) / noise
        return -0.5 * jnp.square(z).sum() - 3 * math.log(noise * math.sqrt(2 * math.pi))

    prior = ss.Prior(gaussian.score(VP, 0.0, 1.0), VP, (6,))
    total = a @ a.T + noise**2 * np.eye(3)
    exact = [scipy.stats.multivariate_normal.logpdf(each, np.zeros(3), total) for each in y]
    for i, each in enumerate(y):
        posterior = prior.posterior(jnp.asarray(each), log_likelihood=log_likelihood)
        x, info = posterior.sample(count, steps=4, return_info=True)
        assert info.effective_size > 0.9
        assert info.log_evidence == pytest.approx(exact[i], abs=0.05)
        np.testing.assert_allclose(x @ a.T, np.tile(each, (count, 1)), atol=6 * noise)
        mean = a.T @ np.linalg.solve(total, each)
        np.testing.assert_allclose(x.mean(0), mean, atol=4 / math.sqrt(count))


@pytest.mark.slow
def test_modes_that_were_lost_are_reported():
    """A precise measurement in few steps; the weights of another prior would be constant."""
    mixture, a, _ = CASES["16-D, 10 modes"]
    y = mixture.draw(np.random.default_rng(0), 3) @ a.T
    operator = ss.operators.dense((16,), a)
    posterior = prior_of(mixture, VP).posterior(y, operator, noise=0.01, method="smc", particles=50)
    with pytest.warns(UserWarning, match="not reliable: .* of 50 particles"):
        value, error = posterior.log_evidence(steps=4, return_error=True)
    assert value.shape == error.shape == (3,)


@pytest.mark.slow
def test_sets_of_particles():
    """One set is not enough for all y; log p(y) is as accurate as stated with the sets it needs."""
    rng, z = np.random.default_rng(1), []
    for name, particles, tolerance in (("2-D, 2 modes", 32, 0.025), ("8-D, 4 modes", 64, 0.1)):
        mixture, a, noise = CASES[name]
        y = mixture.draw(rng, 4) @ a.T + noise * rng.normal(size=(4, len(a)))
        exact = np.array([mixture.posterior(a, each, noise)[1] for each in y])
        given = {"operator": ss.operators.dense(mixture.means.shape[1:], a), "noise": noise}
        posterior = prior_of(mixture, VP).posterior(y, **given, particles=particles)
        find = functools.partial(posterior.log_evidence, steps=60, return_error=True)
        for seed in range(4):
            one, one_error = find(seed, tolerance=99)
            value, error = find(seed, tolerance=tolerance)
            assert one_error.max() > tolerance >= error.max()
            np.testing.assert_array_equal(value == one, one_error <= tolerance)
            z.append((value - exact) / error)
    assert 0.5 < np.sqrt(np.mean(np.square(z))) < 1.5


@pytest.mark.slow
def test_one_set_is_enough():
    """Weights of Gaussian priors are constant; by default there are 240 steps."""
    prior = ss.Prior(gaussian.score(VP, 0.0, 1.0), VP, (2,))
    posterior = prior.posterior(jnp.array([1.0]), lambda x: x[:1], noise=0.1)
    value, error = posterior.log_evidence(return_error=True)
    assert value == posterior.log_evidence(steps=240, tolerance=1e3)
    assert error < 0.005
    compiled = jax.jit(posterior.log_evidence)(jax.random.key(0))
    assert compiled == pytest.approx(float(value), abs=1e-4)


def test_evidence_compares_priors():
    """The Bayes factor of two Gaussian priors is exact."""
    logs = {}
    for std in (0.5, 2.0):
        prior = ss.Prior(gaussian.score(VP, 0.0, std), VP, (2,))
        posterior = prior.posterior(jnp.array([1.0]), lambda x: x[:1], noise=0.1, method="smc")
        logs[std] = float(posterior.log_evidence(steps=3))
        var = std**2 + 0.1**2
        assert logs[std] == pytest.approx(-0.5 * (1 / var + math.log(2 * math.pi * var)), abs=0.01)


@pytest.mark.slow
def test_events_depend_on_the_seed_and_their_number():
    """Not on the batch size, the mesh, compilation, and, up to `particles`, their number."""
    mixture, a, noise = CASES["2-D, 2 modes"]
    y, operator = jnp.array([[0.3], [-0.2], [0.1]]), ss.operators.dense((2,), a)
    score = prior_of(mixture, VP).score
    # Its arrays are constants of all programs; as arguments, they would be rounded otherwise.
    prior = ss.Prior(lambda x, t: score(x, t), VP, (2,))
    options = {"noise": noise, "method": "smc", "particles": 32}
    posterior = prior.posterior(y, operator, **options)
    draw = functools.partial(posterior.sample, seed=3, steps=5)
    whole = draw(32, batch_size=96)
    assert whole.shape == (32, 3, 2)
    np.testing.assert_allclose(draw(8), whole[:8], atol=1e-5)
    compiled = jax.jit(lambda key: posterior.sample(32, seed=key, steps=5))(jax.random.key(3))
    np.testing.assert_allclose(compiled, whole, atol=1e-5)
    mesh = sharding.make_mesh(jax.devices()[:2])
    shared = ss.Prior(prior.score, VP, (2,), mesh=mesh).posterior(y, operator, **options)
    close = np.isclose(shared.sample(32, seed=3, steps=5), whole, atol=1e-3).all(-1)
    assert close.mean() > 0.9  # Rounding may change which particle is drawn at a boundary.
    one = prior.posterior(y[1], operator, **options)
    assert draw(40).shape == (40, 3, 2)  # More than `particles`.
    assert one.sample((3, 4), steps=5).shape == (3, 4, 2)
    sampler, key = posterior.make_sampler(None, 5), jax.random.key(0)
    events = posterior.draw(sampler, 8, key)
    part = posterior.draw(sampler, 8, key, first=5, count=6)
    np.testing.assert_allclose(part.x, events.x[5:11], atol=1e-5)
    assert part.nfe.shape == (6,)


@pytest.mark.slow
def test_it_is_calibrated():
    mixture, a, noise = CASES["2-D, 2 modes"]
    operator = ss.operators.dense((2,), a)
    posterior = prior_of(mixture, VP).posterior(
        None, operator, noise=noise, method="smc", particles=64
    )
    found = posterior.calibrate(60, 20, steps=15, batch_size=60 * 64)
    assert found.kind == "calibrated", found.verdict


def test_errors():
    prior = ss.Prior(gaussian.score(VP, 0.0, 1.0), VP, (2,))
    large = ss.Prior(gaussian.score(VP, 0.0, 1.0), VP, (300,))
    mask, y = ss.operators.mask(np.array([True, False])), jnp.zeros(2)
    other = prior.posterior(y, mask, noise=0.1, method="moment_matching")
    weighted = prior.posterior(y, mask, noise=0.1, method="smc")
    for call, message in (
        (lambda: other.sample(return_info=True), "return_info = True needs .*method = 'smc'"),
        (other.log_evidence, "log_evidence needs .* method = 'moment_matching' does not have"),
        (lambda: weighted.sample(sampler="ddim"), "sampler = 'ddim' has no effect on method"),
        (lambda: weighted.sample(snr=0.1), "snr = 0.1 .*, which is itself a sampler"),
        (lambda: large.posterior(None, lambda x: x[:1], noise=1.0, method="smc"), "up to 256"),
        (lambda: prior.posterior(None, lambda x: jnp.repeat(x, 200), noise=1.0, method="smc"),
         r"y of shape \(400,\) has 400 entries"),
        (lambda: weighted.sample(10**8), "GB of memory or more"),
        (lambda: prior.posterior(y, mask, noise=0.1, weights=1), "weights = 1 must be True or"),
        (lambda: prior.posterior(y, mask, noise=0.0, weights=True), "needs noise > 0"),
        (lambda: prior.posterior(y, mask, noise=1.0, weights=True).sample(steps=3), "steps = 3 h"),
        (lambda: large.posterior(None, lambda x: x[:1], noise=1.0, weights=True), "up to 64"),
    ):  # fmt: skip
        with pytest.raises(ss.InputError, match=message):
            call()
    never = prior.posterior(
        jnp.array([1.0]), log_likelihood=lambda x, y: -jnp.inf * (1 + x[0] ** 2), method="smc"
    )
    with pytest.raises(ss.NotFiniteError, match="at step 1 of 3"):
        never.sample(5, steps=3)


@pytest.mark.slow
def test_restoration(tmp_path):
    """--mode=restore of images with few entries, in batches that divide the particles."""
    tiny.untrained(tmp_path, **{"data.image_size": 8})
    config = tiny.config(**{"restore.method": "smc", "restore.particles": 4})
    config.restore.update(samples=3, count=2, noise=0.5)
    config.sampling.update(method="solver", num_steps=2)
    config.eval.batch_size = 4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = restoration.restore(config, str(tmp_path))
    assert found["images"] == 2


def test_the_default_method():
    """smc where it is affordable; otherwise a method that may be biased, with a warning."""

    def chosen(size, operator=None, **options):
        prior = ss.Prior(gaussian.score(VP, 0.0, 1.0), VP, (size,))
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            y = jnp.zeros(()) if operator is None else None
            made = prior.posterior(y, operator, **options)
        return made.method, len(found)

    def density(x, y):
        return -jnp.square(x[0] - y)

    large = ss.operators.dense((2,), np.ones((40, 2)))
    for case, expected in (
        ((2, lambda x: x, {"noise": 0.1}), ("smc", 0)),
        ((2, large, {"noise": 0.1}), ("smc", 0)),  # Of rank 1.
        ((2, lambda x: jnp.tile(x, 20), {"noise": 0.1}), ("moment_matching", 1)),
        ((40, lambda x: x[:1], {"noise": "poisson"}), ("moment_matching", 1)),
        ((2, None, {"log_likelihood": density}), ("smc", 0)),
        ((40, None, {"log_likelihood": density}), ("daps", 1)),
        ((2, lambda x: x, {"noise": 0.1, "particles": 9}), ("smc", 0)),
        ((2, lambda x: x, {"noise": 0.1, "iterations": 9}), ("moment_matching", 0)),
        ((2, None, {"log_likelihood": density, "prior_std": 1.0}), ("daps", 0)),
        ((2, lambda x: x, {"noise": 0.1, "method": "moment_matching"}), ("moment_matching", 0)),
    ):
        assert chosen(*case[:2], **case[2]) == expected


@pytest.mark.slow
def test_the_number_of_particles():
    """By default 4 times that of samples, at least 512."""
    posterior = prior_of(PEAKS, VP).posterior(jnp.array([0.3]), lambda x: x, noise=0.5)
    for samples, particles in ((5, 512), (200, 800)):
        _, info = posterior.sample(samples, steps=4, return_info=True)
        assert info.verdict.endswith(f"of {particles} particles.")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("2-D, 2 modes", "moment_matching"),
        pytest.param("2-D, 2 modes", "pigdm", marks=pytest.mark.slow),
    ],
)
def test_weights_of_guided_flows(name, method):
    """They correct weights of modes and means of a biased method; log p(y) is right."""
    mixture, a, noise = CASES[name]
    y = mixture.draw(np.random.default_rng(3), 2) @ a.T
    posterior = prior_of(mixture, VP).posterior(
        *(y, ss.operators.dense(mixture.means.shape[1:], a)),
        noise=noise, method=method, weights=True,
    )  # fmt: skip
    assert posterior.method == f"weighted_{method}"
    x, info = posterior.sample(150, return_info=True)
    for i, each in enumerate(y):
        exact, log_evidence = mixture.posterior(a, each, noise)
        error = info.log_evidence_error[i]
        assert abs(info.log_evidence[i] - log_evidence) < 4 * error + 0.02
        found, draws = np.asarray(x[:, i], np.float64), exact.draw(np.random.default_rng(0), 4000)
        distance = 0.5 * np.abs(exact.shares(found) - exact.shares(draws)).sum()
        assert distance < 0.02 + 2 * math.hypot(0.5 / math.sqrt(150), 0.5 * error)
    assert info.reliable


@pytest.mark.slow
def test_weights_of_gaussian_priors():
    """They are constant, since moment matching is exact."""
    prior = ss.Prior(gaussian.score(VP, 0.0, 1.0), VP, (3,))
    posterior = prior.posterior(jnp.array([0.5]), lambda x: x[:1] + x[1:2], noise=0.5, weights=True)
    assert posterior.log_evidence() == pytest.approx(
        scipy.stats.norm.logpdf(0.5, scale=1.5), abs=0.01
    )
    assert posterior.sample(20, return_info=True)[1].effective_size > 0.99


def test_verdicts():
    """It names how many measurements have uneven weights."""
    found = smc.Weights(np.array([0.05, 0.4]), np.zeros(2), np.ones(2))
    info = calibration.judge_weights(found, (2,), 100)
    assert not info.reliable
    assert info.verdict.startswith("Samples and evidence of 1 of 2 measurements are not reliable")
    good = calibration.judge_weights(smc.Weights(*(np.full(1, 0.5) for _ in range(3))), (), 100)
    assert good.reliable
    assert good.verdict.endswith("the smallest effective sample size is 50 % of 100 particles.")
