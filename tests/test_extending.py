"""Each addition of docs/extending.md is one file outside of this code, which trains or samples."""

from __future__ import annotations

import runpy
import sys

import pytest

import datasets
import evaluation
import sampling
import score_sde as ss
import sde_lib
import training
from commands import restoration, samples
from configs.fields import FIELDS
from configs.vp import digits_ddpmpp_continuous
from controllable import methods, tasks
from errors import InputError
from models import NETWORKS
from models.score import PARAMETERIZATIONS
from solvers import SOLVERS
from tests import tiny
from tests.documented import ROOT, snippets

REGISTRIES = (
    *(sde_lib.SDES, PARAMETERIZATIONS, sampling.PREDICTORS, sampling.CORRECTORS, SOLVERS),
    *(NETWORKS, datasets.DATASETS, tasks.TASKS, methods.METHODS),
)
SNIPPETS = snippets(ROOT / "docs" / "extending.md")
END = """

def get_config():
    from tests import tiny

    return tiny.config(**{changes!r})
"""
NETWORK = {"model.name": "convolutions", "model.width": 4, "model.num_scales": 21}
SOLVER = {"sampling.method": "solver", "sampling.num_steps": 3}
PC = {"sampling.method": "pc", "sampling.num_steps": 21}
METRICS = {"eval.enable_sampling": True, "eval.enable_metrics": True, "eval.num_samples": 16}
METRICS |= {"eval.enable_loss": False, "eval.enable_bpd": False, "eval.batch_size": 16}
CASES = {  # What the snippet contains: the command, and the fields that name the addition.
    "Cosine": ("train", {"training.sde": "cosine", "model.speed": 1.1}),
    "unit_noise": ("train", {"model.parameterization": "unit_noise"}),
    "Convolutions": ("train", {}),
    "stripes": ("train", {"data.dataset": "stripes", "training.batch_size": 8}),
    "without_noise": ("sample", {"sampling.predictor": "without_noise"} | PC),
    "half_langevin": ("sample", {"sampling.corrector": "half_langevin"} | PC),
    "noisy_ddim": ("sample", {"sampling.solver": "noisy_ddim", "sampling.noise_share": 0.3}),
    "TASKS": ("restore", {"restore.task": "lines", "restore.every": 3, "restore.method": "pigdm"}),
    "METHODS": ("restore", {"restore.method": "pull", "restore.strength": 0.5}),
    "pixels(images)": ("evaluate", METRICS | {"eval.features": "own:pixels"}),
}


@pytest.fixture(autouse=True)
def registries(monkeypatch):
    """Remove what a test enters; the network of the page, which compiles fast, is always there."""
    before = [dict(registry) for registry in REGISTRIES]
    monkeypatch.setattr(sys, "path", [*sys.path])
    exec(snippet("Convolutions"), {})
    yield
    sys.modules.pop("own", None)
    for registry, entries in zip(REGISTRIES, before):
        registry.clear()
        registry.update(entries)


def snippet(text: str) -> str:
    (found,) = [each for each in SNIPPETS if text in each and "get_config" not in each]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("text", CASES)
def test_additions(text, tmp_path):
    command, named = CASES[text]
    path, workdir, changes = tmp_path / "own.py", str(tmp_path / "w"), NETWORK | SOLVER | named
    path.write_text(snippet(text) + END.format(changes=changes))
    config = runpy.run_path(str(path))["get_config"]()
    assert named.keys() <= dict(FIELDS.items()).keys()
    if command == "train":
        config.training.update(n_iters=1, snapshot_freq=1)
        training.train(config, workdir)
        assert ss.load(workdir, config=config).sample(2, steps=3).shape == (2, 8, 8, 1)
        return
    tiny.untrained(tmp_path / "w", **changes)
    if command == "sample":
        assert (samples.sample(config, workdir, count=2) / "grid.png").exists()
    elif command == "restore":
        config.restore.update(samples=1, count=2)
        assert restoration.restore(config, workdir)["images"] == 2
    else:
        assert evaluation.evaluate(config, workdir)[3]["metrics"]["frechet"]["value"] > 0


@pytest.mark.long
def test_samples_with_the_sde_of_the_page(tmp_path):
    """They are digits: noise has a distance of 7, and samples with another SDE have 0.5."""
    exec(snippet("Cosine"), {"__name__": __name__})
    config = digits_ddpmpp_continuous.get_config()
    config.training.update(sde="cosine", n_iters=1000, snapshot_freq=1000, snapshot_sampling=False)
    config.eval.update(enable_loss=False, enable_bpd=False, num_samples=120)
    training.train(config, str(tmp_path))
    for method in ("solver", "pc"):
        config.sampling.update(method=method, predictor="reverse_diffusion")
        result = evaluation.evaluate(config, str(tmp_path), method)[1]
        assert result["metrics"]["frechet"]["value"] < 1.5, method
    config.sampling.predictor = "euler_maruyama"
    with pytest.raises(InputError, match="step 1 of 250 of the sampler is unstable"):
        evaluation.evaluate(config, str(tmp_path), "unstable")
