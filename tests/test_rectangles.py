"""Training, evaluation, restoration and latent codes of rectangular images."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import evaluation
import training
from commands import latents, restoration, restoration_problems
from experiment import Experiment
from runs import report
from tests.test_image_sizes import RANDOM, config


def corners(images):
    """Features for these tests: four pixels."""
    return {"pool": images[:, 2:6:3, :4:3].reshape(len(images), -1) / 255}


FAST = {
    "model.ch_mult": (1, 2),
    "model.attn_resolutions": (4,),
    "sampling.method": "solver",
    "sampling.num_steps": 3,
    "training.n_iters": 2,
    "training.snapshot_freq": 2,
}
EVALUATED = {
    "eval.enable_sampling": True,
    "eval.enable_bpd": True,
    "eval.enable_metrics": True,
    "eval.features": f"{__name__}:corners",
    "eval.bpd_num_repeats": 1,
    "eval.bpd_tolerance": 1e-2,
    "eval.batch_size": 16,
}
RESTORED = {
    "restore.count": 2,
    "restore.samples": 1,
    "restore.task": "super_resolution",
    "restore.method": "moment_matching",
    "restore.factor": 2,
}


@pytest.mark.slow
def test_commands(tmp_path):
    """Of training, which was interrupted, evaluation, restoration and latent codes."""
    np.save(tmp_path / "a.npy", RANDOM.integers(0, 256, (40, 8, 4), np.uint8))
    folder = tmp_path / "w"

    def fields(**changes):
        return config(tmp_path / "a.npy", **FAST | changes)

    for steps in (1, 2):
        state = training.train(fields(**{"training.n_iters": steps}), str(folder))
        assert int(state.step) == steps
    (result,) = evaluation.evaluate(fields(**EVALUATED), str(folder)).values()
    assert np.isfinite(result["bpd"]["mean"])
    assert "Images of 8x4x1." in report.write(folder).read_text()
    (path,) = (folder / "statistics").glob("*.npz")
    assert path.name.startswith("array_8x4_")
    written = path.stat().st_mtime_ns
    again = evaluation.evaluate(fields(**EVALUATED), str(folder))
    assert list(again.values()) == [result]  # The list in config.json equals the pair.
    assert path.stat().st_mtime_ns == written
    assert restoration.restore(fields(**RESTORED), str(folder))["misfit"] < 1e-3
    latents.encode(fields(**{"sampling.solver": "deis"}), str(folder))
    for name, array in (
        ("eval/checkpoint_1/samples_0.npz", "samples"),
        ("restore/**/samples_0.npz", "x"),
        ("latents/checkpoint_1/latents.npz", "codes"),
    ):
        (path,) = folder.glob(name)
        with np.load(path) as saved:
            assert saved[array].shape[-3:] == (8, 4, 1)


def test_files_to_restore(tmp_path):
    """Image files are cropped to the rectangle."""
    pixels = RANDOM.integers(0, 256, (8, 4), np.uint8)
    Image.fromarray(np.pad(pixels, ((0, 0), (3, 3)))).save(tmp_path / "a.png")
    changes = {"restore.input": str(tmp_path), "data.uniform_dequantization": False}
    experiment = Experiment(config("a.npy", **changes))
    _, images = restoration_problems.load_images(experiment, experiment.image_shape)
    np.testing.assert_array_equal(experiment.pixels(images)[0, ..., 0], pixels)
