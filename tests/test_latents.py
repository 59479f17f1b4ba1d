"""`--mode=encode` and `--mode=interpolate`: round trips, pictures, and missing images."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import solvers
from commands import latents
from experiment import Experiment
from runs import write_json
from sampling import Sampler
from solvers.loop import to_samples
from tests import reference, tiny
from tests.refusal import refused

SOLVER = tiny.MLP | {
    "sampling.method": "solver",
    "sampling.solver": "heun",
    "sampling.num_steps": 20,
}
SIDE, TOP = 64, 22  # pixels of an image in a picture, and of the titles above it


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A workdir whose checkpoint 3 has random parameters."""
    return tiny.untrained(tmp_path_factory.mktemp("latents"), **tiny.MLP)


def size(columns, rows):
    """The size of a picture with titles."""
    return 4 + (SIDE + 4) * columns, TOP + (SIDE + 4) * rows


def test_encoding_and_decoding(workdir):
    result = latents.encode(tiny.config(**SOLVER), str(workdir))
    folder = workdir / "latents" / "checkpoint_3"
    assert result["largest error"] < 0.02
    assert result["evaluations"] == 40
    with np.load(folder / "latents.npz") as arrays:
        assert arrays["codes"].shape == arrays["images"].shape == (latents.ENCODED, 8, 8, 1)
        assert arrays["codes"].std() == pytest.approx(result["std of codes"], rel=1e-4)
    assert Image.open(folder / "round_trip.png").size == size(columns=16, rows=8)


def test_measures_of_a_round_trip(tmp_path, monkeypatch):
    """Codes are in units of the prior's deviation; decoding has an error of 0.1, once of 0.5."""
    experiment = Experiment(tiny.config("ve.digits_ncsnpp_continuous"))
    std = experiment.sde.prior_std
    assert std > 4
    x = np.asarray(latents.load_images(experiment, latents.ENCODED))
    assert len(np.unique(x)) > 100  # Noise makes gray levels continuous.

    model = experiment.trained_model({})
    model.encode = lambda x, **_: (3 * std * x, jnp.full(len(x), 7))
    model.decode = lambda z, **_: (z / (3 * std) + 0.1).at[5, 1, 2].add(0.4)
    codec = (experiment, model, "ode", tmp_path)
    monkeypatch.setattr(latents, "load_codec", lambda *_: codec)
    found = latents.encode(experiment.config, "")
    assert found["largest error"] == pytest.approx(0.5, rel=1e-4)
    assert found["mean error"] == pytest.approx(0.1 + 0.4 / x.size, rel=1e-4)
    assert found["evaluations"] == 7
    assert found["mean of codes"] == pytest.approx(3 * x.mean(), rel=1e-4)
    assert found["std of codes"] == pytest.approx(3 * x.std(), rel=1e-4)
    with np.load(tmp_path / "latents.npz") as arrays:
        np.testing.assert_allclose(arrays["codes"], 3 * std * x, rtol=1e-5)
        np.testing.assert_array_equal(arrays["images"], experiment.pixels(x))
    # In the picture each image is followed by what became of it.
    picture = np.asarray(Image.open(tmp_path / "round_trip.png"))[..., 0]
    left, right = (picture[TOP + 4 : TOP + 64 : 8, i : i + 60 : 8] for i in (8, 8 + SIDE + 4))
    np.testing.assert_array_equal(left, experiment.pixels(x[0])[..., 0])
    np.testing.assert_array_equal(right, experiment.pixels(x[0] + 0.1)[..., 0])
    # Held-out images are encoded: they are white here, and the training images black.
    x = latents.load_images(Experiment(tiny.config(**{"data.dataset": "black_and_white"})), 20)
    assert x.shape == (20, 8, 8, 1)
    assert x.min() >= 2 * 255 / 256 - 1


@pytest.mark.parametrize("dataset", reference.cases(["digits", "CIFAR10"], ["CIFAR10"]))
def test_pictures(workdir, dataset, tmp_path, capsys):
    """Pictures show held-out images or, if the data set cannot be read, samples."""
    workdir = shutil.copytree(workdir, tmp_path / "w", ignore=shutil.ignore_patterns("latents"))
    config, is_absent = tiny.config(**SOLVER), dataset != "digits"
    config.data.dataset = dataset
    write_json(workdir / "config.json", config.to_dict())
    if is_absent:
        refused("CIFAR10", latents.encode, config, str(workdir))
        assert not (workdir / "latents").exists()
    latents.interpolate(config, str(workdir))
    assert ("Samples take the place of test images" in capsys.readouterr().out) == is_absent
    folder = workdir / "latents" / "checkpoint_3"
    assert Image.open(folder / "interpolation.png").size == size(columns=10, rows=8)
    assert Image.open(folder / "temperature.png").size == size(columns=7, rows=8)


def test_spherical_interpolation():
    """The norm of noise is kept, the ends are the codes, and equal codes are interpolated."""
    a, b = np.asarray(jax.random.normal(jax.random.key(0), (2, 5, 8, 8, 3)))
    middle = latents.slerp(a, b, 0.5)
    assert np.linalg.norm(middle) / np.linalg.norm(a) == pytest.approx(1, abs=0.05)
    np.testing.assert_allclose(latents.slerp(a, b, 0.0), a, atol=1e-6)
    np.testing.assert_allclose(latents.slerp(a, b, 1.0), b, atol=1e-6)
    np.testing.assert_allclose(latents.slerp(a, a, 0.3), a, atol=1e-6)


def test_invalid_requests(workdir, tmp_path):
    config, stochastic = tiny.config(**SOLVER), SOLVER | {"sampling.solver": "restart"}
    message = "'restart' does not follow the probability flow"
    refused(message, latents.encode, tiny.config(**stochastic), str(workdir))
    refused("has no checkpoint_5; existing checkpoints: 3", latents.encode, config, str(workdir), 5)
    refused("does not exist", latents.interpolate, config, str(tmp_path / "nothing"))


def test_temperature_scales_the_prior(monkeypatch):
    """The sampler returns the states that it starts from."""
    priors = []
    loop = solvers.single(lambda x: to_samples(x, jnp.int32(0)))
    for temperature in (1.0, 0.5):
        experiment = Experiment(tiny.config(**{"sampling.temperature": temperature}))
        monkeypatch.setattr(Experiment, "sampler", Sampler(lambda keys, score: loop, steps=1))
        experiment.pixels = lambda x: x
        priors.append(experiment.draw_images(experiment.trained_model({}), 0, 2).x)
    np.testing.assert_allclose(priors[1], 0.5 * priors[0])
