"""Latent codes from the command line's modes: round trips, pictures, and what stands in for missing images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from errors import InputError
from experiment import Experiment
from modes import latents
from tests import tiny

SOLVER = {"sampling.method": "solver", "sampling.solver": "heun", "sampling.num_steps": 20}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A workdir whose checkpoint 3 has random parameters."""
    return tiny.untrained(tmp_path_factory.mktemp("latents"))


def test_encoding_and_decoding(workdir):
    result = latents.encode(tiny.config(**SOLVER), str(workdir))
    assert result["largest error"] < 0.02
    assert result["evaluations"] == 40
    with np.load(workdir / "latents" / "checkpoint_3" / "latents.npz") as arrays:
        assert arrays["codes"].shape == arrays["images"].shape == (latents.ENCODED, 8, 8, 1)
        assert arrays["codes"].std() == pytest.approx(result["std of codes"], rel=1e-4)
    assert Image.open(workdir / "latents" / "checkpoint_3" / "round_trip.png").size == (
        16 * 66,
        8 * 66,
    )


@pytest.mark.parametrize("dataset", ["digits", "CIFAR10"])
def test_pictures(workdir, dataset, capsys):
    """Of test images or, where a data set cannot be read, of samples."""
    config = tiny.config(**SOLVER)
    folder = workdir
    if dataset != "digits":
        config.data.dataset = dataset
        (workdir / "config.json").unlink()
    latents.interpolate(config, str(folder))
    assert ("Samples take the place of test images" in capsys.readouterr().out) == (
        dataset != "digits"
    )
    assert Image.open(folder / "latents" / "checkpoint_3" / "interpolation.png").size == (
        10 * 66,
        8 * 66,
    )
    assert Image.open(folder / "latents" / "checkpoint_3" / "temperature.png").size == (
        7 * 66,
        8 * 66,
    )


def test_great_circles():
    """Between noise and noise lies noise: norms are kept; the ends are the codes; equal codes make no trouble."""
    a, b = np.asarray(jax.random.normal(jax.random.key(0), (2, 5, 8, 8, 3)))
    middle = latents.slerp(a, b, 0.5)
    assert np.linalg.norm(middle) / np.linalg.norm(a) == pytest.approx(1, abs=0.05)
    np.testing.assert_allclose(latents.slerp(a, b, 0.0), a, atol=1e-6)
    np.testing.assert_allclose(latents.slerp(a, b, 1.0), b, atol=1e-6)
    np.testing.assert_allclose(latents.slerp(a, a, 0.3), a, atol=1e-6)


def test_what_is_refused(workdir, tmp_path):
    with pytest.raises(InputError, match="Latent codes need a solver without noise"):
        latents.encode(tiny.config(**SOLVER | {"sampling.solver": "restart"}), str(workdir))
    with pytest.raises(InputError, match="has no checkpoint_5; the kept checkpoints there are: 3"):
        latents.encode(tiny.config(**SOLVER), str(workdir), 5)
    with pytest.raises(InputError, match="does not exist"):
        latents.interpolate(tiny.config(**SOLVER), str(tmp_path / "nothing"))


def test_temperature_scales_the_prior():
    priors = []
    for temperature in (1.0, 0.5):
        experiment = Experiment(
            tiny.config(**{"sampling.temperature": temperature}), jax.devices()[:1]
        )
        experiment.sampler = lambda keys, score, x: priors.append(x) or (x, jnp.zeros(2), x[None])
        with jax.disable_jit():
            experiment.sample(experiment.abstract_params, jnp.arange(2))
    np.testing.assert_allclose(priors[1], 0.5 * priors[0])
