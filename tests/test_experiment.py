"""The objects of a config: keys, splits, rounding to gray levels, rows, and EMA parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import losses
import sharding
from configs import parts
from configs.folders import claim
from datasets import Batch
from experiment import Experiment
from runs.checkpoints import SNAPSHOTS, Checkpoints
from tests import tiny
from tests.refusal import refused
from tests.test_training import identical


def test_each_purpose_and_seed_has_its_own_key():
    both = [Experiment(tiny.config(seed=seed)) for seed in (0, 1)]
    keys = [each.key(purpose) for each in both for purpose in parts.PURPOSES]
    data = {tuple(np.asarray(jax.random.key_data(key)).tolist()) for key in keys}
    assert len(data) == 2 * len(parts.PURPOSES)


def test_splits_and_devices():
    experiment = Experiment(tiny.config(**{"data.dataset": "black_and_white"}))
    assert experiment.train.pixels.max() == 0
    assert experiment.test.pixels.min() == 255
    message = "training.batch_size = 9 does not divide among 2 devices"
    refused(message, Experiment, tiny.config(**{"training.batch_size": 9}))


@pytest.mark.parametrize("dequantized", [True, False])
@pytest.mark.parametrize("truncate", [True, False])
def test_rounding_of_samples(dequantized, truncate):
    """Samples are rounded to the nearest of 17 gray levels or, as in the official code, down."""
    changes = {"data.uniform_dequantization": dequantized, "eval.legacy_rounding": truncate}
    experiment = Experiment(tiny.config(**changes))
    u = np.array([2.1, 2.9, 8.1, 8.9, 13.9])  # In units of the largest gray level, 16.
    pixels = experiment.pixels(jnp.asarray(2 * u / 16 - 1))
    levels = [2, 2, 8, 8, 13] if truncate else [2, 3, 8, 9, 14]
    np.testing.assert_array_equal(pixels, np.round(np.array(levels) * 255 / 16))
    # The intervals of dequantization divide the range of the model by 17.
    third = experiment.pixels(jnp.asarray([2 * 2.6 / 16 - 1]))
    assert third == round((2 if truncate or dequantized else 3) * 255 / 16)


def test_flips_are_for_training_alone():
    """`prepare` flips if it is asked to; the held-out loss does not ask."""
    experiment = Experiment(tiny.config(**{"data.uniform_dequantization": False}))
    u = np.zeros((64, 8, 8, 1), np.uint8)
    u[:, :, 0] = 16
    kept, flipped = (
        np.asarray(experiment.prepare(experiment.key("train"), u, flip=flip))
        for flip in (False, True)
    )
    assert (kept[:, :, 0] == 1).all()
    assert 16 < (flipped[:, 0, 7, 0] == 1).sum() < 48
    asked, prepare = [], experiment.prepare

    def record(key, images, *, flip):
        asked.append(flip)
        return prepare(key, images, flip=flip)

    experiment.prepare = record
    batch = Batch(u)
    jax.eval_shape(experiment.held_out_loss, experiment.abstract_params, batch, jax.random.key(0))
    assert asked == [False]


def test_training_batches_are_the_rows_of_this_process(monkeypatch):
    experiment = Experiment(tiny.config(seed=5))
    whole = experiment.batches(experiment.train, 16, labelled=True)[2]
    rows = np.array([1, 2, 7, 11])
    monkeypatch.setattr(sharding, "local_rows", lambda mesh, size: rows)
    mine = experiment.batches(experiment.train, 16, labelled=True)[2]
    np.testing.assert_array_equal(mine.pixels, whole.pixels[:, rows])
    np.testing.assert_array_equal(mine.labels, whole.labels[:, rows])
    other = Experiment(tiny.config(seed=6)).batches(experiment.train, 16)[2]
    assert not np.array_equal(other.pixels, mine.pixels)


# --- checkpoints ----------------------------------------------------------------------------------


def test_trained_parameters_are_the_ema(tmp_path):
    """Evaluation, latent codes and restoration use `trained`."""
    experiment = Experiment(tiny.config())
    params, ema, other = (tiny.random_params(experiment, scale=scale) for scale in (1, 2, 3))
    claim(tmp_path, experiment.config, "training")
    checkpoints = Checkpoints(tmp_path, create=True)
    for number, average in ((1, other), (2, ema)):
        trees = {"params": params, "ema": average}
        checkpoints.save(SNAPSHOTS, number, trees, step=3, config=experiment.config.to_dict())
    checkpoints.close()
    found, restored = experiment.trained(str(tmp_path))
    assert found.number == 2
    assert identical(restored, ema)
    first, restored = experiment.trained(str(tmp_path), 1)
    assert identical(restored, other)
    # The same step and parameters; the checksums are those of the EMA.
    identities = [experiment.identity(str(tmp_path), each) for each in (first, found)]
    assert [each["step"] for each in identities] == [3, 3]
    assert identities[0]["ema"] != identities[1]["ema"]


def loss_of(experiment, monkeypatch, output, x, t, z):
    """The training loss if the network's output is output(x_t)."""

    def network(noised, label, rngs):
        return output(noised)

    monkeypatch.setattr("experiment.nnx.merge", lambda graph, params: network)
    return experiment.loss({}, x, t, z)


