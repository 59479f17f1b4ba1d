"""The study of inference: reference posteriors, C2ST, its table, and the estimators of sbi."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

import score_sde as ss
from benchmarks.records import Records
from benchmarks.tables import read_table
from models.mlp import MLP
from studies import inference
from studies.inference_tasks import TASKS, c2st, sbi_estimator, slcp_log_likelihood


def ks(samples, cdf):
    return stats.kstest(samples, cdf).pvalue


def test_linear_posterior():
    x = np.linspace(-0.4, 0.5, 10)
    theta = TASKS["linear Gaussian"].reference(np.random.default_rng(0), x, 2000)
    z = (theta - x / 2) / math.sqrt(0.05)
    assert min(ks(each, "norm") for each in z.T) > 1e-3
    assert np.abs(np.corrcoef(z.T) - np.eye(10)).max() < 0.1


@pytest.mark.parametrize("name", ["linear Gaussian", "Gaussian mixture", "two moons"])
def test_ranks_of_true_parameters(name):
    """They are uniform among draws of the posterior given their data."""
    task, ranks = TASKS[name], []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        theta, (x,) = task.draw(rng, 1)
        draws = task.reference(rng, x, 100)
        assert task.supports(draws).all()
        ranks.append((draws < theta).sum(0) + rng.random(task.dim))
    assert min(ks(each / 101, "uniform") for each in np.transpose(ranks)) > 1e-3


def test_two_moons_have_two_modes():
    """They are mirror images, and the moon is 0.25 + r cos(angle) with r about 0.1."""
    draws = TASKS["two moons"].reference(np.random.default_rng(0), np.array([-0.3, 0.1]), 4000)
    u = draws.sum(-1) / math.sqrt(2)
    assert stats.ks_2samp(u, -u).pvalue > 1e-3
    assert 0.54 < np.abs(u).min() < np.abs(u).max() < 0.7


def test_simulator_and_likelihood_of_slcp():
    """Normal points (Papamakarios et al. 2019); all signs of theta[2] and theta[3] are the same."""
    theta = np.array([[0.7, -2.9, -1.0, 0.9, 0.6], [0.7, -2.9, 1.0, -0.9, 0.6]])
    s1, s2, correlation = 1.0, 0.81, math.tanh(0.6)
    covariance = np.array([[s1**2, correlation * s1 * s2], [correlation * s1 * s2, s2**2]])
    normal = stats.multivariate_normal(theta[0, :2], covariance)
    rng = np.random.default_rng(0)
    x = TASKS["SLCP"].simulate(rng, np.repeat(theta[:1], 5000, 0)).reshape(-1, 4, 2)
    np.testing.assert_allclose(x.mean((0, 1)), normal.mean, atol=0.04)
    np.testing.assert_allclose(np.cov(x.reshape(-1, 2).T), covariance, atol=0.04)
    found = [slcp_log_likelihood(theta, each.ravel()) for each in x[:3]]
    expected = [normal.logpdf(each).sum() for each in x[:3]]
    np.testing.assert_allclose(np.diff(found, axis=0).T, [np.diff(expected)] * 2)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_chains_of_slcp(seed):
    """Their moments are those of the prior, weighted; the four modes have equal weights."""
    task, rng = TASKS["SLCP"], np.random.default_rng(seed)
    _, (x,) = task.draw(rng, 1)
    prior, _ = task.draw(rng, 400_000)
    logs = slcp_log_likelihood(prior, x)
    weights = np.exp(logs - logs.max()) / np.exp(logs - logs.max()).sum()
    size, draws = 1 / np.square(weights).sum(), task.reference(rng, x, 2000)
    assert size > 1000  # the effective number of weighted draws
    of_prior, found = (np.concatenate([np.abs(each), each**2], 1) for each in (prior, draws))
    mean = weights @ of_prior
    stderr = np.sqrt(weights @ (of_prior - mean) ** 2 * (1 / size + 1 / len(draws)))
    assert np.abs((found.mean(0) - mean) / stderr).max() < 4
    modes = np.unique(np.sign(draws[:, 2:4]), axis=0, return_counts=True)[1]
    assert stats.chisquare(modes).pvalue > 1e-3


@pytest.mark.parametrize("shift", [0.0, 1.0, 3.0])
def test_c2st(shift):
    """Its expectation is the accuracy of the best classifier, whatever the units of entries."""
    x, y = np.random.default_rng(0).normal(size=(2, 1500, 2))
    expected = stats.norm.cdf(shift * math.sqrt(2) / 2)
    assert c2st(x * [1e3, 1e-3], (y + shift) * [1e3, 1e-3]) == pytest.approx(expected, abs=0.03)


def test_c2st_of_spreads():
    """As the best classifier of |x|. Without early stopping, the MLP memorizes, and finds 0.54."""
    x, y = np.random.default_rng(0).normal(size=(2, 1000, 5))
    radius = 5 * math.log(1.44) / (1 - 1 / 1.44)  # squared: both densities are equal there
    expected = (stats.chi2.cdf(radius, 5) + stats.chi2.sf(radius / 1.44, 5)) / 2
    assert c2st(x, 1.2 * y) == pytest.approx(expected, abs=0.04)


@pytest.mark.slow
def test_table(tmp_path, monkeypatch):
    """A row for each method; results are kept; sbi is not needed."""
    for name, value in {"SIMULATIONS": 400, "OBSERVATIONS": 2, "SAMPLES": 300}.items():
        monkeypatch.setattr(inference, name, value)
    monkeypatch.setattr(inference, "TASKS", {"two moons": TASKS["two moons"]})
    monkeypatch.setattr(inference.importlib.util, "find_spec", lambda name: None)
    train = functools.partial(ss.train, steps=100, nf=16)
    monkeypatch.setattr(ss, "train", train)
    records = Records(tmp_path / "records.jsonl")
    lines = inference.table(inference.measure_all(records, 2))
    floor, own = read_table("\n".join(lines), "task")
    assert float(floor["C2ST"].split()[0]) < 0.6 < float(own["C2ST"].split()[0])
    assert own["log p of the parameters"]
    monkeypatch.setattr(inference, "measure", lambda *_: pytest.fail("It is measured again."))
    assert inference.table(inference.measure_all(Records(records.path), 2)) == lines


@pytest.mark.parametrize("method", ["NPE", "NPSE"])
def test_estimators_of_sbi(method):
    pytest.importorskip("sbi", reason="It is not installed (requirements-dev.txt)")
    task, rng = TASKS["linear Gaussian"], np.random.default_rng(0)
    draw, log_prob = sbi_estimator(method, task, task.draw(rng, 300), seed=0)
    x = np.full(10, 0.4)
    np.testing.assert_allclose(draw(x, 500).mean(), 0.2, atol=0.15)
    assert np.isfinite(log_prob(np.full((1, 10), 0.2), x)[0])


@pytest.mark.parametrize("vector_at", ["embedding", "input"])
def test_where_a_condition_enters(vector_at):
    """The output depends on the vector and on its flag; without an option, as in early networks."""
    sizes = {"image_size": (), "num_channels": 2, "vector_size": 3, "nf": 8, "num_res_blocks": 1}
    build = functools.partial(MLP, **sizes, vector_at=vector_at)
    graph, params = nnx.split(build(rngs=nnx.Rngs(0)))
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)  # The last layer starts as 0.
    network, x, label = nnx.merge(graph, params), jnp.ones((4, 2)), jnp.zeros(4)
    vector = jnp.eye(4).at[1, 3].set(1.0)
    outputs = np.asarray(network(x, label, vector=vector))
    assert len(np.unique(outputs[:, 0].round(5))) == 4
    with pytest.raises(ValueError, match="conditioned on it"):
        network(x, label)
    early = jax.tree.structure(nnx.split(MLP(**sizes, rngs=nnx.Rngs(0)))[1])
    assert (jax.tree.structure(params) == early) == (vector_at == "embedding")


@pytest.mark.slow
def test_few_events_have_dropout(monkeypatch):
    """Batches may be many events, whatever the size of the first ones; an option overrides it."""
    events, sizes = np.random.default_rng(0).normal(size=(40, 2)), {"nf": 8, "num_res_blocks": 1}
    train = functools.partial(ss.train, steps=1, batch_size=8, **sizes)
    monkeypatch.setattr("training.arrays.FEW", 40)
    rates = [train(each).config.model.dropout for each in (events[1:], events)]
    rates.append(train(events[1:], dropout=0.3).config.model.dropout)
    batches = ss.train(lambda: iter(np.split(events, 20)), steps=1, **sizes)
    assert [*rates, batches.config.model.dropout] == [0.1, 0.0, 0.3, 0.0]
