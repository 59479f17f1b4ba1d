"""The comparison of posterior samplers, at tiny size and without other libraries."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.records import Records
from studies import posterior_peers, posterior_problem, posterior_torch
from studies.posterior_problem import COVARIANCE, SDE
from tests import gaussian_posterior
from tests.gaussian_posterior import SHAPE, SIZE


@pytest.mark.slow
def test_rows_and_section(monkeypatch, tmp_path):
    """A step of moment matching with 5 iterations evaluates one score and 6 gradients."""
    monkeypatch.setattr(posterior_peers, "SCALES", (0.05, 1e30))
    problem = posterior_problem.make_problem("dense", 0.2)
    own = posterior_peers.own_contestants({"dps": (100,), "moment_matching": (20,)})
    sizes = {"count": 200, "timed": 20, "rounds": 1, "simulations": (20, 20)}
    records = Records(tmp_path / "records.jsonl")
    dps, matching = posterior_peers.measure(records, problem, own, **sizes)
    assert (dps["evaluations"], dps["gradients"], dps["scale"]) == (100, 100, 0.05)
    last = 5 + 4  # of the draw after the last step
    assert (matching["evaluations"], matching["gradients"]) == (20 + 1, 20 * 6 + last)
    assert matching["mean"] < 3 * matching["floor"]
    assert matching["calibration"].startswith("calibrated, ")
    text = "\n".join(posterior_peers.section({"dense": [dps, matching]}))
    assert "| this code: `dps` | 100 | 0.05 | 100 | 100 |" in text


@pytest.mark.parametrize(
    ("factor", "kind"), [(1.0, "calibrated"), (0.5, "overconfident"), (2.0, "underconfident")]
)
def test_verdict_on_the_exact_posterior(factor, kind):
    """Its standard deviation is multiplied by a factor."""
    problem = posterior_problem.make_problem("dense", 0.2)
    mean, exact = gaussian_posterior.posterior(COVARIANCE, problem.operator, problem.y, 0.2)
    slope = exact @ problem.a.T / 0.2**2  # of the mean in y

    def prepare(_, y, scale):
        means = mean + (problem.reduce(y) - problem.reduce(problem.y)) @ slope.T

        def draw(seed):
            rng = np.random.default_rng(seed)
            return means + scale * rng.multivariate_normal(np.zeros(SIZE), exact, len(means))

        return draw

    found = posterior_problem.calibrate(prepare, problem, factor, 200, 31)
    assert found.kind == kind


def test_missing_libraries_are_skipped(monkeypatch, capsys):
    monkeypatch.setattr(posterior_torch, "missing", lambda *names: [names[-1]])
    assert posterior_torch.contestants() == []
    assert "azula is skipped: not installed: azula" in capsys.readouterr().out


def test_denoiser_of_the_peers():
    """It is the mean of x_0 that follows from our score."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (requirements-dev.txt)")
    x, t = np.random.default_rng(0).normal(size=(3, *SHAPE)).astype(np.float32), 0.3
    times = jnp.full(3, t)
    score = gaussian_posterior.exact_score(SDE, COVARIANCE)(jnp.asarray(x), times)
    alpha, std = posterior_torch.scales_at(torch.tensor(t))
    np.testing.assert_allclose(alpha, SDE.alpha(times)[0], rtol=1e-5)
    np.testing.assert_allclose(std, SDE.std(times)[0], rtol=1e-5)
    found = posterior_torch.make_denoiser()(torch.tensor(x).reshape(3, 1, SIZE), alpha, std)
    expected = SDE.posterior_mean(score, jnp.asarray(x), times).reshape(3, 1, SIZE)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("library", ["azula", "deepinv"])
def test_samplers_of_the_peers(library):
    """Moment matching is exact but for its steps."""
    pytest.importorskip(library, reason=f"{library} is not installed (requirements-dev.txt)")
    problem = posterior_problem.make_problem("dense", 0.2)
    found = [each for each in posterior_torch.contestants() if each.library == library]
    (matching,) = (each for each in found if each.method[0].lower() == "m" and each.steps == 20)
    errors = problem.errors(matching.prepare(problem, problem.repeat(500), 1.0)(0))
    assert errors.mean < 4 * errors.floor
    counts = posterior_problem.count_evaluations(matching, problem, 1.0)
    assert counts["evaluations"] == 20
