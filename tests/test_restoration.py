"""`--mode=restore`, from images to pictures and quality measures."""

import json
import math
import os

import dm_pix
import jax
import numpy as np
import pytest
from PIL import Image

from commands import restoration
from controllable import operators
from errors import InputError
from experiment import Experiment
from tests import programs, tiny
from tests.refusal import refused

SOLVER = tiny.MLP | {
    "sampling.method": "solver",
    "sampling.num_steps": 3,
    "restore.count": 2,
    "restore.samples": 2,
    "restore.method": "pigdm",
    "eval.batch_size": 2,
}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return tiny.untrained(tmp_path_factory.mktemp("restoration"), **tiny.MLP)


def run(workdir, folder=None, **changes):
    """Run `restore`; names without a dot are fields of config.restore."""
    fields = dict(SOLVER)
    for name, value in changes.items():
        fields[name if "." in name else f"restore.{name}"] = value
    return restoration.restore(tiny.config(**fields), str(workdir), folder=folder)


def test_restores_held_out_images_and_resumes(workdir):
    """Results match the measurement; only a deleted round is computed again, equal to before.

    Each round has the two reconstructions of an image, with noise of their own.
    """
    results = run(workdir)
    folder = workdir / "restore" / "checkpoint_3" / "inpaint-pigdm"
    assert results["misfit"] < 1e-6  # Known pixels are exact.
    assert results["images"] == 2
    assert results["nfe"] == 3
    assert json.loads((folder / "results.json").read_text()) == results
    columns = 6  # image, measurement, two reconstructions, mean, standard deviation
    assert Image.open(folder / "grid.png").size == (4 + columns * 92, 22 + 2 * 92)
    assert Image.open(folder / "test_1_sample_1.png").size == (8, 8)
    with np.load(folder / "samples_1.npz") as saved:
        first = saved["x"]
    assert np.abs(first[0] - first[1]).max() > 0.01
    (folder / "samples_1.npz").unlink()
    before = (folder / "samples_0.npz").stat().st_mtime_ns
    assert run(workdir) == results
    assert (folder / "samples_0.npz").stat().st_mtime_ns == before
    np.testing.assert_array_equal(np.load(folder / "samples_1.npz")["x"], first)
    with pytest.raises(InputError, match="restore.noise: 0.0 there, 0.5 now"):
        run(workdir, noise=0.5)


# --- measurements and quality ---


def quality(truth, known, reconstructions, *, centered=True):
    """Measures of reconstructions of `truth`, of which the entries `known` are measured."""
    operator = operators.mask(known)
    y = np.asarray(operator.forward(truth))
    problem = restoration.Problem(operator, y, ["a"] * len(truth), truth)
    experiment = Experiment(tiny.config(**{"data.centered": centered}))
    return restoration.measure_quality(experiment, problem, reconstructions.astype(np.float32))


@pytest.mark.parametrize(("share", "centered"), [(0.25, True), (0.75, False)])
def test_measures_of_known_errors(share, centered):
    """Errors e and 3 e of two reconstructions, of which the pseudo-inverse knows a share.

    Constant images a and b from 0 to 1 have the SSIM (2 a b + c) / (a^2 + b^2 + c), c = 0.01^2.
    """
    low, width, e = -1 if centered else 0, 2 if centered else 1, 0.05
    truth = np.random.default_rng(0).uniform(0.2, 0.7, (2, 8, 8, 1)).astype(np.float32)
    known = operators.random_pixels((8, 8, 1), share)
    answers = np.stack([truth + e, truth + 3 * e], 1)
    found = quality(truth, known, answers, centered=centered)
    assert found["misfit"] == pytest.approx(math.sqrt(5) * e / width, rel=1e-4)
    expected = [20 * math.log10(width / error) for error in (e, 3 * e, 2 * e)]
    assert found["psnr_samples"] == pytest.approx(np.mean(expected[:2]), abs=1e-3)
    assert found["psnr_mean"] == pytest.approx(expected[2], abs=1e-3)
    errors = [np.sqrt(np.mean(np.square(x * ~known, dtype=np.float64))) for x in truth]
    expected = np.mean([20 * math.log10(width / error) for error in errors])
    assert found["psnr_pseudo_inverse"] == pytest.approx(expected, abs=1e-3)
    a, b = np.float32(0.2), np.float32(0.3)
    truth = np.full((1, 8, 8, 1), low + width * a)
    found = quality(truth, known, truth[:, None] + width * (b - a), centered=centered)
    expected = (2 * a * b + 1e-4) / (a**2 + b**2 + 1e-4)
    assert found["ssim_samples"] == pytest.approx(expected, rel=1e-4)


