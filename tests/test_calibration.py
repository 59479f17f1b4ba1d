"""`--mode=calibrate` on a tiny model, and tests of ranks that depend on y."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import score_sde as ss
from api import calibration as statistics
from api.posterior import Posterior
from commands import calibration
from commands.restoration import operator_checksum
from controllable.tasks import TASKS
from experiment import Experiment
from sde_lib import EDMSDE
from studies.calibration import judge, modes, prior_of
from studies.correctors import errors
from tests import tiny
from tests.refusal import refused

FIELDS = {
    "sampling.method": "solver",
    "sampling.num_steps": 4,
    "restore.task": "super_resolution",
    "restore.method": "pigdm",
    "restore.noise": 0.1,
    "calibrate.simulations": 22,
    "calibrate.samples": 20,
    "eval.batch_size": 80,
}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return tiny.untrained(tmp_path_factory.mktemp("calibration"), **FIELDS)


@pytest.mark.slow
def test_files_and_resumption(workdir, monkeypatch):
    """Six rounds of four simulations, which a second run reuses, and the ranks of the API."""
    config = tiny.config(**FIELDS)
    summary = calibration.calibrate(config, str(workdir))
    (folder,) = (workdir / "calibration").glob("checkpoint_*/super_resolution-pigdm")
    assert (folder / "calibration.png").stat().st_size > 10_000
    stored = json.loads((folder / "calibration.json").read_text())
    assert stored["simulations"] == summary["simulations"] == 22
    assert len(list(folder.glob("ranks_*.npz"))) == 6

    model = ss.load(workdir)
    operator = ss.operators.block_mean(model.event_shape, 2)
    posterior = model.posterior(
        None, operator, noise=0.2, method="pigdm", prior_std=model.config.restore.prior_std
    )
    key = Experiment(config).key("calibrate")
    ranks = posterior.ranks(0, 4, 20, key, posterior.make_sampler()).ranks
    assert posterior.statistics == stored["names"]
    np.testing.assert_allclose(ranks, np.array(stored["ranks"])[:4], atol=1 / 21 + 1e-6)

    monkeypatch.delattr(Posterior, "ranks")  # No round is computed again.
    assert calibration.calibrate(config, str(workdir)) == summary


def test_ranks_depend_on_the_measurement(tmp_path):
    """Another mask in the same file is another measurement."""
    found = []
    for known in (2, 7):
        pixels = np.zeros((8, 8), np.uint8)
        pixels[:known] = 255
        Image.fromarray(pixels).save(tmp_path / "mask.png")
        operator = TASKS["inpaint"].make((8, 8, 1), mask=str(tmp_path / "mask.png"), share=0.5)
        found += [operator_checksum(operator, (8, 8, 1)) for _ in range(2)]
    assert found[0] == found[1] != found[2] == found[3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"calibrate.simulations": 3}, "calibrate.simulations = 3 must be"),
        ({"restore.factor": 3}, "3x3 pixels .* See restore.factor"),
    ],
)
def test_errors(workdir, changes, message):
    """Nothing is written."""
    before = sorted(workdir.rglob("*"))
    refused(message, calibration.calibrate, tiny.config(**{**FIELDS, **changes}), str(workdir))
    assert sorted(workdir.rglob("*")) == before


# --- tests of the independence of ranks and y ---

SAMPLES = 63


@pytest.mark.slow
def test_wrong_mode_weights_are_rejected():
    """Weights are off by 0.2; most tests of the ranks alone pass. Exact samples pass."""
    rejected, by_ranks = {}, {}
    for error in (0.2, 0.0):
        found = [judge(np.random.default_rng(seed), 400, weights=error) for seed in range(6)]
        rejected[error] = sum(each.kind != "calibrated" for each in found)
        alone = [
            min(p for name, p in each.p_values.items() if name not in statistics.INDEPENDENCE)
            for each in found
        ]
        by_ranks[error] = sum(p < statistics.SIGNIFICANCE / 40 for p in alone)
    assert rejected[0.2] >= 5 > 3 > by_ranks[0.2]
    assert rejected[0.0] <= 1


def test_p_values_of_independent_ranks_are_uniform():
    """Also for measurements that are images, or the same in all simulations."""
    found = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        y = statistics.features(rng.normal(size=(30, 5, 5, 3)))
        found.append(statistics.independence(rng.random((30, 3)), y))
    for values in np.transpose(found):
        assert abs(np.mean(values < 0.2) - 0.2) < 4 * np.sqrt(0.2 * 0.8 / 100)
    constant = statistics.independence(rng.random((60, 3)), np.ones((60, 2)))
    assert min(constant) > 0.5


def test_what_can_remain():
    """Errors of the stated size are found in about half of 60 repetitions."""
    rng, names = np.random.default_rng(0), ["x[0]"]
    count = 300

    def share_found(scale: float, shift: float) -> float:
        found = 0
        for _ in range(60):
            truth, samples = rng.normal(size=(count, 1)), rng.normal(size=(count, SAMPLES, 1))
            ranks = statistics.ranks(truth, scale * samples + shift, rng.random((count, 1)))
            found += statistics.judge(ranks, names).kind != "calibrated"
        return found / 60

    spread, bias = statistics.detectable(rng.random((count, 1)), names)
    assert 0.25 < share_found(1 - spread, 0.0) < 0.75
    assert 0.25 < share_found(1.0, bias) < 0.85


def test_the_mixture_of_the_studies():
    """Errors of planted samples, and the score."""
    mixture, rng = modes(64)[0], np.random.default_rng(0)  # Its modes do not overlap.
    x = mixture.draw(rng, 2000)
    centers = mixture.means[np.square(x[:, None] - mixture.means).sum(-1).argmin(1)]
    is_first = (centers == mixture.means[0]).all(1)
    np.testing.assert_allclose(errors(mixture, x), 0, atol=3)
    np.testing.assert_allclose(errors(mixture, centers + 1.2 * (x - centers))[1], 20, atol=1)
    np.testing.assert_allclose(errors(mixture, x[is_first])[0], 60, atol=1e-6)

    def log_p(x):
        parts = jax.vmap(jax.scipy.stats.multivariate_normal.logpdf, (None, 0, 0))(
            x, mixture.means, jnp.asarray(mixture.covariances + 1e-4 * np.eye(64))
        )
        return jax.nn.logsumexp(parts + jnp.log(mixture.weights))

    point = jnp.asarray(x[0], jnp.float32)
    found = prior_of(mixture, EDMSDE()).score(point[None], jnp.full(1, 0.01))[0]
    expected = jax.grad(log_p)(point)
    np.testing.assert_allclose(found, expected, atol=0.01 * float(jnp.abs(expected).max()))
