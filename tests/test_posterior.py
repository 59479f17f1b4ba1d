"""The Python API's `Posterior` against Gaussian posteriors, and its calibration."""

from __future__ import annotations

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import score_sde as ss
from api import calibration
from controllable import inverse_problems
from controllable.measurements import Measurement
from tests import gaussian, gaussian_posterior

SDE = ss.VPSDE()
STD = gaussian_posterior.STD
COVARIANCE = gaussian_posterior.COVARIANCES["correlated"]
MEAN = gaussian_posterior.MEAN
KNOWN = np.array([True, False, True])
IMAGE = ss.Prior(gaussian_posterior.exact_score(SDE, COVARIANCE), SDE, gaussian_posterior.SHAPE)
VECTOR = ss.Prior(gaussian.score(SDE, 0.0, STD), SDE, (3,))
MASK = ss.operators.mask(KNOWN)


def sums(x):
    """A linear function of an image (4, 4, 1), without a decomposition."""
    return x[..., 0].sum(0)


def test_samples_given_several_measurements():
    """Mean and covariance of the Gaussian posterior, for each y of a batch."""
    noise = 0.3
    y = jnp.array([[1.0, 2.0, 0.0, 1.0], [0.5, -1.0, 3.0, 1.0]])
    posterior = IMAGE.posterior(y, sums, noise=noise, method="moment_matching")
    assert posterior.batch_shape == (2,)
    x = posterior.sample((30, 20), seed=1)
    assert x.shape == (30, 20, 2, 4, 4, 1)
    flat = np.asarray(x, np.float64).reshape(600, 2, 16)
    matrix = np.stack([sums(each.reshape(4, 4, 1)) for each in np.eye(16)], 1)
    total = matrix @ COVARIANCE @ matrix.T + noise**2 * np.eye(4)
    gain = COVARIANCE @ matrix.T @ np.linalg.inv(total)
    for i in range(2):
        mean = MEAN + gain @ (np.asarray(y[i]) - matrix @ MEAN)
        np.testing.assert_allclose(flat[:, i].mean(0), mean, atol=4 * STD / math.sqrt(600))
        exact = COVARIANCE - gain @ matrix @ COVARIANCE
        error = np.linalg.norm(np.cov(flat[:, i].T) - exact)
        assert error < 0.15 * np.linalg.norm(COVARIANCE)


@pytest.mark.parametrize(
    ("method", "steps", "options", "evaluations"),
    [
        ("moment_matching", None, {}, 21),
        ("pigdm", None, {}, 20),
        ("projection", 200, {}, None),
        ("dps", 200, {}, 200),
        ("ddrm", 200, {}, 200),
        ("daps", 50, {"flow_steps": 3}, 150),
    ],
)
def test_every_method_by_name(method, steps, options, evaluations):
    """The mean given a noise-free entry; the others keep their distribution.

    There is one evaluation of the score in a step without a corrector; `flow_steps` for DAPS.
    """
    y = jnp.array([0.8, 0.0, -0.4])
    posterior = VECTOR.posterior(y, MASK, noise=0.0, method=method, **options)
    drawn = posterior.draw(posterior.make_sampler(None, steps), 500, jax.random.key(0))
    x = np.asarray(drawn.x)
    np.testing.assert_allclose(x[:, KNOWN], np.broadcast_to([0.8, -0.4], (500, 2)), atol=1e-4)
    assert abs(x[:, 1].mean()) < 0.1
    assert 0.7 * STD < x[:, 1].std() < 1.3 * STD
    if evaluations:
        np.testing.assert_array_equal(drawn.nfe, evaluations)


SPREADS = [
    *((ss.VPSDE(), noise, "moment_matching", {}) for noise in (0.1, 0.02, 0.01, 0.003)),
    *((ss.VPSDE(), noise, "pigdm", {"prior_std": 1.0}) for noise in (0.01, 0.003)),
    (ss.VPSDE(), 0.01, "smc", {"particles": 4000}),
    *((sde, noise, "moment_matching", {})
      for sde in (ss.VESDE(), ss.SubVPSDE(), ss.EDMSDE(), ss.RectifiedFlow())
      for noise in (0.01, 0.003)),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("sde", "noise", "method", "options"), SPREADS)
