"""Networks against recorded official ones, resampling against scipy, and the options that no recording covers."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
from flax import nnx, traverse_util

from errors import InputError
from models import NETWORKS, building, layers, resample
from models.classifier import WideResnet
from models.ncsnpp import NCSNpp
from pretrained import flax_format, parameter_names, stored_parameters
from sde_lib import VESDE
from tests import reference

# Two recordings whose own float32 is 3e-5 and 8e-5 away from the same network in float64.
ILL_CONDITIONED = ("ve_ncsn_cifar10_124", "ve_ncsn_celeba_5")


@functools.cache
def compiled_score(folder):
    experiment = reference.experiment(folder)
    return jax.jit(lambda params, x, t: experiment.score(params)(x, t))


@pytest.mark.parametrize("kind", ["flax", "torch"])
@pytest.mark.parametrize("folder", reference.folders())
def test_recorded_networks(folder, kind):
    """Official checkpoints, imported, against what the code that wrote them computed."""
    trained, experiment = reference.trained(folder, kind), reference.experiment(folder)
    score, model = compiled_score(folder), experiment.model
    io = np.load(reference.find(f"{folder}/io_{kind}.npz"))
    x, t = io["x"].reshape(-1, *io["x"].shape[2:]), io["t"].reshape(-1)
    raw, recorded = (io[name].reshape(x.shape) for name in ("raw_ema", "score_ema"))
    labels = model.label(t)
    assert labels.dtype.kind == io["labels"].dtype.kind
    np.testing.assert_allclose(labels, io["labels"].reshape(-1), rtol=3e-7)
    ours = np.concatenate([score(trained.ema, *pair) for pair in zip(io["x"], io["t"])])
    bound = 1e-4 if folder in ILL_CONDITIONED else 1e-5
    # The network itself: with our std, which is right where the official float32 one cancels (see test_sde_lib).
    std = np.asarray(model.marginal(t)[1], np.float64)[:, None, None, None]
    exact = raw if isinstance(model.sde, VESDE) else -raw / std
    assert reference.image_error(ours, exact) < bound
    fine = t > 0.04
    assert reference.image_error(ours[fine], recorded[fine]) < max(bound, 2e-5)
    assert reference.image_error(ours, recorded) < 5e-4
    target = score(trained.params, io["x"][1], io["t"][1])
    assert reference.image_error(target, io["score_target"]) < max(bound, 2e-5)


def test_recorded_classifier():
    folder = reference.find("classifier_wideresnet")
    options = json.loads((folder / "config.json").read_text())["hyper_parameters"]
    network = building.as_built(lambda: WideResnet(**options, rngs=nnx.Rngs(0)))
    tensors = traverse_util.flatten_dict(flax_format.load(folder / "checkpoint_flax"), sep="/")
    layout = parameter_names.flax_layout(network)
    params = stored_parameters.load_params(layout, tensors, "checkpoint_flax")
    graph, io = nnx.split(network, nnx.Param)[0], np.load(folder / "io.npz")
    logits = lambda x: nnx.merge(graph, params)(x, io["sigma"])
    np.testing.assert_allclose(
        jax.jit(logits)(io["x"]), io["logits_no_preprocess"], rtol=1e-5, atol=1e-5
    )
    mean = np.array([0.49139968, 0.48215841, 0.44653091], np.float32)  # Of CIFAR-10's pixels.
    std = np.array([0.24703223, 0.24348513, 0.26158784], np.float32)
    np.testing.assert_allclose(
        jax.jit(logits)((io["x"] - mean) / std), io["logits"], rtol=1e-5, atol=1e-5
    )


# --- resampling -------------------------------------------------------------------------------------------------------


def upfirdn(x, kernel, up, down, pad):
    """Both axes by scipy, which pads with zeros; then crop or pad to upfirdn's convention."""
    for axis in (1, 2):
        length = x.shape[axis] * up
        x = scipy.signal.upfirdn(kernel, x, up=up, axis=axis)
        # scipy starts as with a pad of len(kernel) - 1 before; upfirdn2d pads by `pad` and keeps valid entries.
        start = len(kernel) - 1 - pad[0]
        stop = start + length + sum(pad) - len(kernel) + 1
        width = [(0, 0)] * x.ndim
        width[axis] = (0, max(0, stop - x.shape[axis]))
        x = np.take(np.pad(x, width), np.arange(start, stop, down), axis)
    return x


