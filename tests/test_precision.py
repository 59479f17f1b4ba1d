"""What saves time and memory in training: bfloat16, rematerialisation, accumulation, and dropout from cheap bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.sharding import PartitionSpec

import sharding
from errors import InputError
from experiment import Experiment
from models.layers import Rngs, dropout
from tests import tiny
from tests.test_training import run

PROGRAMS = Jaxpr, ClosedJaxpr
KINDS = {
    "NCSN++": {
        "model.embedding_type": "fourier",
        "training.sde": "vesde",
        "model.fir": True,
        "model.ch_mult": (1, 1),
    }
    | {
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


def score_of(kind: str, **changes):
    """The score function (params, x, t) of a tiny network, random parameters, and images with their times."""
    experiment = Experiment(tiny.config(**KINDS[kind] | changes), jax.devices()[:1])
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda a: 0.2 * rng.normal(size=a.shape).astype(a.dtype), experiment.abstract_params
    )
    x, t = (
        jax.random.normal(jax.random.key(0), (4, *experiment.image_shape)),
        jnp.array([0.1, 0.3, 0.6, 0.9]),
    )
    return lambda params, x, rngs=None: experiment.score(params, rngs)(x, t), params, x


def equations(jaxpr):
    """All equations of a program, those of inner programs too."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: isinstance(x, PROGRAMS)
        ):
            if isinstance(inner, PROGRAMS):
                yield from equations(getattr(inner, "jaxpr", inner))


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16(kind):
    """All convolutions are bfloat16's, scores and gradients float32's, and close."""
    results = {}
    for dtype in ("float32", "bfloat16"):
        score, params, x = score_of(kind, **{"model.dtype": dtype})
        of_square = jax.value_and_grad(
            lambda params, score=score, x=x: jnp.square(score(params, x)).mean()
        )
        program = jax.make_jaxpr(of_square)(params).jaxpr
        convolutions = [e for e in equations(program) if e.primitive.name == "conv_general_dilated"]
        used = {
            variable.aval.dtype.name for equation in convolutions for variable in equation.invars
        }
        assert used == {dtype}
        results[dtype] = jax.jit(score)(params, x), *jax.jit(of_square)(params)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(results[dtype])} == {"float32"}
    flat = [
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(result)])
        for result in results.values()
    ]
    assert 0 < np.linalg.norm(flat[0] - flat[1]) < 0.05 * np.linalg.norm(flat[0])


def test_training_in_bfloat16():
    config = tiny.config(**{"training.n_iters": 60, "training.batch_size": 64, "optim.lr": 3e-3})
    config.model.dtype = "bfloat16"
    curve, state = run(config, jax.devices()[:1])
    assert curve[-15:].mean() < 0.8 * curve[:3].mean()
    assert {leaf.dtype.name for leaf in jax.tree.leaves((state.params, state.ema))} == {"float32"}


@pytest.mark.parametrize("kind", KINDS)
def test_rematerialisation(kind):
    """It keeps less for the gradient, which stays the same, dropout included."""
    grads, kept = [], []
    for remat in (False, True):
        score, params, x = score_of(
            kind, **{"training.remat": remat, "model.ch_mult": (1,), "model.num_res_blocks": 2}
        )
        noisy = lambda params, score=score, x=x: jnp.square(
            score(params, x, Rngs(jax.random.key(1)))
        ).mean()
        grads.append(jax.jit(jax.grad(noisy))(params))
        pull_back = jax.eval_shape(lambda params, noisy=noisy: jax.vjp(noisy, params)[1], params)
        kept.append(sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pull_back)))
    for a, b in zip(*map(jax.tree.leaves, grads)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    parameters = sum(4 * leaf.size for leaf in jax.tree.leaves(params))
    assert kept[1] - parameters < 0.5 * (kept[0] - parameters)


def test_accumulation_changes_rounding_only():
    changes = {"training.n_iters": 3, "model.dropout": 0.0}
    curves = [
        run(tiny.config(**changes, **{"training.accumulate": count}), jax.devices()[:devices])[0]
        for count, devices in ((1, 1), (4, 1), (2, 2))
    ]
    for curve in curves[1:]:
        np.testing.assert_allclose(curve, curves[0], rtol=2e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model.dtype": "float16"},
            "model.dtype = 'float16' is unknown; known: bfloat16, float32",
        ),
        ({"training.accumulate": 0}, "training.accumulate = 0 must be at least 1"),
        (
            {"training.accumulate": 3},
            "training.batch_size = 16 does not divide into training.accumulate = 3 parts",
        ),
        ({"model.dropout": 1.0}, "model.dropout = 1.0 must be at least 0 and less than 1"),
    ],
)
def test_bad_values(changes, message):
    with pytest.raises(InputError, match=message):
        Experiment(tiny.config(**changes))


@pytest.mark.parametrize("changes", [{"model.dtype": "bfloat16"}, {"training.remat": True}])
def test_networks_that_know_neither_are_refused(changes):
    with pytest.raises(
        InputError, match=r"needs model.name in \['ncsnpp', 'ddpm'\], not 'ncsnv2_64'"
    ):
        Experiment(tiny.config("ve.ncsnv2.cifar10", **changes, **{"data.dataset": "noise"}))


def masks(count: int, shape: tuple[int, ...], rate: float) -> np.ndarray:
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(count))
    return np.asarray(jax.jit(jax.vmap(lambda key: dropout(key, jnp.ones(shape), rate)))(keys))


def test_dropout_keeps_the_right_share_and_the_mean():
    kept = masks(20, (16, 8, 8, 64), 0.1)
    np.testing.assert_allclose(np.unique(kept), [0, 1 / 0.9], rtol=1e-6)
    deviation = np.sqrt(0.1 / 0.9 / kept[0].size)
    scores = (kept.reshape(20, -1).mean(1) - 1) / deviation
    assert np.abs(scores).max() < 4
    assert 0.5 < scores.std() < 1.6


def test_dropout_bits_are_independent():
    """Of the next entries along every axis, of those of other keys, and of the same entries' bits in other places."""
    kept = masks(32, (16, 8, 8, 64), 0.5) - 1
    assert np.abs(kept).max() == 1
    pairs = {f"axis {axis}": (np.roll(kept, 1, axis) * kept) for axis in range(5)}
    pairs["half an image"] = np.roll(kept, 32, 4) * kept
    for name, product in pairs.items():
        assert np.abs(product.mean()) < 4 / np.sqrt(product.size), name
    rows = kept.reshape(-1, 8) > 0
    counts = np.bincount(rows @ (1 << np.arange(8)), minlength=256)
    chi_square = np.square(counts - len(rows) / 256).sum() / (len(rows) / 256)
    assert np.abs(chi_square - 255) < 4 * np.sqrt(2 * 255)


def test_dropout_does_not_know_the_devices():
    mesh, x, key = sharding.make_mesh(jax.devices()), jnp.ones((8, 4, 4, 16)), jax.random.key(3)
    drop = jax.jit(lambda x: dropout(key, x, 0.3), out_shardings=sharding.along_axis(mesh))
    split = drop(jax.device_put(x, sharding.along_axis(mesh)))
    assert split.sharding.spec == PartitionSpec("data")
    np.testing.assert_array_equal(split, dropout(key, x, 0.3))