@pytest.mark.parametrize(
    ("parameterization", "distribution"),
    [("edm", "uniform"), ("noise", "log_normal")],
)
def test_objectives_of_other_parameterizations(monkeypatch, parameterization, distribution):
    """EDM's loss, by its parameterization or its times, for a zero output, where D = c_skip x."""
    changes = {"model.parameterization": parameterization, "model.sigma_data": 0.7}
    experiment = Experiment(tiny.config(**changes, **{"training.time_distribution": distribution}))
    x = jnp.linspace(-1, 1, 64).reshape(1, 8, 8, 1)
    t, z = jnp.array([0.4]), jnp.cos(jnp.arange(64.0)).reshape(1, 8, 8, 1)
    sigma = float(experiment.sde.noise_to_signal(t)[0])
    denoised = (x + sigma * z) * (0.49 / (sigma**2 + 0.49) if parameterization == "edm" else 1)
    weight = (sigma**2 + 0.49) / (sigma * 0.7) ** 2
    found = loss_of(experiment, monkeypatch, jnp.zeros_like, x, t, z)
    np.testing.assert_allclose(found, weight * jnp.mean((denoised - x) ** 2), rtol=1e-4)


def test_the_flow_of_a_config_is_that_of_flow_matching(monkeypatch):
    """Uniform times and the error of z - x_0."""
    experiment = Experiment(tiny.config(**{"training.sde": "rectifiedflow"}))
    x, t = jnp.ones((1, 8, 8, 1)) / 3, jnp.array([0.9])
    found = loss_of(experiment, monkeypatch, lambda noised: -2 * x + 0.5, x, t, -x)
    np.testing.assert_allclose(found, 0.25, rtol=1e-3)


def test_times_of_a_config():
    changes = {"training.time_distribution": "log_normal", "training.p_mean": -3.0}
    experiment = Experiment(tiny.config(**changes, **{"training.p_std": 0.1}))
    t, _ = experiment.draw(jax.random.key(0), jnp.zeros((500, 8, 8, 1)))
    logs = np.log(experiment.sde.noise_to_signal(t))
    assert logs.mean() == pytest.approx(-3, abs=0.02)
    assert logs.std() == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize(
    ("changes", "expected", "ratio"),
    [
        ({"importance_weighting": True}, losses.importance_times, 1.0),
        ({"time_distribution": "importance"}, losses.importance_times, 1.0),
        ({}, losses.uniform_times, None),
    ],
)
def test_likelihood_weighting_of_a_config(monkeypatch, changes, expected, ratio):
    """With importance sampling the weight is the same at all times; otherwise it is g^2 / std^2."""
    changes = {f"training.{name}": value for name, value in changes.items()}
    experiment = Experiment(tiny.config(**changes, **{"training.likelihood_weighting": True}))
    x, sde, key = jnp.ones((4, 8, 8, 1)), experiment.sde, jax.random.key(0)
    t, z = experiment.draw(key, x)
    np.testing.assert_array_equal(t, losses.draw(key, sde, x, expected)[0])
    found = loss_of(experiment, monkeypatch, jnp.zeros_like, x, t, z)
    weights = found / jnp.square(z).mean((1, 2, 3))
    g_over_std = (sde.diffusion(t) / sde.std(t)) ** 2
    np.testing.assert_allclose(weights / weights[0], ratio or g_over_std / g_over_std[0], rtol=1e-4)
