"""The study of posteriors: exact scores and posteriors, Gibbs sampling, errors and costs."""

from __future__ import annotations

import functools
import importlib.util
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp

from benchmarks.records import Records
from benchmarks.tables import read_table
from studies import posterior_galaxies, posterior_torch, posteriors
from studies.posterior_cases import (
    DIGITS,
    MIXTURES,
    digits_problem,
    mixture_problem,
    signal_matrix,
    signal_problem,
)
from studies.posterior_galaxies import SMALLEST, Galaxies, galaxies_problem
from studies.posterior_priors import Mixture, Points, gibbs, increments
from studies.posterior_unseen import FUNCTIONS, settings, unseen_problem, unseen_table
from studies.posteriors import EXACT, OWN, Contestant

DENSITIES = {
    "Gaussian": stats.norm.pdf,
    "Laplace": lambda x: stats.laplace.pdf(x, scale=0.5**0.5),
    "Bernoulli-Laplace": lambda x: 0.1 * stats.laplace.pdf(x, scale=5**0.5),  # where x is not 0
    "Student": lambda x: 3**0.5 * stats.t(3).pdf(3**0.5 * x),
}
TWO = Mixture(
    np.array([0.7, 0.3]),
    np.array([[-1.0, 0.5], [1.0, -0.5]]),
    np.array([np.diag([0.04, 0.3]), [[0.3, 0.1], [0.1, 0.2]]]),
)
SMALL = increments("Laplace")._replace(entries=2)
POINTS = Points(np.full(2, 0.5), TWO.means, np.tile(0.4**2 * np.eye(2), (2, 1, 1)))


def log_density(mixture, x, level=0.0):
    """log p(x) of x (N, D) with noise, by scipy."""
    covariances = mixture.covariances + level**2 * np.eye(x.shape[1])
    parts = [
        math.log(weight) + stats.multivariate_normal(mean, covariance).logpdf(x)
        for weight, mean, covariance in zip(mixture.weights, mixture.means, covariances)
        if weight > 1e-12 and np.linalg.det(covariance) > 0
    ]
    return logsumexp(parts, axis=0)


@pytest.mark.parametrize("kind", DENSITIES)
def test_densities_of_increments(kind):
    prior, x = increments(kind)._replace(entries=1), np.array([0.05, 0.3, 1.0, 3.0])
    assert prior.std == pytest.approx(1)
    found = np.exp(log_density(prior.mixture(), x[:, None]))
    np.testing.assert_allclose(found, DENSITIES[kind](x), rtol=5e-3)