def test_the_spread_of_precise_measurements(sde, noise, method, options):
    """It is right also where y has as little noise as the last state; its error is 1.1 %.

    The last state of the sub-VP SDE has a hundredth of the noise of others: 20 steps are too few.
    """
    steps = 40 if isinstance(sde, ss.SubVPSDE) else None
    prior = ss.Prior(gaussian.score(sde, 0.0, 1.0), sde, (1,))
    mask = ss.operators.mask(np.array([True]))
    posterior = prior.posterior(jnp.array([0.7]), mask, noise=noise, method=method, **options)
    x = np.asarray(posterior.sample(4000, batch_size=4000, steps=steps))
    exact = noise / math.sqrt(1 + noise**2)
    assert x.std() == pytest.approx(exact, rel=0.03 + 0.02)
    assert x.mean() == pytest.approx(0.7 / (1 + noise**2), abs=0.05 * exact + 4 * exact / 63)


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_the_last_draw(noise):
    """Its covariance is that of x given y and a state at t_end, which leaves variances unequal."""
    sde, stds = ss.EDMSDE(t_end=0.3), np.array([0.3, 0.5, 2.0])
    score, operator = gaussian.score(sde, 0.0, stds), ss.operators.dense((3,), [[1.0, 2, 0]])
    keys, x = jax.random.split(jax.random.key(0), 20_000), jnp.zeros((20_000, 3))
    measurement = Measurement(operator, jnp.zeros((len(x), 1)), noise)
    found, _ = inverse_problems.matched_draw(keys, score, sde, measurement, x, iterations=0)
    prior, a = np.diag(1 / (1 / stds**2 + 1 / 0.3**2)), np.array([[1.0, 2, 0]])
    gain = prior @ a.T / (a @ prior @ a.T + noise**2)
    exact = prior - gain @ a @ prior
    assert np.linalg.norm(np.cov(np.asarray(found).T) - exact) < 0.1 * np.linalg.norm(exact)


@pytest.mark.slow
def test_a_log_likelihood_instead_of_an_operator():
    """log p(y | x) of a Laplace distribution; the posterior is computed by quadrature."""

    def log_likelihood(x, y):
        return -jnp.abs(x[0] - y).sum() / 0.2

    posterior = VECTOR.posterior(
        jnp.array(0.5), log_likelihood=log_likelihood, flow_steps=1, langevin_steps=40
    )
    x = np.asarray(posterior.sample(1500, seed=0, steps=60, batch_size=1500))
    grid = np.linspace(-2, 2, 4001)
    weights = np.exp(-0.5 * (grid / STD) ** 2 - np.abs(grid - 0.5) / 0.2)
    weights /= weights.sum()
    mean = (weights * grid).sum()
    std = math.sqrt((weights * (grid - mean) ** 2).sum())
    assert x[:, 0].mean() == pytest.approx(mean, abs=4 * std / math.sqrt(1500))
    assert x[:, 0].std() == pytest.approx(std, rel=0.1)
    np.testing.assert_allclose(x[:, 1:].std(), STD, rtol=0.1)


# --- calibration ------------------------------------------------------------------------------

# Tests that draw the same numbers in a single round share its compiled program.
NUMBERS = {"simulations": 400, "samples": 31, "batch_size": 400 * 31}


@pytest.mark.slow
def test_the_exact_sampler_passes():
    """Moment matching is exact for Gaussian data, with an operator and with a function."""
    for operator in (MASK, lambda x: x[:2] - x[1:]):
        posterior = VECTOR.posterior(None, operator, noise=0.2, method="moment_matching")
        found = posterior.calibrate(**NUMBERS, seed=0)
        assert found.kind == "calibrated", found.verdict
        share, error = found.coverage(0.9)
        assert abs(share - 0.9) < 4 * error
        assert found.names[-2:] == ["log p(y | x)", "distance (TARP)"]


@pytest.mark.parametrize(
    ("factor", "kind"), [(0.75, "overconfident"), (1.35, "underconfident"), (1.0, "calibrated")]
)
def test_a_wrong_spread_fails(monkeypatch, factor, kind):
    """Samples whose distance from their mean is scaled are called by their error."""
    posterior = VECTOR.posterior(None, MASK, noise=0.2, method="moment_matching")
    original = ss.Posterior._statistics

    def scaled(self, x, y, references):
        if x.shape[1] > 1:
            mean = x.mean(1, keepdims=True)
            x = mean + factor * (x - mean)
        return original(self, x, y, references)

    monkeypatch.setattr(ss.Posterior, "_statistics", scaled)
    found = posterior.calibrate(**NUMBERS, seed=1)
    assert found.kind == kind, found.verdict


def test_samples_that_ignore_the_measurement_fail(monkeypatch):
    """They follow the prior, so that ranks of x alone are uniform; log p(y | x) is not."""
    posterior = VECTOR.posterior(None, MASK, noise=0.2, method="moment_matching")
    ignorant = VECTOR.posterior(None, MASK, noise=1e3, method="moment_matching")
    monkeypatch.setattr(posterior, "draw", ignorant.draw)
    found = posterior.calibrate(**NUMBERS, seed=0)
    assert found.kind != "calibrated"
    assert min(found.p_values, key=found.p_values.get) == "log p(y | x)"


