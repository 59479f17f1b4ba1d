"""`--mode=restore`, from images to pictures and quality measures."""

import json
import os

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
    "restore.method": "moment_matching",
}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return tiny.untrained(tmp_path_factory.mktemp("restoration"))


def run(workdir, folder=None, **changes):
    """Run `restore`; names without a dot are fields of config.restore."""
    fields = dict(SOLVER)
    for name, value in changes.items():
        fields[name if "." in name else f"restore.{name}"] = value
    return restoration.restore(tiny.config(**fields), str(workdir), folder=folder)


def test_restores_held_out_images_and_resumes(workdir):
    """Results match the measurement; only a deleted round is computed again, equal to before."""
    results = run(workdir)
    folder = workdir / "restore" / "checkpoint_3" / "inpaint-moment_matching"
    assert results["misfit"] < 1e-3
    assert results["images"] == 2
    assert results["nfe"] == 3
    assert json.loads((folder / "results.json").read_text()) == results
    columns = 6  # image, measurement, two reconstructions, mean, standard deviation
    assert Image.open(folder / "grid.png").size == (columns * 66, 2 * 66)
    assert Image.open(folder / "test_1_answer_1.png").size == (8, 8)
    with np.load(folder / "answers_1.npz") as saved:
        first = saved["x"]
    (folder / "answers_1.npz").unlink()
    before = (folder / "answers_0.npz").stat().st_mtime_ns
    assert run(workdir) == results
    assert (folder / "answers_0.npz").stat().st_mtime_ns == before
    np.testing.assert_array_equal(np.load(folder / "answers_1.npz")["x"], first)
    with pytest.raises(InputError, match="restore.noise: 0.0 there, 0.5 now"):
        run(workdir, noise=0.5)


@pytest.mark.parametrize("method", ["projection", "ddrm", "dps"])
def test_methods_of_the_predictor_corrector_loop(workdir, method):
    """Methods that replace the predictor omit the corrector that the config names."""
    sampling = {"sampling.method": "pc", "sampling.corrector": "langevin"}
    results = run(workdir, method=method, **sampling)
    assert results["nfe"] == (42 if method == "projection" else 21)
    assert results["misfit"] < 1e-3
    assert np.isfinite(results["psnr_answers"])


def test_image_files(workdir, tmp_path):
    """Files of any size and color mode are converted; output files are named after them."""
    rng = np.random.default_rng(0)
    (tmp_path / "in" / "deeper").mkdir(parents=True)
    color, grey = (
        rng.integers(0, 256, (20, 30, 3), np.uint8),
        rng.integers(0, 256, (8, 8), np.uint8),
    )
    Image.fromarray(color).save(tmp_path / "in" / "photo.jpg")
    Image.fromarray(grey).save(tmp_path / "in" / "deeper" / "grey.png")
    mask = np.zeros((8, 8), np.uint8)
    mask[:, :4] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    files = {"input": str(tmp_path / "in"), "mask": str(tmp_path / "mask.png")}
    results = run(workdir, "own", samples=1, **files)
    assert results["images"] == 2
    folder = workdir / "restore" / "checkpoint_3" / "own"
    assert {path.name for path in folder.glob("*measured.png")} == {
        "deeper_grey_measured.png",
        "photo_measured.png",
    }
    measured = np.asarray(Image.open(folder / "deeper_grey_measured.png"))
    answer = np.asarray(Image.open(folder / "deeper_grey_answer_0.png"))
    assert (measured[:, 4:] == measured[0, 4]).all()
    assert (answer[:, :4] == measured[:, :4]).all()


