"""Networks against recorded official outputs, layers against JAX, Flax and scipy, the registry."""

import dataclasses
import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
from flax import nnx, traverse_util

from experiment import Experiment
from models import (
    NETWORKS,
    blocks,
    building,
    initial,
    layers,
    resample,
)
from models.classifier import WideResnet
from models.ncsnpp import NCSNpp
from models.registry import NOT_IN_MODEL
from options import GIVEN
from pretrained import flax_format, parameter_names, stored_parameters
from sde_lib import VESDE
from tests import reference, tiny
from tests.refusal import refused

# Two recordings whose own float32 error is 3e-5 and 8e-5, measured against float64.
ILL_CONDITIONED = ("ve_ncsn_cifar10_124", "ve_ncsn_celeba_5")
# The others are of the same kinds, and take most of the time of this file.
QUICK = {
    *("ve_cifar10_ncsnpp", "ve_cifar10_ncsnpp_continuous", "subvp_cifar10_ncsnpp_continuous"),
    *("vp_cifar10_ddpmpp", "vp_cifar10_ddpmpp_continuous", "ve_cifar10_ddpm", "vp_ddpm_bedroom"),
    *("vp_ddpm_cifar10_unconditional", "ve_ncsn_cifar10", "ve_ncsnv2_cifar10", "ve_ncsnv2_bedroom"),
}
REPEATED = set(reference.folders()) - QUICK


@functools.cache
def compiled_score(folder):
    experiment = reference.experiment(folder)
    return jax.jit(lambda params, x, t: experiment.score(params)(x, t))


@pytest.mark.parametrize("kind", ["flax", "torch"])
@pytest.mark.parametrize("folder", reference.cases(reference.folders(), REPEATED))
def test_recorded_networks(folder, kind):
    """Imported official checkpoints reproduce the outputs of the code that wrote them."""
    trained = reference.trained(folder, kind)
    experiment = reference.experiment(folder)
    score = compiled_score(folder)
    sde, model = experiment.sde, experiment.score_model
    io = np.load(reference.find(f"{folder}/io_{kind}.npz"))
    x = io["x"].reshape(-1, *io["x"].shape[2:])
    t = io["t"].reshape(-1)
    raw = io["raw_ema"].reshape(x.shape)
    recorded = io["score_ema"].reshape(x.shape)
    labels = model.label(t)
    assert labels.dtype.kind == io["labels"].dtype.kind
    np.testing.assert_allclose(labels, io["labels"].reshape(-1), rtol=3e-7)
    ours = np.concatenate([score(trained.ema, *pair) for pair in zip(io["x"], io["t"])])
    bound = 1e-4 if folder in ILL_CONDITIONED else 1e-5
    # The score with our std, since the official float32 std loses precision to cancellation at
    # small t (see test_sde_lib).
    std = np.asarray(model.marginal(t)[1], np.float64)[:, None, None, None]
    exact = raw if isinstance(sde, VESDE) else -raw / std
    assert reference.image_error(ours, exact) < bound
    fine = t > 0.04
    assert reference.image_error(ours[fine], recorded[fine]) < max(bound, 2e-5)
    assert reference.image_error(ours, recorded) < 5e-4
    target = score(trained.params, io["x"][1], io["t"][1])
    assert reference.image_error(target, io["score_target"]) < max(bound, 2e-5)


def learned(grads):
    """The names of parameters by whether any entry of their gradient differs from 0."""
    names = {True: set(), False: set()}
    for path, grad in jax.tree.leaves_with_path(jax.device_get(grads)):
        names[bool(grad.any())].add(jax.tree_util.keystr(path))
    return names


def fixed(params):
    leaves = jax.tree.leaves_with_path(params)
    return {jax.tree_util.keystr(path) for path, _ in leaves if building.is_fixed(path)}


def random_params(shapes):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda a: 0.3 * rng.normal(size=a.shape).astype(np.float32), shapes)


def test_fixed_parameters_are_those_without_a_gradient():
    """They are the frequencies of Fourier features, in the score network and the classifier."""
    x, t = jax.random.normal(jax.random.key(0), (2, 8, 8, 1)), jnp.array([0.3, 0.7])
    changes = {"model.embedding_type": "fourier", "model.ch_mult": (1,)}
    experiment = Experiment(tiny.config(**changes), jax.devices()[:1])
    for network in (experiment.network, experiment.classifier_network):
        graph, shapes = nnx.split(network, nnx.Param)
        params = random_params(nnx.to_pure_dict(shapes))

        def total(params, graph=graph):
            return jnp.square(nnx.merge(graph, params)(x, t)).sum()

        names = learned(jax.jit(jax.grad(total))(params))
        assert names[False] == fixed(params)
        (name,) = names[False]
        assert name.endswith("['W']")


