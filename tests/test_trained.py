"""The Python API's trained models: loading, images, densities, and agreement with the modes."""

from __future__ import annotations

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import likelihood
import score_sde as ss
import sde_lib
import training
from commands import conversion
from experiment import Experiment
from tests import gaussian, reference, tiny


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A workdir of six training steps."""
    folder = tmp_path_factory.mktemp("api") / "run"
    config = tiny.config()
    training.train(config, str(folder))
    return folder


@pytest.fixture(scope="module")
def model(workdir):
    return ss.load(workdir)


def test_load(workdir, model):
    """The newest checkpoint is loaded, with the averaged parameters."""
    experiment = Experiment(model.config)
    found, params = experiment.trained(str(workdir))
    assert model.step == found.step
    assert model.event_shape == experiment.image_shape
    jax.tree.map(np.testing.assert_array_equal, model.params, params)
    x = jax.random.normal(jax.random.key(0), (2, *model.event_shape))
    t = jnp.array([0.2, 0.7])
    expected = jax.jit(experiment.score(params))(x, t)
    np.testing.assert_allclose(jax.jit(model.score)(x, t), expected, atol=1e-4)
    number = ss.load(workdir, checkpoint=found.number)
    jax.tree.map(np.testing.assert_array_equal, model.params, number.params)


def test_load_a_file(workdir, model, tmp_path):
    """A checkpoint of another code base needs its config, as an object or a file."""
    path = tmp_path / "checkpoint_1.safetensors"
    conversion.export_checkpoint(model.config, str(workdir), str(path))
    config_file = tmp_path / "experiment.py"
    config_file.write_text(
        "import ml_collections\n"
        f"def get_config():\n    return ml_collections.ConfigDict({model.config.to_dict()!r})\n"
    )
    for config in (model.config, config_file):
        found = ss.load(config=config, checkpoint=path)
        assert found.step == model.step
        jax.tree.map(np.testing.assert_array_equal, found.params, model.params)
    found = ss.load(path)  # It states its config.
    jax.tree.map(np.testing.assert_array_equal, found.params, model.params)


@mock.patch.dict(sde_lib.SDES)  # Restores the order as well, which the documentation states.
def test_a_config_file_with_names_of_its_own(workdir, model):
    """The workdir of an SDE that is not registered asks for the file that registers it."""
    del sde_lib.SDES["vpsde"]
    with pytest.raises(ss.InputError, match=r"sde = 'vpsde' is unknown; .*load\(workdir, config="):
        ss.load(workdir)
    with pytest.raises(ss.InputError, match="sde = 'vpsde' is unknown; .*vesde.$"):
        ss.load(workdir, config=model.config)


def test_images(model):
    """Grey levels become events and images again."""
    levels = model.experiment.test.batch(np.arange(4)).pixels
    images = model.to_images(model.from_images(levels))
    largest = model.experiment.scaler.levels - 1
    np.testing.assert_array_equal(images, np.round(levels * (255 / largest)))
    x = model.from_images(levels.reshape(2, 2, *model.event_shape), seed=0)
    assert x.shape == (2, 2, *model.event_shape)
    assert not np.array_equal(x, model.from_images(levels, seed=1).reshape(x.shape))


def test_bits_per_dim():
    """They follow from the density of N(0.1, 0.5^2) at the smallest time, of dequantized images."""
    experiment = Experiment(tiny.config(), jax.devices()[:1])
    sde = experiment.sde
    experiment.score = lambda params: gaussian.score(sde, 0.1, 0.5)
    model = ss.TrainedModel(experiment, {}, 0)
    levels = experiment.test.batch(np.arange(3)).pixels
    bits, error = model.bits_per_dim(levels, seed=2, return_error=True)
    x = np.asarray(model.from_images(levels, seed=2))
    np.testing.assert_array_equal(np.floor((x + 1) / 2 * 17), levels)
    alpha, var = float(sde.alpha(sde.t_min)), float(sde.var(sde.t_min))
    logp = scipy.stats.norm.logpdf(x, alpha * 0.1, np.sqrt(alpha**2 * 0.25 + var))
    nats = logp.sum((1, 2, 3)) + 64 * np.log(2 / 17)
    np.testing.assert_allclose(bits, -nats / 64 / np.log(2), atol=2e-3)
    _, error_in_nats = model.log_prob(x, seed=2, return_error=True)
    np.testing.assert_allclose(error, error_in_nats / 64 / np.log(2), rtol=1e-4)


def test_real_numbers():
    """Data with a range become events without dequantization, and the same numbers again."""
    changes = {"data.value_range": (-3.0, 5.0), "data.uniform_dequantization": False}
    experiment = Experiment(tiny.config(**changes), jax.devices()[:1])
    model = ss.TrainedModel(experiment, experiment.init_params(), 0)
    values = np.float32([[-3.0, 1.0, 5.0]])
    x = model.from_images(values, seed=0)
    np.testing.assert_allclose(x, [[-1.0, 0.0, 1.0]], atol=1e-6)  # The digits are centered.
    np.testing.assert_allclose(model.to_images(x), values, atol=1e-5)


def test_probes_of_bits_per_dim_are_independent_of_the_noise(tmp_path, monkeypatch):
    """The trace of events of more than 64 entries is estimated, by probes of their own keys."""
    changes = {"data.dataset": "noise", "data.image_size": 16}
    model = ss.load(tiny.untrained(tmp_path / "run", **changes))
    levels = model.experiment.test.batch(np.arange(16)).pixels

    class Drawn(Exception):
        """Carries the probes, before anything is compiled."""

    def draw(*arguments):
        raise Drawn(draw_probes(*arguments))

    draw_probes = likelihood.draw_probes
    monkeypatch.setattr(likelihood, "draw_probes", draw)
    with pytest.raises(Drawn) as raised:
        model.bits_per_dim(levels, seed=2, probes=1)
    probes = np.asarray(raised.value.args[0])[:, 0]
    noise = model.from_images(levels, seed=2) - model.from_images(levels)
    correlation = np.corrcoef(np.sign(noise - noise.mean()).ravel(), probes.ravel())[0, 1]
    assert abs(correlation) < 4 / np.sqrt(probes.size)


@pytest.mark.parametrize(
    "method", reference.cases(["moment_matching", "ddrm"], ["moment_matching"])
)
def test_posterior_of_a_trained_model(model, method):
    """Samples agree with the measurement, and lie in the range of images."""
    operator = ss.operators.mask(ss.operators.box(model.event_shape, 0.5))
    truth = model.from_images(model.experiment.test.batch(np.arange(2)).pixels)
    posterior = model.posterior(operator.forward(truth), operator, noise=0.0, method=method)
    x = posterior.sample(3, seed=0, steps=25)
    assert x.shape == (3, 2, *model.event_shape)
    known = operator.measured
    expected = np.broadcast_to(truth, x.shape)[..., known]
    np.testing.assert_allclose(x[..., known], expected, atol=1e-4)


INVALID = {
    "nothing": (lambda folder: ss.load(), "load needs a workdir, or both config and checkpoint"),
    "folder": (lambda folder: ss.load(folder / "absent"), "absent holds no model"),
    "file": (
        lambda folder: ss.load(folder, checkpoint="a.pth"),
        "checkpoint = 'a.pth': with a workdir it must be a number",
    ),
    "number": (lambda folder: ss.load(folder, checkpoint=99), "checkpoint"),
    "config": (
        lambda folder: ss.load(config=folder / "config.json", checkpoint="a.pth"),
        "must be a Python file with get_config",
    ),
    "no config": (
        lambda folder: ss.load(config="absent.py", checkpoint="a.pth"),
        "The config file absent.py does not exist",
    ),
}


@pytest.mark.parametrize("name", INVALID)
def test_errors_of_load(workdir, name):
    call, message = INVALID[name]
    with pytest.raises(ss.InputError, match=message):
        call(workdir)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda levels: levels / 16, "must be integer grey levels"),
        (lambda levels: levels.astype(int) + 300, "the grey levels of this model are 0 to"),
        (lambda levels: levels[:, 1:, 1:], r"has shape \(1, 7, 7, 1\), but an event has shape"),
        (lambda levels: levels[:0], "it holds no event"),
    ],
)
def test_errors_of_images(model, change, message):
    levels = model.experiment.test.batch(np.arange(1)).pixels
    with pytest.raises(ss.InputError, match=message):
        functools.partial(model.bits_per_dim, change(levels))()