def test_measured_image_files(workdir, tmp_path):
    """A measured low-resolution image has no known truth; block means reproduce it."""
    small = np.random.default_rng(0).integers(0, 17, (4, 4)).astype(np.uint8) * 15
    options = {"input": str(tmp_path), "observed": True, "task": "super_resolution", "samples": 1}
    Image.fromarray(small).save(tmp_path / "small.png")
    results = run(workdir, "observed", **options)
    assert results.keys() == {"task", "method", "images", "nfe", "misfit"}
    assert results["misfit"] < 1e-3
    Image.fromarray(255 - small).save(tmp_path / "small.png")
    with pytest.raises(InputError, match="observed holds reconstructions of other measurements"):
        run(workdir, "observed", **options)


def test_damaged_measurements_are_written_again(tmp_path, caplog):
    arrays = {"y": np.arange(6.0).reshape(2, 3), "names": np.array(["a", "b"])}
    problem = restoration.Problem(None, arrays["y"], ["a", "b"], None)
    path = tmp_path / "measurements.npz"
    for content in (b"", b"PK\x03\x04", None):
        np.savez(path, y=arrays["y"]) if content is None else path.write_bytes(content)
        restoration.save_measurements(problem, tmp_path)
        with np.load(path) as saved:
            assert all(np.array_equal(saved[name], arrays[name]) for name in arrays)
    assert "measurements.npz cannot be read as .npz" in caplog.text
    with pytest.raises(InputError, match="holds reconstructions of other measurements"):
        restoration.save_measurements(problem._replace(names=["a", "c"]), tmp_path)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"task": "sharpen"}, "restore.task"),
        ({"method": "magic"}, "restore.method"),
        (
            {"method": "projection"},
            "restore.method = 'projection' requires sampling.method = 'pc', not 'solver'",
        ),
        ({"task": "colorize"}, "data.num_channels = 1"),
        (
            {"task": "super_resolution", "factor": 3},
            "Blocks of 3x3 pixels do not tile images of 8x8",
        ),
        ({"noise": -0.1}, "restore.noise = -0.1 must be a finite number, at least 0"),
        ({"samples": 0}, "restore.samples = 0 must be an integer from 1"),
        ({"eta": 2.0}, "restore.eta = 2.0 must be a finite number, at least 0 and at most 1"),
        ({"share": 0.01}, "restore.mask = 'box' leaves nothing unknown"),
        ({"mask": "broken.png"}, "broken.png' cannot be read"),
        ({"mask": "pipe.png"}, "restore.mask = '.*pipe.png' is a named pipe; it must be a regular"),
        ({"mask": "loop.png"}, "restore.mask = '.*loop.png' cannot be read: Too many levels of sy"),
        ({"mask": "large.png"}, "large.png' has 5x16 pixels, but the images have 8x8. Resize the"),
        ({"input": "broken.png"}, "broken.png' cannot be read"),
        ({"input": "pipe.png"}, "restore.input = '.*pipe.png' is a named pipe; it must be a regul"),
        ({"input": "loop.png"}, "restore.input = '.*loop.png' cannot be read: Too many levels of"),
        ({"input": "deeper"}, "pipe.jpg is a named pipe; it must be a regular file"),
        ({"input": "nothing"}, "is neither an image file nor a folder of image files"),
        ({"observed": True}, "restore.observed = True needs restore.input"),
        (
            {"observed": True, "task": "fourier"},
            "measurements of restore.task = 'fourier' are not images",
        ),
        ({"official": True}, "requires restore.method = 'projection' and restore.task"),
        (
            {"guidance.classes": (3,)},
            r"guidance.classes = \(3,\) cannot be combined with --mode=restore",
        ),
    ],
)
def test_invalid_values(workdir, tmp_path, changes, match):
    """Paths of mask and input are relative to a folder of files that are no images."""
    (tmp_path / "broken.png").write_bytes(b"no image")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "deeper").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "deeper" / "pipe.jpg")
    Image.fromarray(np.zeros((16, 5), np.uint8)).save(tmp_path / "large.png")
    for field in ("mask", "input"):
        if field in changes:
            changes = changes | {field: str(tmp_path / changes[field])}
    with pytest.raises(InputError, match=match):
        run(workdir, **changes)
