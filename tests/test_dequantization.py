"""Variational dequantization: the density of its noise, training, and evaluation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
from flax import nnx

import evaluation
from auxiliary import dequantization, fitting
from checkpoints import tree_checksum
from errors import InputError
from experiment import Experiment
from models.dequantizer import Dequantizer
from tests import gaussian, tiny
from tests.test_latents import workdir  # noqa: F401


def flow():
    graph, params = nnx.split(Dequantizer(1, 17, rngs=nnx.Rngs(0)), nnx.Param)
    u = jax.random.randint(jax.random.key(0), (2, 3, 4, 1), 0, 17)
    noise = jax.random.uniform(jax.random.key(1), u.shape)
    return graph, params, u, noise


def test_an_untrained_one_is_uniform():
    graph, params, u, noise = flow()
    v, log_q = nnx.merge(graph, params)(u, noise)
    np.testing.assert_allclose(v, noise, atol=1e-4)
    np.testing.assert_allclose(log_q, 0, atol=1e-3)


def test_the_density_is_that_of_the_change_of_variables():
    """Uniform noise has density 1, so log q is minus the log-determinant of dv / dnoise."""
    graph, params, u, noise = flow()
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda a: jnp.asarray(0.05 * rng.normal(size=a.shape), jnp.float32), params
    )

    def run(u, noise):
        return nnx.merge(graph, params)(u, noise)

    def flattened(noise, u):
        return run(u[None], noise[None])[0].reshape(-1)

    v, log_q = run(u, noise)
    assert ((v > 0) & (v < 1)).all()
    for i in range(2):
        jacobian = jax.jacfwd(flattened)(noise[i], u[i])
        assert log_q[i] == pytest.approx(-np.linalg.slogdet(jacobian.reshape(12, 12))[1], abs=1e-3)
    assert np.abs(run((u + 5) % 17, noise)[0] - v).max() > 0.01


def test_training_lowers_the_bound():
    """If the density is narrower than a grey level, trained noise lowers the bound."""
    experiment = Experiment(tiny.config(), jax.devices()[:1])
    # A grey level is 0.12 wide.
    experiment.score = lambda ema: gaussian.score(experiment.sde, 0.02, 0.04)
    u = jnp.full((16, 8, 8, 1), 8)
    params = nnx.to_pure_dict(nnx.split(dequantization.network(experiment), nnx.Param)[1])
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, state, key):
        keys = jax.random.split(key, 16)

        def loss(params):
            return dequantization.bound(experiment, None, params, u, keys).mean()

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, value

    state, values = optimizer.init(params), []
    for i in range(60):
        params, state, value = step(params, state, jax.random.key(i))
        values.append(float(value))
    edges = (np.array([8, 9]) / 17 * 2 - 1 - 0.02) / 0.04
    exact = -np.log2(np.diff(scipy.special.ndtr(edges))[0])
    assert np.mean(values[-10:]) < np.mean(values[:3]) - 0.5
    assert np.mean(values[-10:]) > exact - 0.1


def test_training_from_the_command_line(workdir):  # noqa: F811
    config = tiny.config(**{"training.dequantizer_iters": 2, "eval.dequantization": "variational"})
    experiment = Experiment(config)
    with pytest.raises(
        InputError, match="does not exist; train it first, with --mode=train_dequantizer"
    ):
        dequantization.make(experiment, workdir, 3)
    params = dequantization.train(config, str(workdir), 3)
    again = dequantization.load(experiment, workdir, 3)
    assert all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(again), strict=True)
    )
    checksum = dequantization.identity(experiment, workdir, 3)
    assert checksum == tree_checksum(params)
    uniform = Experiment(tiny.config())
    assert dequantization.identity(uniform, workdir, 3) == "uniform"
    u, keys = experiment.test.pixels[:4], jax.random.split(jax.random.key(0), 4)
    x, log_q = dequantization.make(experiment, workdir, 3)(u, keys)
    assert x.shape == u.shape
    assert log_q.shape == (4,)


def test_training_images(workdir, monkeypatch):  # noqa: F811
    """It is fitted to training images, not to the images that it will be evaluated on."""
    used = []

    def fit(experiment, path, params, loss, batches, *rest, **options):
        used.append(batches)

    monkeypatch.setattr(fitting, "fit", fit)
    dequantization.train(tiny.config(), str(workdir), 3)
    ((batches),) = used
    assert (len(batches.images), batches.batch_size) == (1438, 16)


@pytest.mark.slow
def test_evaluation(workdir):  # noqa: F811
    changes = {
        "training.dequantizer_iters": 1,
        "eval.enable_sampling": False,
        "eval.enable_loss": False,
    }
    changes |= {"eval.begin_ckpt": 3, "eval.end_ckpt": 3, "eval.dequantization": "variational"}
    config = tiny.config(**changes)
    dequantization.train(config, str(workdir), 3)
    assert np.isfinite(evaluation.evaluate(config, str(workdir), "variational")[3]["bpd"]["mean"])


def test_unknown_names_are_refused(workdir):  # noqa: F811
    config = tiny.config(**{"eval.dequantization": "gaussian"})
    with pytest.raises(
        InputError, match="eval.dequantization = 'gaussian' is unknown; known: uniform, variational"
    ):
        dequantization.make(Experiment(config), workdir, 3)
