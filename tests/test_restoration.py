"""`--mode=restore`, from images to pictures and measures."""

import json

import numpy as np
import pytest
from PIL import Image

from errors import InputError
from modes import restoration
from tests import tiny

SOLVER = {
    "sampling.method": "solver",
    "sampling.num_steps": 3,
    "restore.count": 2,
    "restore.samples": 2,
}
SOLVER["restore.method"] = "moment_matching"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return tiny.untrained(tmp_path_factory.mktemp("restoration"))


def run(workdir, folder=None, **changes):
    fields = SOLVER | {
        f"restore.{name}" if "." not in name else name: value for name, value in changes.items()
    }
    return restoration.restore(tiny.config(**fields), str(workdir), folder=folder)


def test_test_images_are_restored_and_a_restart_goes_on(workdir):
    """What is measured is kept; a lost round is done again, and nothing else; results are the same."""
    results = run(workdir)
    here = workdir / "restore" / "checkpoint_3" / "inpaint-moment_matching"
    assert results["misfit"] < 1e-3
    assert results["images"] == 2
    assert results["nfe"] == 3
    assert json.loads((here / "results.json").read_text()) == results
    assert Image.open(here / "grid.png").size == (
        6 * 66,
        2 * 66,
    )  # Image, measured, two answers, mean, spread.
    assert Image.open(here / "test_1_answer_1.png").size == (8, 8)
    with np.load(here / "answers_1.npz") as kept:
        first = kept["x"]
    (here / "answers_1.npz").unlink()
    before = (here / "answers_0.npz").stat().st_mtime_ns
    assert run(workdir) == results
    assert (here / "answers_0.npz").stat().st_mtime_ns == before
    np.testing.assert_array_equal(np.load(here / "answers_1.npz")["x"], first)
    with pytest.raises(InputError, match="restore.noise: 0.0 there, 0.5 now"):
        run(workdir, noise=0.5)


@pytest.mark.parametrize("method", ["projection", "ddrm", "dps"])
def test_methods_of_the_predictor_corrector_loop(workdir, method):
    """Those that replace the predictor have no corrector, whatever the config says."""
    results = run(
        workdir, method=method, **{"sampling.method": "pc", "sampling.corrector": "langevin"}
    )
    assert results["nfe"] == (42 if method == "projection" else 21)
    assert results["misfit"] < 1e-3
    assert np.isfinite(results["psnr_answers"])


def test_ones_own_images(workdir, tmp_path):
    """Files of any size and mode are taken as the model needs them; names of results are those of the files."""
    rng = np.random.default_rng(0)
    (tmp_path / "in" / "deeper").mkdir(parents=True)
    Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(tmp_path / "in" / "photo.jpg")
    Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(
        tmp_path / "in" / "deeper" / "grey.png"
    )
    mask = np.zeros((16, 16), np.uint8)
    mask[:, :8] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    results = run(
        workdir, "own", input=str(tmp_path / "in"), mask=str(tmp_path / "mask.png"), samples=1
    )
    assert results["images"] == 2
    here = workdir / "restore" / "checkpoint_3" / "own"
    assert {path.name for path in here.glob("*measured.png")} == {
        "deeper_grey_measured.png",
        "photo_measured.png",
    }
    measured = np.asarray(Image.open(here / "deeper_grey_measured.png"))
    assert (measured[:, 4:] == measured[0, 4]).all()
    assert (
        np.asarray(Image.open(here / "deeper_grey_answer_0.png"))[:, :4] == measured[:, :4]
    ).all()


def test_measurements_of_ones_own(workdir, tmp_path):
    """An image of half the size is what was measured: nothing is known of the truth, and the answer's means are it."""
    small = np.random.default_rng(0).integers(0, 17, (4, 4)).astype(np.uint8) * 15
    Image.fromarray(small).save(tmp_path / "small.png")
    results = run(
        workdir, "observed", input=str(tmp_path), observed=True, task="super_resolution", samples=1
    )
    assert results.keys() == {"task", "method", "images", "nfe", "misfit"}
    assert results["misfit"] < 1e-3
    Image.fromarray(255 - small).save(tmp_path / "small.png")
    with pytest.raises(InputError, match="observed holds answers for other images"):
        run(
            workdir,
            "observed",
            input=str(tmp_path),
            observed=True,
            task="super_resolution",
            samples=1,
        )


def test_what_is_refused(workdir, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    for changes, match in (
        ({"task": "sharpen"}, "restore.task"),
        ({"method": "magic"}, "restore.method"),
        (
            {"method": "projection"},
            "works on the steps of sampling.method = 'pc' and does not go with 'solver'",
        ),
        ({"task": "colorize"}, "data.num_channels = 1 is grey"),
        (
            {"task": "super_resolution", "factor": 3},
            "Blocks of 3x3 pixels do not tile images of 8x8",
        ),
        ({"noise": -0.1}, "restore.noise = -0.1 must not be negative"),
        ({"samples": 0}, "restore.samples = 0 must be above 0"),
        ({"share": 0.01}, "restore.mask = 'box' leaves nothing unknown"),
        ({"mask": str(tmp_path / "broken.png")}, "broken.png' cannot be read"),
        ({"input": str(tmp_path)}, "broken.png' cannot be read"),
        ({"input": str(tmp_path / "nothing")}, "is no image file, and no folder with one"),
        ({"observed": True}, "restore.observed = True needs restore.input"),
        (
            {"observed": True, "task": "fourier"},
            "measurements of restore.task = 'fourier' are no images",
        ),
        ({"official": True}, "is for restore.method = 'projection' that inpaints or colorizes"),
        ({"guidance.classes": (3,)}, r"guidance.classes = \(3,\) does not go with --mode=restore"),
    ):
        with pytest.raises(InputError, match=match):
            run(workdir, **changes)
