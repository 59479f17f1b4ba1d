"""Training, evaluation, restoration and latent codes of rectangular images."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import evaluation
import training
from commands import restoration, restoration_problems
from experiment import Experiment
from runs import report
from tests.test_image_sizes import RANDOM, config


def corners(images):
    """Features for these tests: four pixels."""
    return {"pool": images[:, 2:6:3, :4:3].reshape(len(images), -1) / 255}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A workdir of two training steps, between which training was interrupted."""
    folder = tmp_path_factory.mktemp("rectangles")
    np.save(folder / "a.npy", RANDOM.integers(0, 256, (40, 8, 4), np.uint8))
    for steps in (1, 2):
        state = training.train(run(folder, **{"training.n_iters": steps}), str(folder / "w"))
        assert int(state.step) == steps
    return folder


def run(folder, **changes):
    """Return the config of `trained` for a mode."""
    fields = {
        "model.ch_mult": (1, 2),
        "model.attn_resolutions": (4,),
        "sampling.method": "solver",
        "sampling.num_steps": 3,
        "training.n_iters": 2,
        "training.snapshot_freq": 2,
    }
    return config(folder / "a.npy", **fields | changes)


@pytest.mark.slow
def test_evaluation(trained):
    folder = trained / "w"
    changes = {
        "eval.enable_sampling": True,
        "eval.enable_bpd": True,
        "eval.enable_metrics": True,
        "eval.features": f"{__name__}:corners",
        "eval.bpd_num_repeats": 1,
        "eval.bpd_tolerance": 1e-2,
        "eval.batch_size": 16,
    }
    (result,) = evaluation.evaluate(run(trained, **changes), str(folder)).values()
    assert np.isfinite(result["bpd"]["mean"])
    with np.load(folder / "eval" / "checkpoint_1" / "samples_0.npz") as saved:
        assert saved["samples"].shape[1:] == (8, 4, 1)
    assert "Images of 8x4x1." in report.write(folder).read_text()
    (path,) = (folder / "statistics").glob("*.npz")
    assert path.name.startswith("array_8x4_")
    written = path.stat().st_mtime_ns
    again = evaluation.evaluate(run(trained, **changes), str(folder))
    assert list(again.values()) == [result]  # The list in config.json equals the pair.
    assert path.stat().st_mtime_ns == written


@pytest.mark.slow
def test_restoration(trained):
    changes = {
        "restore.count": 2,
        "restore.samples": 1,
        "restore.task": "super_resolution",
        "restore.method": "moment_matching",
        "restore.factor": 2,
    }
    found = restoration.restore(run(trained, **changes), str(trained / "w"))
    assert found["misfit"] < 1e-3
    (path,) = (trained / "w" / "restore").rglob("samples_0.npz")
    with np.load(path) as saved:
        assert saved["x"].shape[-3:] == (8, 4, 1)


def test_files_to_restore(tmp_path):
    """Image files are cropped to the rectangle."""
    pixels = RANDOM.integers(0, 256, (8, 4), np.uint8)
    Image.fromarray(np.pad(pixels, ((0, 0), (3, 3)))).save(tmp_path / "a.png")
    changes = {"restore.input": str(tmp_path), "data.uniform_dequantization": False}
    experiment = Experiment(config("a.npy", **changes))
    _, images = restoration_problems.load_images(experiment, experiment.image_shape)
    np.testing.assert_array_equal(experiment.pixels(images)[0, ..., 0], pixels)