def test_recorded_classifier():
    folder = reference.find("classifier_wideresnet")
    options = json.loads((folder / "config.json").read_text())["hyper_parameters"]
    rngs = layers.Rngs(jax.random.key(0))
    network = building.abstract_network(lambda: WideResnet(**options, rngs=rngs))
    tensors = traverse_util.flatten_dict(flax_format.load(folder / "checkpoint_flax"), sep="/")
    layout = parameter_names.flax_layout(network)
    params = stored_parameters.load_params(layout, tensors, "checkpoint_flax")
    graph = nnx.split(network, nnx.Param)[0]
    io = np.load(folder / "io.npz")

    @jax.jit
    def logits(x):
        return nnx.merge(graph, params)(x, io["sigma"])

    tolerance = {"rtol": 1e-5, "atol": 1e-5}
    np.testing.assert_allclose(logits(io["x"]), io["logits_no_preprocess"], **tolerance)
    mean = np.array([0.49139968, 0.48215841, 0.44653091], np.float32)  # Of CIFAR-10's pixels.
    std = np.array([0.24703223, 0.24348513, 0.26158784], np.float32)
    np.testing.assert_allclose(logits((io["x"] - mean) / std), io["logits"], **tolerance)


# --- layers ---


def test_derivatives_of_swish():
    """First to third derivatives equal JAX's, in forward and reverse mode, and in bfloat16."""
    x = jnp.linspace(-20, 20, 401)

    def jvp(function):
        return jax.jit(lambda x: jax.jvp(function, (x,), (jnp.ones_like(x),))[1])(x)

    def derivative(function):
        return jax.jit(lambda x: jax.vjp(function, x)[1](jnp.ones_like(x))[0])

    ours, expected = layers.swish, jax.nn.swish
    for _ in range(3):
        np.testing.assert_allclose(jvp(ours), jvp(expected), rtol=1e-5, atol=1e-6)
        ours, expected = derivative(ours), derivative(expected)
        np.testing.assert_allclose(ours(x), expected(x), rtol=1e-5, atol=1e-6)
    half = x.astype(jnp.bfloat16)
    rounded = derivative(layers.swish)(half).astype(jnp.float32)
    exact = derivative(jax.nn.swish)(half.astype(jnp.float32))
    np.testing.assert_allclose(rounded, exact, rtol=2**-7, atol=1e-6)