@pytest.mark.slow
def test_counts_and_densities_are_simulated():
    """A Poisson measurement, and one given by its density and a simulator, are calibrated."""
    prior = ss.Prior(gaussian.score(SDE, 0.0, 0.3), SDE, (2,))

    def rates(x):
        return 40 * jnp.exp(x)

    options = {"method": "daps", "flow_steps": 1, "langevin_steps": 40}
    counts = prior.posterior(None, rates, noise="poisson", **options)
    assert counts.calibrate(100, 31, steps=40, batch_size=3100).kind == "calibrated"

    def log_likelihood(x, y):
        return -0.5 * jnp.square((y - x[0]) / 0.2)

    def simulate(x, key):
        return x[0] + 0.2 * jax.random.normal(key)

    density = prior.posterior(jnp.array(0.0), log_likelihood=log_likelihood, **options)
    found = density.calibrate(100, 31, steps=40, batch_size=3100, simulate=simulate)
    assert found.kind == "calibrated", found.verdict
    with pytest.raises(ss.InputError, match="calibrate needs simulate"):
        density.calibrate(200, 31)


@pytest.mark.slow
def test_rounds_and_files_of_a_calibration(tmp_path):
    """Ranks do not depend on the rounds, also if the last one is not complete."""
    posterior = VECTOR.posterior(None, MASK, noise=0.2, method="moment_matching")
    whole, parts = (
        posterior.calibrate(22, 20, seed=0, steps=5, batch_size=size) for size in (440, 100)
    )
    np.testing.assert_allclose(whole.ranks, parts.ranks, atol=1e-6)
    parts.save(tmp_path / "calibration.json")
    stored = json.loads((tmp_path / "calibration.json").read_text())
    assert stored["verdict"] == parts.verdict
    assert np.shape(stored["ranks"]) == (22, len(stored["names"]))
    parts.figure().savefig(tmp_path / "calibration.png")
    assert (tmp_path / "calibration.png").stat().st_size > 10_000


def test_samples_are_independent_of_the_truth():
    """Events of the prior and of the posterior with the same seed have different noise."""
    x = VECTOR.sample(300, seed=0)
    y = x[:, :1] + 100.0 * jax.random.normal(jax.random.key(1), (300, 1))
    posterior = VECTOR.posterior(y, lambda x: x[:1], noise=100.0, method="moment_matching")
    found = posterior.sample(seed=0)
    for entry in range(x.shape[1]):
        assert abs(np.corrcoef(x[:, entry], found[:, entry])[0, 1]) < 4 / np.sqrt(300)


def test_likelihoods_that_can_be_0():
    """Samples lie where y is possible; if there is no such place, they are an error."""
    prior = ss.Prior(lambda x, t: -x, ss.VPSDE(), (1,))

    def posterior(width):
        return prior.posterior(
            jnp.array([1.0]),
            log_likelihood=lambda x, y: jnp.where(jnp.abs(x - y)[0] < width, 0.0, -jnp.inf),
            prior_std=1.0,
            langevin_steps=400,
        )

    x = posterior(0.5).sample(20, steps=50)
    assert (np.abs(x - 1) < 0.5).all()
    with pytest.raises(ss.NotFiniteError, match="at step 50 of 50.*check .* the log-likelihood"):
        posterior(0.0).sample(5, steps=50)


def test_ranks():
    """The share of samples below, spread over its interval; ties are ordered at random."""
    rng = np.random.default_rng(0)
    samples = np.arange(1.0, 4).reshape(1, 3, 1)
    for truth, low, high in ((0.0, 0, 0.25), (1.5, 0.25, 0.5), (9.0, 0.75, 1), (2.0, 0.25, 0.75)):
        numbers = rng.random((400, 1, 1))
        found = [calibration.ranks(np.array([[truth]]), samples, u)[0, 0] for u in numbers]
        assert low <= min(found) < low + 0.02
        assert high - 0.02 < max(found) <= high
    for step, rank in ((1e-2, 1.5 / 4), (1e-5, 0.5)):  # Ties are relative to the spread.
        near = 100 + step * np.arange(3.0).reshape(1, 3, 1)
        found = calibration.ranks(np.array([[100 + 0.5 * step]]), near, np.full((1, 1), 0.5))
        np.testing.assert_allclose(found, rank)


def test_coverage_of_balls_is_that_of_tarp():
    """Ranks of the distance give the expected coverage of the authors' package."""
    tarp = pytest.importorskip("tarp")
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(300, 3))
    samples = 0.8 * rng.normal(size=(100, 300, 3))
    references = rng.normal(size=(300, 3))
    coverage, levels = tarp.get_tarp_coverage(
        samples, truth, references=references, norm=False, num_alpha_bins=30
    )
    distances = [np.linalg.norm(each - references, axis=-1) for each in (truth, samples)]
    ranks = calibration.ranks(
        distances[0][:, None], distances[1].T[..., None], rng.random((300, 1))
    )
    np.testing.assert_allclose((ranks < levels).mean(0), coverage, atol=0.03)


def test_verdict_of_uniform_ranks():
    """Of 100 correct posteriors, at most about 1 % are called wrong."""
    rng = np.random.default_rng(0)
    names = calibration.directions((8, 8))[1]
    kinds = [calibration.judge(rng.random((50, len(names))), names).kind for _ in range(100)]
    wrong = sum(kind != "calibrated" for kind in kinds)
    assert wrong <= scipy.stats.binom.ppf(0.999, 100, 0.01)