def test_ssim_is_computed_exactly(monkeypatch):
    """Its convolutions do not round on accelerators."""
    exact, ssim = [], dm_pix.ssim

    def record(a, b, **options):
        exact.extend(programs.exact(jax.make_jaxpr(lambda a, b: ssim(a, b, **options))(a, b).jaxpr))
        return ssim(a, b, **options)

    monkeypatch.setattr(dm_pix, "ssim", record)
    truth = np.full((1, 8, 8, 1), 0.5, np.float32)
    with jax.default_matmul_precision("bfloat16"):
        quality(truth, np.ones((8, 8, 1), bool), truth[:, None])
    assert exact
    assert all(exact)


@pytest.mark.parametrize("centered", [True, False])
def test_noise_is_stated_for_images_from_0_to_1(centered):
    fields = {"data.centered": centered, "restore.noise": 0.1, "restore.count": 64}
    experiment = Experiment(tiny.config(**fields))
    problem = restoration.build_problem(experiment, restoration.build_operator(experiment))
    noise = problem.y - np.asarray(problem.operator.forward(problem.truth))
    measured = noise[:, problem.operator.measured]
    assert measured.size > 2000  # The standard error of the deviation is below 2 %.
    assert measured.std() == pytest.approx(0.2 if centered else 0.1, rel=0.06)
    assert restoration.noise_std(experiment) == pytest.approx(0.2 if centered else 0.1)
    assert (noise[:, ~problem.operator.measured] == 0).all()


@pytest.mark.parametrize("dequantized", [True, False])
def test_grey_levels_of_restored_images(tmp_path, dequantized):
    """A level is the middle of the interval that dequantization assigns to it, in files, too."""
    changes = {"data.uniform_dequantization": dequantized, "restore.count": 2}
    levels = np.arange(64).reshape(8, 8) % 17
    Image.fromarray(np.round(levels * 255 / 16).astype(np.uint8)).save(tmp_path / "a.png")
    for path in ("", str(tmp_path / "a.png")):
        experiment = Experiment(tiny.config(**changes, **{"restore.input": path}))
        u = levels[None, ..., None] if path else experiment.test.pixels[:2]
        x = 2 * (u + 0.5) / 17 - 1 if dequantized else 2 * (u / 16) - 1
        names, images = restoration.load_images(experiment, (8, 8, 1))
        np.testing.assert_allclose(images, x, atol=1e-6)
        assert names == (["a"] if path else ["test_0", "test_1"])


# --- files and errors ---


def test_image_files(workdir, tmp_path):
    """Files of any size and color mode are converted; output files are named after them."""
    rng = np.random.default_rng(0)
    (tmp_path / "in" / "deeper").mkdir(parents=True)
    for name, shape in {"photo.jpg": (20, 30, 3), "deeper/grey.png": (8, 8)}.items():
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(tmp_path / "in" / name)
    mask = np.zeros((8, 8), np.uint8)
    mask[:, :4] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    files = {"input": str(tmp_path / "in"), "mask": str(tmp_path / "mask.png")}
    results = run(workdir, "own", samples=1, **files)
    assert results["images"] == 2
    folder = workdir / "restore" / "checkpoint_3" / "own"
    names = {path.name for path in folder.glob("*measured.png")}
    assert names == {"deeper_grey_measured.png", "photo_measured.png"}
    measured = np.asarray(Image.open(folder / "deeper_grey_measured.png"))
    answer = np.asarray(Image.open(folder / "deeper_grey_sample_0.png"))
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


