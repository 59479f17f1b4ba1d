"""`--mode=calibrate` on a tiny model: files, resumption, and agreement with the Python API."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

import score_sde as ss
from api.posterior import Posterior
from commands import calibration
from commands.restoration_problems import operator_checksum
from controllable.tasks import TASKS
from experiment import Experiment
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

    def fail(*_, **__):
        raise AssertionError("A finished round was computed again.")

    monkeypatch.setattr(Posterior, "ranks", fail)
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
        ({"restore.method": "ddrm"}, "'ddrm' changes the steps of the sampler 'pc'"),
        ({"restore.task": "sharpen"}, "restore.task = 'sharpen'"),
        ({"restore.factor": 3}, "3x3 pixels .* See restore.factor"),
    ],
)
def test_errors(workdir, changes, message):
    """Nothing is written."""
    before = sorted(workdir.rglob("*"))
    refused(message, calibration.calibrate, tiny.config(**{**FIELDS, **changes}), str(workdir))
    assert sorted(workdir.rglob("*")) == before
