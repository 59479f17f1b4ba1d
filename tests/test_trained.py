"""The Python API's trained models: loading, images, densities, and agreement with the modes."""

from __future__ import annotations

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import likelihood
import score_sde as ss
import sde_lib
import sharding
import training
from commands import conversion
from configs.folders import claim
from experiment import Experiment
from runs.checkpoints import SNAPSHOTS, Checkpoints
from tests import gaussian, reference, tiny
from tests.refusal import refused
from training import classifier
from training import state as states


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A workdir with two snapshots of random parameters, of which the second is the newest."""
    folder, experiment = tmp_path_factory.mktemp("api") / "run", Experiment(tiny.config(**tiny.MLP))
    claim(folder, experiment.config, "training")
    for number, scale in ((1, 0.0), (2, 0.1)):
        params = tiny.random_params(experiment, scale=scale)
        state = states.create(params, training.score_job(experiment).optimizer)
        trees = states.to_checkpoint(state._replace(step=jnp.int32(3 * number)))
        save(folder, experiment, number, trees, step=3 * number)
    return folder


def save(folder, experiment, number, trees, step=0):
    checkpoints = Checkpoints(folder, create=True)
    checkpoints.save(SNAPSHOTS, number, trees, step=step, config=experiment.config.to_dict())
    checkpoints.close()


@pytest.fixture(scope="module")
def model(workdir):
    return ss.load(workdir)


@pytest.fixture(scope="module")
def levels():
    """Grey levels of held-out images."""
    return Experiment(tiny.config(**tiny.MLP)).test.batch(np.arange(4)).pixels


def test_load(workdir, model):
    """The newest checkpoint is loaded, with the averaged parameters."""
    experiment = Experiment(model.config)
    found, params = experiment.trained(str(workdir))
    assert model.step == found.step == 6
    assert model.event_shape == experiment.image_shape
    jax.tree.map(np.testing.assert_array_equal, model.params, params)
    given = jax.random.normal(jax.random.key(0), (2, *model.event_shape)), jnp.array([0.2, 0.7])
    expected = jax.jit(experiment.score(params))(*given)
    np.testing.assert_allclose(jax.jit(model.score)(*given), expected, atol=1e-4)
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
    found = [ss.load(config=each, checkpoint=path) for each in (model.config, config_file)]
    for each in (*found, ss.load(path)):  # The last one is given by the file itself.
        assert each.step == model.step
        jax.tree.map(np.testing.assert_array_equal, each.params, model.params)


@mock.patch.dict(sde_lib.SDES)  # Restores the order as well, which the documentation states.
def test_a_config_file_with_names_of_its_own(workdir, model):
    """The workdir of an SDE that is not registered asks for the file that registers it."""
    del sde_lib.SDES["vpsde"]
    refused(r"sde = 'vpsde' must .*load\(workdir, config=", ss.load, workdir)
    refused("sde = 'vpsde' must be .*vesde.$", ss.load, workdir, config=model.config)


def test_bits_per_dim(levels):
    """They follow from the density of N(0.1, 0.5^2) at the smallest time, of dequantized images."""
    experiment, levels = Experiment(tiny.config(**tiny.MLP), jax.devices()[:1]), levels[:3]
    sde = experiment.sde
    experiment._apply = lambda params, x, t, classes: gaussian.score(sde, 0.1, 0.5)(x, t)
    model = experiment.trained_model({})
    bits, error = model.bits_per_dim(levels, seed=2, return_error=True)
    x = np.asarray(model.from_images(levels, seed=2))
    np.testing.assert_array_equal(np.floor((x + 1) / 2 * 17), levels)
    alpha, var = float(sde.alpha(sde.t_min)), float(sde.var(sde.t_min))
    logp = scipy.stats.norm.logpdf(x, alpha * 0.1, np.sqrt(alpha**2 * 0.25 + var))
    nats = logp.sum((1, 2, 3)) + 64 * np.log(2 / 17)
    for found in (bits, model.bits_per_dim(levels, seed=2, steps=64)):
        np.testing.assert_allclose(found, -nats / 64 / np.log(2), atol=2e-3)
    _, error_in_nats = model.log_prob(x, seed=2, return_error=True)
    np.testing.assert_allclose(error, error_in_nats / 64 / np.log(2), rtol=0.05)


def test_images_and_real_numbers(model, levels):
    """Grey levels, and data with a range, become events, and the same numbers again."""
    images = model.to_images(model.from_images(levels, seed=0))
    np.testing.assert_array_equal(images, np.round(levels * (255 / 16)))
    changes = {"data.value_range": (-3.0, 5.0), "data.uniform_dequantization": False}
    model = Experiment(tiny.config(**changes)).trained_model({})
    values = np.linspace(-3, 5, 64, dtype=np.float32).reshape(8, 8, 1)
    x = model.from_images(values, seed=0)
    np.testing.assert_allclose(x, (values - 1) / 4, atol=1e-6)  # The digits are centered.
    np.testing.assert_allclose(model.to_images(x), values, atol=1e-5)


def test_probes_of_bits_per_dim_are_independent_of_the_noise(monkeypatch):
    """The trace of events of more than 64 entries is estimated, by probes of their own keys."""
    experiment = Experiment(tiny.config(**{"data.dataset": "noise", "data.image_size": 16}))
    model, levels = experiment.trained_model({}), experiment.test.batch(np.arange(16)).pixels
    drawn, draw_probes = [], likelihood.draw_probes

    class Stop(Exception):
        """Ends the computation after the probes."""

    def draw(*arguments):
        drawn.append(draw_probes(*arguments))
        raise Stop

    monkeypatch.setattr(likelihood, "draw_probes", draw)
    with jax.disable_jit(), pytest.raises(Stop):
        model.bits_per_dim(levels, seed=2, probes=1)
    probes = np.asarray(drawn[0])[:, 0]
    noise = model.from_images(levels, seed=2) - model.from_images(levels)
    correlation = np.corrcoef(np.sign(noise - noise.mean()).ravel(), probes.ravel())[0, 1]
    assert abs(correlation) < 4 / np.sqrt(probes.size)


@pytest.mark.slow
def test_devices_that_share_the_parameters(levels, monkeypatch):
    """Samples and bits/dim are those of one device."""
    monkeypatch.setattr(sharding, "SMALL", 0)
    two = Experiment(tiny.config(**tiny.MLP, **{"training.shard_params": True}), jax.devices()[:2])
    one = Experiment(tiny.config(**tiny.MLP), jax.devices()[:1])
    params = tiny.random_params(one)
    split = jax.device_put(params, two.state_shardings(two.abstract_params))
    assert not all(leaf.is_fully_replicated for leaf in jax.tree.leaves(split))
    results = []
    for experiment, values in ((two, split), (one, params)):
        model = experiment.trained_model(values)
        bits = model.bits_per_dim(levels[:3], trace="Rademacher", probes=1, steps=3)
        results.append((model.sample(3, seed=1, steps=3), bits))
    for found, expected in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", reference.cases(["classifier-free", "classifier"], ["classifier"]))
def test_classes(tmp_path, kind):
    """Samples of classes are those of --mode=sample, by either guidance."""
    changes = tiny.MLP | {"classifier.blocks_per_group": 1, "classifier.channel_multiplier": 1}
    if kind == "classifier-free":
        changes["data.num_classes"] = 10
    tiny.untrained(tmp_path, **changes)
    with_classes = {"guidance.classes": (3, 1), "guidance.scale": 2.0}
    fast = {"sampling.method": "solver", "sampling.num_steps": 3}
    experiment = Experiment(tiny.config(**changes, **with_classes, **fast))
    if kind == "classifier":
        message = "need a class-conditional network, or a class"
        refused(message, ss.load(tmp_path).sample, classes=(1,))
        params = tiny.random_params(experiment, classifier.make_job(experiment).abstract_params)
        claim(tmp_path / "classifier", experiment.config, "classifier")
        save(tmp_path / "classifier", experiment, 1, {"params": params})
    experiment.load_classifier(tmp_path)
    model, key = ss.load(tmp_path), experiment.key("sample")
    options = {"seed": key, "steps": 3, "guidance_scale": 2.0}
    x = model.sample(4, classes=[3, 1], **options)
    on_two_devices = experiment.trained_model(experiment.trained(tmp_path)[1])
    expected = experiment.draw_images(on_two_devices, 0, 4).x
    assert np.abs(model.to_images(x).astype(int) - expected).max() <= 1
    rest = model.sample(3, first=1, classes=(3, 1), **options)
    np.testing.assert_allclose(rest, x[1:], atol=1e-4)
    assert np.abs(model.sample(4, classes=(4,), **options) - x).max() > 1e-3
    for wrong in ((10,), (-1,), 3, (1.5,)):
        refused("classes = .* must be", model.sample, 1, classes=wrong)


def test_errors(workdir, model, levels):
    for message, options in {
        "load needs a workdir, or both config and checkpoint": {},
        "absent holds no model": {"workdir": workdir / "absent"},
        "checkpoint = 'a.pth': .* a number": {"workdir": workdir, "checkpoint": "a.pth"},
        "checkpoint_99": {"workdir": workdir, "checkpoint": 99},
        "' must be": {"config": workdir / "config.json", "checkpoint": "a"},
        "absent.py does not ex": {"config": "absent.py", "checkpoint": "a.pth"},
    }.items():
        refused(message, ss.load, **options)
    for message, images in {
        "must be integer gray levels": levels / 16,
        "the gray levels of this model are 0 to": levels.astype(int) + 300,
        r"has shape \(4, 7, 7, 1\), but an event has shape": levels[:, 1:, 1:],
        "it contains no events": levels[:0],
    }.items():
        refused(message, model.bits_per_dim, images)