INVALID = [
    ({"task": "sharpen"}, "restore.task = 'sharpen'"),
    ({"method": "magic"}, "restore.method = 'magic'"),
    ({"method": "projection"}, "'projection' changes .* sampler = 'dpm.* is not possible"),
    ({"task": "colorize"}, "data.num_channels = 1"),
    ({"task": "super_resolution", "factor": 3}, "Blocks of 3x3 pixels .* images of 8x8"),
    ({"noise": -0.1}, "restore.noise = -0.1 must be"),
    ({"share": 0.01}, "restore.mask = 'box' leaves nothing unknown"),
    ({"mask": "pipe.png"}, "restore.mask = '.*pipe.png' is a named pipe"),
    ({"mask": "loop.png"}, "restore.mask = '.*loop.png' cannot be read"),
    ({"mask": "large.png"}, "large.png' has 5x16 pixels, but the images have 8x8"),
    ({"input": "broken.png"}, "broken.png' cannot be read"),
    ({"input": "pipe.png"}, "restore.input = '.*pipe.png' is a named pipe"),
    ({"input": "deeper"}, "pipe.jpg is a named pipe"),
    ({"input": "nothing"}, "nothing' is neither an image file nor a folder"),
    ({"input": "~no_such_user/a.png"}, "restore.input = '~no_such_user/a.png': the home direct"),
    ({"observed": True}, "restore.observed = True needs restore.input"),
    ({"observed": True, "task": "fourier"}, "restore.task = 'fourier' are not images"),
    ({"official": True}, "restore.official = True requires restore.method = 'projection'"),
    ({"guidance.classes": (3,)}, "classifier does not exist; train it"),
]


@pytest.mark.parametrize(("changes", "match"), INVALID)
def test_invalid_values(workdir, tmp_path, changes, match):
    """Paths of mask and input are relative to a folder of files that are no images."""
    (tmp_path / "broken.png").write_bytes(b"no image")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "deeper").mkdir()
    for name in ("pipe.png", "deeper/pipe.jpg"):
        os.mkfifo(tmp_path / name)
    Image.new("L", (5, 16)).save(tmp_path / "large.png")
    for field in {"mask", "input"} & changes.keys():
        if "~" not in changes[field]:
            changes = changes | {field: str(tmp_path / changes[field])}
    refused(match, run, workdir, **changes)


def test_names_of_results(tmp_path):
    """They differ and fit in 255 bytes. Hidden files are no images, as in data sets of folders."""

    def names_of(path, **changes):
        experiment = Experiment(tiny.config(**{"restore.input": str(path)} | changes))
        return restoration.load_images(experiment, experiment.image_shape)[0]

    (tmp_path / "b").mkdir()
    (tmp_path / ".thumbs").mkdir()
    for name in ("a.png", "a.jpg", "b/c.png", "b_c.png", "._a.png", ".thumbs/a.png"):
        Image.new("L", (8, 8)).save(tmp_path / name)
    assert names_of(tmp_path) == ["0_a", "1_a", "2_b_c", "3_b_c"]


@pytest.mark.parametrize(
    ("method", "given", "sampler"),
    [
        ("moment_matching", None, "corrector 'langevin'"),  # A config that is complete.
        ("moment_matching", {"restore.method"}, "'dpm"),
        ("pigdm", set(), "'dpm"),
        ("pigdm", {"sampling.method"}, "corrector 'langevin'"),
        ("daps", set(), "corrector 'none'"),
        ("ddrm", None, "corrector 'none'"),  # Methods that replace the predictor omit it.
        ("projection", None, "corrector 'langevin'"),
    ],
)
def test_the_sampler_suits_the_method(method, given, sampler):
    """A guided score needs no thousand steps; what the user states is kept."""
    changes = {"restore.method": method, "sampling.corrector": "langevin"}
    experiment = Experiment(tiny.config(**changes))
    operator = restoration.build_operator(experiment)
    model = experiment.trained_model({})
    assert sampler in restoration.make_posterior(experiment, model, operator, given)[1].title