def test_derivatives_of_swish():
    """JAX's, by both modes; in bfloat16 to its rounding, also where they are small."""
    x = jnp.linspace(-20, 20, 401)
    ours, theirs = layers.swish, jax.nn.swish
    for _ in range(3):
        rates = [jax.jvp(f, (x,), (jnp.ones_like(x),))[1] for f in (ours, theirs)]
        np.testing.assert_allclose(*rates, rtol=1e-5, atol=1e-6)
        ours, theirs = (
            lambda x, f=f: jax.vjp(f, x)[1](jnp.ones_like(x))[0] for f in (ours, theirs)
        )
        np.testing.assert_allclose(ours(x), theirs(x), rtol=1e-5, atol=1e-6)
    half = jax.vjp(layers.swish, x.astype(jnp.bfloat16))[1](jnp.ones_like(x, jnp.bfloat16))[0]
    exact = jax.vjp(jax.nn.swish, x.astype(jnp.bfloat16).astype(jnp.float32))[1](jnp.ones_like(x))[
        0
    ]
    np.testing.assert_allclose(half.astype(jnp.float32), exact, rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("shape", [(), (24,), (3, 24)])
def test_group_normalization(shape):
    """Flax's layer on the sum that ours is spared, values and gradients; shifts of ten standard deviations included."""
    rng = np.random.default_rng(0)
    x, shift = (
        rng.normal(size=(3, 8, 8, 24)).astype(np.float32),
        10 * rng.normal(size=shape).astype(np.float32),
    )
    ours = layers.GroupNorm(24)
    theirs = nnx.GroupNorm(24, num_groups=6, epsilon=1e-6, rngs=nnx.Rngs(0))
    scale, bias, weights = (rng.normal(size=size).astype(np.float32) for size in (24, 24, x.shape))
    for norm in (ours, theirs):
        norm.scale[...], norm.bias[...] = scale, bias
    summed = lambda x, shift: theirs(x + (shift if shift.ndim < 2 else shift[:, None, None]))
    np.testing.assert_allclose(ours(x, shift), summed(x, shift), atol=2e-5)
    grads = [
        jax.grad(lambda *args, f=f: (weights * f(*args)).sum(), (0, 1))(x, shift)
        for f in (ours, summed)
    ]
    for mine, flax in zip(*grads):
        np.testing.assert_allclose(mine, flax, atol=2e-4 * np.abs(flax).max() + 1e-4)


@pytest.mark.parametrize("kernel", [(1, 3, 3, 1), (1, 2, 4, 1), (1, 1), (1, 4, 6, 4, 1)])
def test_fir_resampling_is_upfirdn(kernel):
    x = np.random.default_rng(0).normal(size=(2, 6, 6, 3)).astype(np.float32)
    taps, p = np.array(kernel) / sum(kernel), len(kernel) - 2
    up = upfirdn(x, 2 * taps, 2, 1, ((p + 1) // 2 + 1, p // 2))
    np.testing.assert_allclose(resample.upsample_fir(x, kernel), up, atol=1e-5)
    down = upfirdn(x, taps, 1, 2, ((p + 1) // 2, p // 2))
    np.testing.assert_allclose(resample.downsample_fir(x, kernel), down, atol=1e-5)


@pytest.mark.parametrize("kernel", [(1, 3, 3, 1), (1, 2, 4, 1)])
def test_convolutions_joined_with_fir_resampling(kernel):
    """Down: filter, then strided convolution. Up: transposed convolution, then filter (StyleGAN2)."""
    rng = np.random.default_rng(0)
    x, w = (
        rng.normal(size=(1, 8, 8, 2)).astype(np.float32),
        rng.normal(size=(3, 3, 2, 4)).astype(np.float32),
    )
    taps, p = np.array(kernel) / sum(kernel), len(kernel) - 2

    def correlate(image):
        planes = [
            [scipy.signal.correlate2d(image[..., i], w[..., i, o], "valid") for i in range(2)]
            for o in range(4)
        ]
        return np.stack([sum(plane) for plane in planes], -1)

    filtered = upfirdn(x, taps, 1, 1, ((p + 3) // 2, (p + 2) // 2))
    np.testing.assert_allclose(
        resample.downsample_conv(x, w, kernel)[0],
        correlate(filtered[0])[::2, ::2],
        rtol=1e-4,
        atol=1e-4,
    )
    stuffed = np.zeros((19, 19, 2), np.float32)
    stuffed[2:17:2, 2:17:2] = x[0]
    up = upfirdn(correlate(stuffed)[None], 2 * taps, 1, 1, ((p - 1) // 2 + 1, (p - 2) // 2 + 1))
    ours = resample.upsample_conv(x, w, kernel)
    assert ours.shape == (1, 16, 16, 4)
    np.testing.assert_allclose(ours, up, rtol=1e-4, atol=1e-4)


# --- options that no recording covers ---------------------------------------------------------------------------------

SMALL = {
    "image_size": 8,
    "num_channels": 2,
    "nf": 4,
    "ch_mult": (1, 2),
    "num_res_blocks": 1,
    "attn_resolutions": (4,),
}


@pytest.mark.parametrize("fir", [False, True])
@pytest.mark.parametrize(
    ("progressive", "progressive_input", "combine", "blocks"),
    [
        ("none", "none", "sum", "ddpm"),
        ("none", "input_skip", "cat", "biggan"),
        ("none", "residual", "sum", "ddpm"),
        ("output_skip", "none", "sum", "biggan"),
        ("output_skip", "input_skip", "sum", "ddpm"),
        ("residual", "residual", "sum", "biggan"),
        ("residual", "input_skip", "cat", "ddpm"),
    ],
)
def test_options_use_all_their_parameters(progressive, progressive_input, combine, blocks, fir):
    """Shapes fit, and every parameter but those of attention keys, to which softmax is blind, moves the output."""
    options = {
        "progressive": progressive,
        "progressive_input": progressive_input,
        "progressive_combine": combine,
    }
    make = functools.partial(
        NCSNpp, **SMALL, **options, resblock_type=blocks, init_scale=1.0, fir=fir
    )
    graph, params = nnx.split(make(rngs=nnx.Rngs(0)), nnx.Param)
    x, label = jax.random.normal(jax.random.key(0), (2, 8, 8, 2)), jnp.array([3.0, 500.0])
    out = lambda params: nnx.merge(graph, params)(x, label)
    assert jax.eval_shape(out, params).shape == x.shape
    grads = jax.jit(jax.grad(lambda params: jnp.sum(jnp.sin(out(params)))))(params)
    unused = [
        path
        for path, g in nnx.to_flat_state(grads)
        if not np.abs(g[...]).max() > 0 and "key" not in path
    ]
    assert not unused


def test_dropout_and_conditioning():
    network = NCSNpp(**SMALL, dropout=0.5, init_scale=1.0, rngs=nnx.Rngs(0))
    x, label = jax.random.normal(jax.random.key(0), (2, 8, 8, 2)), jnp.array([3.0, 500.0])
    assert np.array_equal(network(x, label), network(x, label))
    noisy = [network(x, label, nnx.Rngs(dropout=seed)) for seed in (0, 0, 1)]
    assert np.array_equal(noisy[0], noisy[1])
    assert not np.allclose(noisy[0], noisy[2])
    assert not np.allclose(network(x, label), network(x, label[::-1]))
    blind = NCSNpp(**SMALL, conditional=False, init_scale=1.0, rngs=nnx.Rngs(0))
    assert np.array_equal(blind(x, label), blind(x, label[::-1]))


def test_a_fresh_network_outputs_nearly_nothing():
    """init_scale = 0: the last layer of every branch starts near 0 (Appendix H, after Ho et al. 2020)."""
    network = NCSNpp(**SMALL, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 2))
    assert np.abs(network(x, jnp.array([3.0, 500.0]))).max() < 1e-3


@pytest.mark.parametrize("name", NETWORKS)
def test_image_sizes_that_cannot_be_halved_are_refused(name):
    options = {"image_size": 9, "num_channels": 3, "nf": 32, "ch_mult": (1, 2), "num_res_blocks": 1}
    extra = {"attn_resolutions": (), "num_scales": 10}
    known = NETWORKS[name].__init__.__annotations__
    with pytest.raises(
        InputError, match=r"data.image_size = 9 cannot be halved .* use a multiple of"
    ):
        NETWORKS[name](
            **{k: v for k, v in (options | extra).items() if k in known}, rngs=nnx.Rngs(0)
        )


def test_unknown_options_are_refused_with_the_known_ones():
    with pytest.raises(
        InputError, match="model.resblock_type = 'vgg' is unknown; known: biggan, ddpm"
    ):
        NCSNpp(**SMALL, resblock_type="vgg", rngs=nnx.Rngs(0))
    with pytest.raises(
        InputError, match="model.nonlinearity = 'gelu' is unknown; known: elu, lrelu, relu, swish"
    ):
        NCSNpp(**SMALL, nonlinearity="gelu", rngs=nnx.Rngs(0))