def test_group_normalization():
    """Values and gradients equal those of Flax's layer on x + shift, also for shifts of 10 std."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 8, 8, 24)).astype(np.float32)
    shift = 10 * rng.normal(size=(3, 24)).astype(np.float32)
    ours = layers.GroupNorm(24)
    flax_norm = nnx.GroupNorm(24, num_groups=6, epsilon=1e-6, rngs=nnx.Rngs(0))
    scale, bias, weights = (rng.normal(size=size).astype(np.float32) for size in (24, 24, x.shape))
    for norm in (ours, flax_norm):
        norm.scale[...] = scale
        norm.bias[...] = bias

    def expected(x, shift):
        return flax_norm(x + shift[:, None, None])

    def gradients(function):
        weighted = jax.grad(lambda *args: (weights * function(*args)).sum(), (0, 1))
        return jax.jit(weighted)(x, shift)

    np.testing.assert_allclose(ours(x, shift), expected(x, shift), atol=2e-5)
    for grad, expected_grad in zip(gradients(ours), gradients(expected)):
        atol = 2e-4 * np.abs(expected_grad).max() + 1e-4
        np.testing.assert_allclose(grad, expected_grad, atol=atol)


# --- resampling ---


def upfirdn(x, kernel, up, down, pad):
    """Apply upfirdn2d with scipy, along both axes."""
    for axis in (1, 2):
        length = x.shape[axis] * up
        x = scipy.signal.upfirdn(kernel, x, up=up, axis=axis)
        # scipy pads with len(kernel) - 1 zeros before x; upfirdn2d pads with `pad` and keeps valid
        # entries.
        start = len(kernel) - 1 - pad[0]
        stop = start + length + sum(pad) - len(kernel) + 1
        width = [(0, 0)] * x.ndim
        width[axis] = (0, max(0, stop - x.shape[axis]))
        x = np.take(np.pad(x, width), np.arange(start, stop, down), axis)
    return x


@pytest.mark.parametrize("kernel", [(1, 2, 4, 1), (1, 4, 6, 4, 1)])
def test_fir_resampling_is_upfirdn(kernel):
    x = np.random.default_rng(0).normal(size=(2, 6, 6, 3)).astype(np.float32)
    taps = np.array(kernel) / sum(kernel)
    surplus = len(kernel) - 2
    up = upfirdn(x, 2 * taps, 2, 1, ((surplus + 1) // 2 + 1, surplus // 2))
    upsample, downsample = (
        jax.jit(function, static_argnums=1)
        for function in (resample.upsample_fir, resample.downsample_fir)
    )
    np.testing.assert_allclose(upsample(x, kernel), up, atol=1e-5)
    down = upfirdn(x, taps, 1, 2, ((surplus + 1) // 2, surplus // 2))
    np.testing.assert_allclose(downsample(x, kernel), down, atol=1e-5)


def test_convolutions_merged_with_fir_resampling():
    """Down: filter, strided convolution. Up: transposed convolution, filter (StyleGAN2)."""
    kernel, rng = (1, 2, 4, 1), np.random.default_rng(0)
    x = rng.normal(size=(1, 8, 8, 2)).astype(np.float32)
    weight = rng.normal(size=(3, 3, 2, 4)).astype(np.float32)
    taps, surplus = np.array(kernel) / sum(kernel), len(kernel) - 2

    def correlate(image):
        windows = np.lib.stride_tricks.sliding_window_view(image, (3, 3), axis=(0, 1))
        return np.einsum("hwiab,abio->hwo", windows, weight)

    filtered = upfirdn(x, taps, 1, 1, ((surplus + 3) // 2, (surplus + 2) // 2))
    down = jax.jit(resample.downsample_conv, static_argnums=2)(x, weight, kernel)
    expected = correlate(filtered[0])[::2, ::2]
    np.testing.assert_allclose(down[0], expected, rtol=1e-4, atol=1e-4)
    stuffed = np.zeros((19, 19, 2), np.float32)
    stuffed[2:17:2, 2:17:2] = x[0]
    pad = ((surplus - 1) // 2 + 1, (surplus - 2) // 2 + 1)
    expected = upfirdn(correlate(stuffed)[None], 2 * taps, 1, 1, pad)
    up = jax.jit(resample.upsample_conv, static_argnums=2)(x, weight, kernel)
    assert up.shape == (1, 16, 16, 4)
    np.testing.assert_allclose(up, expected, rtol=1e-4, atol=1e-4)


# --- options that no recording covers ---

SMALL = {"image_size": 8, "num_channels": 2, "nf": 4, "ch_mult": (1, 2), "num_res_blocks": 1}
SMALL |= {"attn_resolutions": (4,)}
FLAT = SMALL | {"ch_mult": (1,), "attn_resolutions": ()}
X, LABEL = jax.random.normal(jax.random.key(0), (2, 8, 8, 2)), jnp.array([3.0, 500.0])


def make(network=NCSNpp, **options):
    """Return the graph of a network, and random parameters: drawing initial ones takes longer."""
    rngs = layers.Rngs(jax.random.key(0))
    graph, shapes = nnx.split(
        building.abstract_network(lambda: network(**options, rngs=rngs)), nnx.Param
    )
    return graph, random_params(nnx.to_pure_dict(shapes))


@pytest.mark.parametrize(
    ("progressive", "progressive_input", "combine", "blocks", "fir"),
    [
        ("none", "residual", "sum", "ddpm", True),
        ("residual", "input_skip", "cat", "ddpm", False),
        pytest.param("residual", "residual", "sum", "biggan", True, marks=pytest.mark.slow),
    ],
)
def test_options_use_all_their_parameters(progressive, progressive_input, combine, blocks, fir):
    """Shapes fit, and the output depends on all parameters.

    The biases of attention keys are an exception, because softmax is invariant to them.
    """
    options = {"progressive": progressive, "progressive_input": progressive_input, "fir": fir}
    options |= {"progressive_combine": combine, "resblock_type": blocks}
    graph, params = make(**SMALL, **options)

    def mean(params):
        output = nnx.merge(graph, params)(X, LABEL)
        assert output.shape == X.shape
        return jnp.sin(output).sum()

    unused = learned(jax.jit(jax.grad(mean))(params))[False]
    assert all("['key']['bias']" in name for name in unused), unused


def test_last_layers_of_branches_start_near_zero():
    """With init_scale = 0, as in Appendix H and Ho et al."""
    params = nnx.split(NCSNpp(**FLAT | {"attn_resolutions": (8,)}, rngs=nnx.Rngs(0)), nnx.Param)[1]
    names = {"conv2", "out", "conv_out"}
    last = [leaf for path, leaf in nnx.to_flat_state(params) if names & {*path}]
    assert len(last) == 2 * (5 + 3 + 1)  # Kernels and biases of blocks, attention and output.
    assert max(np.abs(leaf[...]).max() for leaf in last) < 1e-3


# --- the registry and invalid values ---

OPTIONS = {"nf": 32, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": ()}
OPTIONS |= {"num_scales": 10}


@pytest.mark.parametrize("name", sorted(NETWORKS.keys() - {GIVEN}))
def test_declared_fields_are_the_arguments(name):
    """The constructor takes the declared fields and what it supports by keyword, and no others."""
    network = NETWORKS[name]
    options = network.build.Options(image_size=16, num_channels=3, **network.arguments(OPTIONS))
    declared = dataclasses.asdict(options)
    assert declared.keys() - NOT_IN_MODEL == set(network.fields)

    def build(**more):
        rngs = layers.Rngs(jax.random.key(0))
        built = building.abstract_network(lambda: network.build(**declared | more, rngs=rngs))
        assert not fixed(nnx.to_pure_dict(nnx.split(built, nnx.Param)[1]))

    build()
    extra = {"classes": network.class_conditional, "remat": network.remat, "unknown": False}
    for argument, supported in extra.items():
        if not supported:
            with pytest.raises(TypeError, match=argument):
                build(**{argument: 1})
        else:
            build(**{argument: 1})


@pytest.mark.parametrize("name", sorted(NETWORKS.keys() - {GIVEN, "mlp"}))
def test_image_sizes(name):
    """A network can be built for exactly the images whose sides its levels can halve."""
    network = NETWORKS[name]
    multiple = {"ncsnv2_128": 4, "ncsnv2_256": 8}.get(name, 2)
    arguments = {"num_channels": 3, **network.arguments(OPTIONS)}

    def build(image_size):
        rngs = layers.Rngs(jax.random.key(0))
        return network.build(image_size=image_size, **arguments, rngs=rngs)

    building.abstract_network(lambda: build(multiple))
    for size in (multiple + 1, (multiple, multiple + 1), (multiple + 1, multiple), multiple // 2):
        if size != 1:
            message = rf"{re.escape(str(size))} cannot be halved .* use a multiple of {multiple}"
            refused(f"data.image_size = {message}", build, size)


# --- options of EDM's networks ---


def test_attention_has_heads():
    """Heads attend separately: with two, the output is that of two halves with one head each."""
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 128))
    one, two = (
        blocks.AttnBlockpp(128, blocks.BlockOptions(), heads=count, rngs=nnx.Rngs(0))
        for count in (1, 2)
    )
    two.out.kernel.set_value(jnp.eye(128))
    h = two.norm(x).reshape(2, 16, 128)
    halves = []
    for half in (slice(64), slice(64, None)):
        q, k, v = (layer(h)[..., half] for layer in (two.query, two.key, two.value))
        halves.append(jax.nn.softmax(q @ k.mT / 8) @ v)
    expected = x + jnp.concatenate(halves, -1).reshape(x.shape)
    np.testing.assert_allclose(two(x), expected, rtol=1e-4, atol=1e-5)
    one.out.kernel.set_value(jnp.eye(128))
    assert not np.allclose(one(x), expected, atol=1e-3)


def test_initial_values_are_those_of_jax():
    """Also if they are traced, and for keys of another generator."""
    key, shape = jax.random.fold_in(jax.random.key(3), 2), (3, 3, 17, 150)
    for scale, given in ((1.0, key), (0.0, key), (0.1, jax.random.key(1, impl="rbg"))):
        by_jax = jax.nn.initializers.variance_scaling(scale or 1e-10, "fan_avg", "uniform")
        draw = initial.default_init(scale)
        for ours in (draw(given, shape), jax.jit(draw, static_argnums=1)(given, shape)):
            np.testing.assert_array_equal(ours, by_jax(given, shape))