@pytest.mark.slow
@pytest.mark.parametrize("level", [0.01, 0.5, 150.0])
@pytest.mark.parametrize("prior", [TWO, SMALL, POINTS], ids=["mixture", "increments", "points"])
def test_scores(prior, level):
    """They are gradients of log-densities; so are their derivatives, both forward and reverse."""
    rng = np.random.default_rng(0)
    u = np.float32(prior.draw(rng, 4) + level * rng.normal(size=(4, 2)))
    mixture = prior if isinstance(prior, Mixture) else prior.mixture()
    step = 1e-3 * math.hypot(level, 0.02)

    def gradient(u):
        moves = step * np.concatenate([np.eye(2), -np.eye(2)])
        ends = np.array([log_density(mixture, u + move, level) for move in moves])
        return (ends[:2] - ends[2:]).T / (2 * step)

    levels, direction = np.full((4, 1), level, np.float32), np.float32([[0.6, -0.8]] * 4)
    score = functools.partial(prior.score, prior.arrays, level=levels)
    found, slope = jax.jvp(score, (u,), (direction,))
    scale = np.abs(gradient(u.astype(float))).max()
    np.testing.assert_allclose(found, gradient(u.astype(float)), atol=1e-3 * scale)
    moved = [gradient(u + sign * 3 * step * direction) for sign in (1.0, -1.0)]
    expected = (moved[0] - moved[1]) / (6 * step)
    np.testing.assert_allclose(slope, expected, atol=0.01 * np.abs(expected).max())
    np.testing.assert_allclose(jax.vjp(score, u)[1](direction)[0], slope, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("prior", [TWO, SMALL], ids=["mixture", "increments"])
def test_posteriors(prior):
    """Those of mixtures, and by Gibbs sampling, beside quadrature on a grid."""
    matrix, y, noise = np.array([[1.0, 0.5]]), np.array([0.8]), 0.3
    is_mixture = isinstance(prior, Mixture)
    mixture = prior if is_mixture else prior.mixture()
    found, log_evidence = mixture.posterior(matrix, y, noise)
    line = np.linspace(-6, 6, 601) + 0.003
    grid = np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
    logs = log_density(prior, grid) if is_mixture else np.log(DENSITIES["Laplace"](grid)).sum(1)
    logs = logs + stats.norm(y[0], noise).logpdf(grid @ matrix[0])
    weights = np.exp(logs - logsumexp(logs))
    mean = weights @ grid
    covariance = (grid - mean).T * weights @ (grid - mean)
    assert log_evidence == pytest.approx(logsumexp(logs) + 2 * math.log(0.02), abs=5e-3)
    rng = np.random.default_rng(0)
    draws = [found.draw(rng, 20_000)]
    if not is_mixture:
        chains = np.repeat(y[None], 100, 0)
        draws.append(gibbs(prior, matrix, chains, noise, rng, count=200, burn_in=50).reshape(-1, 2))
    for x in draws:
        np.testing.assert_allclose(x.mean(0), mean, atol=0.02)
        np.testing.assert_allclose(np.cov(x.T), covariance, atol=0.02)


@pytest.mark.parametrize("operator", ["blur", "missing", "Fourier"])
def test_gibbs_of_gaussian_signals(operator):
    """Draws are independent, with the mean and the covariance of the closed form."""
    problem = signal_problem(operator, "Gaussian", 1, chains=100, sweeps=20)
    matrix, x = problem.matrix, problem.exact[0]
    gram = matrix @ matrix.T + problem.noise**2 * np.eye(len(matrix))
    gain = np.linalg.solve(gram, matrix).T
    covariance = np.eye(len(gain)) - gain @ matrix
    error = np.linalg.solve(np.linalg.cholesky(covariance), x.mean(0) - gain @ problem.y[0])
    assert stats.chi2(len(gain)).sf(len(x) * (error**2).sum()) > 1e-3
    assert np.abs(np.cov(x.T) - covariance).max() < 0.2


def test_operators_of_signals():
    """They measure the running sum: that of the first increment is constant."""
    for name, rows in (("blur", 30), ("missing", 16)):
        np.testing.assert_allclose(signal_matrix(name)[:, 0], np.ones(rows))
    waves = signal_matrix("Fourier") @ np.linalg.inv(np.tril(np.ones((64, 64))))
    np.testing.assert_allclose(waves @ waves.T, np.eye(23), atol=1e-9)


def test_errors():
    """Of samples with planted errors of one standard deviation, and of the weights of modes."""
    problem = mixture_problem(next(iter(MIXTURES)), 3)
    assert max(problem.errors(problem.others).values()) < 0.03
    biased = problem.errors(problem.others + problem.prior.std)
    assert biased["mean"] == pytest.approx(1, abs=0.03)
    missed = [1 - share(x)[1] for share, x in zip(problem.shares, problem.exact)]
    one = np.tile(np.array([1.0, -1.0]), (3, 50, 1))  # near the second mode
    assert problem.errors(one)["weights"] == pytest.approx(np.mean(missed))
    signal = signal_problem("missing", "Gaussian", 2, chains=20, sweeps=50)
    assert signal.errors(signal.others)["coverage"] == pytest.approx(90, abs=2)
    center = signal.others.mean(1, keepdims=True)
    narrow = signal.errors(center + 0.5 * (signal.others - center))
    assert narrow["coverage"] == pytest.approx(59, abs=3)  # P(|z| < 0.822)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FUNCTIONS)
def test_posteriors_of_functions(kind):
    """Integrals over squares, beside weighted draws of the prior."""
    fits = (i for i in range(100) if settings(i)[0] == kind and settings(i)[-1] > 0.1)
    problem, rng = unseen_problem(next(fits), 1), np.random.default_rng(0)
    x = problem.prior.draw(rng, 400_000)
    z = x @ problem.matrix.T
    logs = stats.norm(problem.y[0], problem.noise).logpdf(FUNCTIONS[kind](z)).sum(1)
    weights = np.exp(logs - logsumexp(logs))
    error = math.sqrt(np.square(weights).sum())
    assert problem.log_evidence[0] == pytest.approx(
        logsumexp(logs) - math.log(len(x)), abs=4 * error
    )
    mean, std = weights @ x, x.std()
    np.testing.assert_allclose(problem.exact[0].mean(0), mean, atol=4 * std * (error + 1 / 64))
    kept = x[rng.choice(len(x), 4096, p=weights)]
    gap = np.abs(problem.shares[0](kept) - problem.shares[0](problem.exact[0])).sum()
    assert gap < 0.2


def test_posteriors_of_digits():
    """Draws agree with y; there are about as many digits of each class."""
    problem = digits_problem(next(iter(DIGITS)), 2)
    misfit = problem.exact @ problem.matrix.T - problem.y[:, None]
    assert misfit.std() == pytest.approx(problem.noise, rel=0.3)
    small = problem.prior.means + 0.01
    assert problem.shares[0](small)[:3] == pytest.approx([0.1, 0.1, 0.1], abs=0.02)


def test_galaxies(monkeypatch):
    """The score at a noise level, and weighted draws, for a network and a pool of N(0, 0.3^2)."""
    alpha = lambda t: jnp.exp(-t / 2)[:, None, None]
    network = lambda _, x, t: -x / (1 - 0.91 * alpha(t) ** 2)
    monkeypatch.setattr(posterior_galaxies, "network", network)
    x = 0.3 * np.random.default_rng(0).normal(size=(2048, 1024))
    monkeypatch.setattr(posterior_galaxies, "pool", lambda: (Galaxies((), 0.3), x))
    u, levels = np.float32(x[:3]), np.float32([[0.0], [0.5], [100.0]])
    expected = -u / (0.09 + SMALLEST + levels**2)
    np.testing.assert_allclose(Galaxies.score((), u, levels), expected, rtol=1e-3)
    problem = galaxies_problem.__wrapped__("4 of 1,024 pixels, noise 0.3", 3)
    known = problem.matrix.any(0)
    mean, std = problem.exact.mean(1), problem.exact.std(1)
    np.testing.assert_allclose(mean[:, known], problem.y / 2, atol=0.15)
    assert std[:, known].mean() == pytest.approx(0.3 / math.sqrt(2), rel=0.1)
    assert std[:, ~known].mean() == pytest.approx(0.3, rel=0.05)
    assert not np.isin(problem.exact[..., 0], problem.others[..., 0]).any()
    assert problem.errors(problem.others)["coverage"] == pytest.approx(90, abs=3)


def test_table_of_unseen_cases():
    """Excess errors and log p(y) are counted by operator, the latter where particles suffice."""
    exact = [{"weights": 0.01, "mean": 0.02}] * 5
    good = {"weights": 0.02, "mean": 0.06, "sizes": [50.0, 5.0], "gaps": [0.1, 9.0]}
    bad = [good | {"weights": 0.05}, good | {"gaps": [0.3, 0.0]}]
    text = "\n".join(unseen_table(exact, [good, *bad, good, good]))
    rows = {each["operator"]: [*each.values()][1:] for each in read_table(text, "operator")}
    assert rows["all"] == ["5", "4", "4 of 5", "28 % (5.0 %)"]
    assert rows["mask"][:3] == ["1", "0", "1 of 1"]


@pytest.mark.slow
def test_rows_of_the_tables(tmp_path, monkeypatch):
    """Errors, step sizes and costs of our methods; results are kept; no library is needed."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(posteriors, "SCALES", {OWN: (1e30, 0.1)})
    name, records = next(iter(MIXTURES)), Records(tmp_path / "records.jsonl")
    contestants = [Contestant(OWN, method) for method in ("dps", "moment_matching", "smc")]
    contestants += [Contestant(EXACT, "draws"), Contestant("azula", "PiGDM")]
    makers = {name: functools.partial(mixture_problem, name)}
    kind = posteriors.Kind(makers, contestants, 2, 200, guided=10, pc=30)
    found = posteriors.measure_all(records, kind)
    dps, matching, weighted, exact = (each[name] for each in found.values())
    assert (dps["scale"], dps["gradients"]) == (0.1, 30)
    assert 20 <= matching["gradients"] <= 10 * 3 + 10
    assert weighted["gradients"] >= 2 * 60
    assert weighted["log_rms"] < 0.1
    assert exact["weights"] < weighted["weights"] + 0.05 < 0.1
    lines = posteriors.table(found, {"title": name}, "{weights:.3f} / {mean:.3f}")
    (row,) = (each for each in read_table("\n".join(lines), "sampler") if "smc" in each["sampler"])
    assert row["title"] == f"{weighted['weights']:.3f} / {weighted['mean']:.3f}"
    old = [line.replace("0", "9") for line in lines]
    new = posteriors.replaced(old, [*old[:2], *(line for line in lines if "smc" in line)])
    assert [line for line in new if "smc" in line] == [line for line in lines if "smc" in line]
    assert [line for line in new if "smc" not in line] == [x for x in old if "smc" not in x]
    monkeypatch.setattr(Contestant, "measure", lambda *_: pytest.fail("It is measured again."))
    assert posteriors.measure_all(Records(records.path), kind) == found


@pytest.mark.slow
def test_denoiser_of_the_peers():
    """It is the mean of x_0 that follows from our score, with its gradient."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (requirements-dev.txt)")
    problem = mixture_problem(next(iter(MIXTURES)), 1)
    x, t = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32), jnp.full(3, 0.3)
    alpha, std = posterior_torch.scales_at(torch.tensor(0.3))
    np.testing.assert_allclose(alpha, posterior_torch.VP.alpha(t)[0], rtol=1e-5)
    np.testing.assert_allclose(std, posterior_torch.VP.std(t)[0], rtol=1e-5)

    def mean(x):
        levels = (posterior_torch.VP.std(t) / posterior_torch.VP.alpha(t))[:, None]
        u = x / posterior_torch.VP.alpha(t)[:, None]
        return u + levels**2 * problem.prior.score(problem.prior.arrays, u, levels)

    expected, pull_back = jax.vjp(mean, jnp.asarray(x))
    given = torch.tensor(x)[:, None].requires_grad_()
    found = posterior_torch.make_denoiser(problem)(given, alpha, std)
    np.testing.assert_allclose(found.detach()[:, 0], expected, atol=1e-5)
    found.square().sum().backward()
    (gradient,) = pull_back(2 * expected)
    np.testing.assert_allclose(given.grad[:, 0], gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("peer", [("azula", "MMPS"), ("deepinv", "moment matching")])
def test_samplers_of_the_peers(peer):
    """Moment matching is exact for a Gaussian but for its steps; calls are counted."""
    pytest.importorskip(peer[0], reason="It is not installed (requirements-dev.txt)")
    make = functools.partial(signal_problem, "missing", "Gaussian", chains=20, sweeps=50)
    found = Contestant(*peer).measure(make, posteriors.Kind({}, [], 1, 200))
    assert found["mean"] < 0.1
    assert found["evaluations"] == 60
