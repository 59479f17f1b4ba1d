"""Options that save time or memory: bfloat16, rematerialization, accumulation, hashed dropout."""

import functools
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import sharding
from experiment import Experiment
from models.layers import Rngs, dropout
from tests import tiny
from tests.programs import equations
from tests.test_training import run

NETWORK_CHANGES = {
    "NCSN++": {
        "model.embedding_type": "fourier",
        "training.sde": "vesde",
        "model.fir": True,
        "model.ch_mult": (1, 1),
        "model.progressive": "output_skip",
        "model.progressive_input": "residual",
        "model.attn_resolutions": (4,),
    },
    "DDPM": {
        "model.name": "ddpm",
        "model.nf": 32,
        "model.conditional": True,
        "model.attn_resolutions": (8,),
    },
}
NETWORKS = ["DDPM", pytest.param("NCSN++", marks=pytest.mark.slow)]


def build_score(kind: str, **changes):
    """Return the score (params, x) of a tiny network, random parameters, and images."""
    experiment = Experiment(tiny.config(**NETWORK_CHANGES[kind] | changes), jax.devices()[:1])
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda a: 0.2 * rng.normal(size=a.shape).astype(a.dtype), experiment.abstract_params
    )
    x = jax.random.normal(jax.random.key(0), (4, *experiment.image_shape))
    t = jnp.array([0.1, 0.3, 0.6, 0.9])

    def score(params, x, rngs=None):
        return experiment.score(params, rngs)(x, t)

    return score, params, x


@pytest.mark.slow
@pytest.mark.parametrize("kind", NETWORKS)
def test_bfloat16(kind):
    """All convolutions are in bfloat16; scores and gradients are float32 and close to float32's."""
    results = []
    for dtype in ("float32", "bfloat16"):
        score, params, x = build_score(kind, **{"model.dtype": dtype})

        def mean_square(params, score=score, x=x):
            value = score(params, x)
            return jnp.square(value).mean(), value

        value_and_grad = jax.jit(jax.value_and_grad(mean_square, has_aux=True))
        program = jax.make_jaxpr(value_and_grad)(params).jaxpr
        used = set()
        for equation in equations(program):
            if equation.primitive.name == "conv_general_dilated":
                used |= {variable.aval.dtype.name for variable in equation.invars}
        assert used == {dtype}
        leaves = jax.tree.leaves(value_and_grad(params))
        assert {leaf.dtype.name for leaf in leaves} == {"float32"}
        results.append(np.concatenate([np.ravel(leaf) for leaf in leaves]))
    exact, rounded = results
    assert 0 < np.linalg.norm(exact - rounded) < 0.05 * np.linalg.norm(exact)


@pytest.mark.slow
def test_rematerialization():
    """The backward pass stores less, and the gradient stays the same, including dropout."""
    grads, stored = [], []
    for remat in (False, True):
        changes = {"training.remat": remat, "model.ch_mult": (1,), "model.num_res_blocks": 2}
        score, params, x = build_score("DDPM", **changes)

        def mean_square(params, score=score, x=x):
            return jnp.square(score(params, x, Rngs(jax.random.key(1)))).mean()

        def pull_back(params, function=mean_square):
            return jax.vjp(function, params)[1]

        grads.append(jax.jit(jax.grad(mean_square))(params))
        residuals = jax.tree.leaves(jax.eval_shape(pull_back, params))
        stored.append(sum(leaf.size * leaf.dtype.itemsize for leaf in residuals))
    for a, b in zip(*map(jax.tree.leaves, grads)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    parameters = sum(4 * leaf.size for leaf in jax.tree.leaves(params))
    assert stored[1] - parameters < 0.5 * (stored[0] - parameters)


@pytest.mark.slow
def test_accumulation_changes_rounding_only():
    curves = []
    for count, devices in ((1, 1), (4, 1), (2, 2)):
        changes = {"training.n_iters": 3, "model.dropout": 0.0, "training.accumulate": count}
        curves.append(run(tiny.config(**changes), jax.devices()[:devices])[0])
    for curve in curves[1:]:
        np.testing.assert_allclose(curve, curves[0], rtol=2e-6)


def test_dropout():
    """It keeps the expected fraction and the mean.

    Its bits are uncorrelated with neighbors along all axes, other keys and distant entries.
    """
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(32))

    @functools.partial(jax.jit, static_argnums=0)
    def drop(rate):
        return jax.vmap(lambda key: dropout(key, jnp.ones((16, 8, 8, 64)), rate))(keys)

    masks, bits = np.asarray(drop(0.1)), np.asarray(drop(0.5)) - 1
    np.testing.assert_allclose(np.unique(masks), [0, 1 / 0.9], rtol=1e-6)
    stderr = np.sqrt(0.1 / 0.9 / masks[0].size)
    deviations = (masks.reshape(32, -1).mean(1) - 1) / stderr
    assert np.abs(deviations).max() < 4
    assert 0.5 < deviations.std() < 1.6
    assert np.abs(bits).max() == 1
    pairs = {f"axis {axis}": (np.roll(bits, 1, axis) * bits) for axis in range(5)}
    pairs["half of the channels"] = np.roll(bits, 32, 4) * bits
    for name, product in pairs.items():
        assert np.abs(product.mean()) < 4 / np.sqrt(product.size), name
    rows = bits.reshape(-1, 8) > 0
    counts = np.bincount(rows @ (1 << np.arange(8)), minlength=256)
    expected = len(rows) / 256
    chi_square = np.square(counts - expected).sum() / expected
    assert np.abs(chi_square - 255) < 4 * np.sqrt(2 * 255)


def test_dropout_does_not_depend_on_the_devices():
    mesh = sharding.make_mesh(jax.devices())
    x, key = jnp.ones((8, 4, 4, 16)), jax.random.key(3)
    drop = jax.jit(lambda x: dropout(key, x, 0.3), out_shardings=sharding.along_axis(mesh))
    split = drop(jax.device_put(x, sharding.along_axis(mesh)))
    assert split.sharding.spec == PartitionSpec("data")
    np.testing.assert_array_equal(split, dropout(key, x, 0.3))


@pytest.mark.skipif(find_spec("libtpu") is not None, reason="libtpu aborts at flags of CPUs.")
def test_products_with_equal_entries():
    """They are wrong or not finite in jaxlib 0.10.2 to 0.12.0 by default (JAX issue 39103)."""
    rng = np.random.default_rng(0)
    x, offset = rng.normal(size=(50, 64)), rng.normal(size=500)

    @jax.jit
    def weights(x, variance):
        precision = jnp.broadcast_to(1 / variance, (500, 64))
        return jax.nn.softmax(x**2 @ precision.T + offset)

    expected = np.exp(offset) / np.exp(offset).sum()  # Equal terms do not change the softmax.
    found = weights(jnp.float32(x), jnp.float32(0.5))
    np.testing.assert_allclose(found, np.broadcast_to(expected, (50, 500)), rtol=1e-3)
