"""Layers that several networks share. Images are NHWC; `temb` is the noise-level embedding, (B, features) or None.

Class names are those of the official code, since its checkpoints are addressed by them. `rngs` gives keys for initial
parameters or, in a training pass, for dropout; it is None in evaluation. Parameters are float32; every layer computes
in the type of its input, bfloat16 or float32, but normalizations, softmax and embeddings in float32.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from errors import InputError, choose
from models import resample

Activation = Callable[[Array], Array]


@jax.custom_jvp
def swish(x: Array) -> Array:
    """x sigmoid(x) (Ramachandran et al. 2017), of any shape; its gradient needs x alone."""
    return jax.nn.swish(x)


@swish.defjvp
def _derivative(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (tangent,) = primals, tangents
    off = jax.nn.sigmoid(
        -x.astype(jnp.float32)
    )  # XLA would keep sigmoid(x), which the forward pass has computed.
    return swish(x), ((1 - off) * (1 + x * off) * tangent).astype(x.dtype)


ACTIVATIONS: dict[str, Activation] = {
    "elu": jax.nn.elu,
    "relu": jax.nn.relu,
    "lrelu": lambda x: jax.nn.leaky_relu(x, 0.2),
    "swish": swish,
}


class Rngs:
    """The keys fold_in(key, 0), fold_in(key, 1), ..., as nnx.Rngs gives them, counted in Python.

    The counter of nnx.Rngs is traced, which makes tracing a network take time quadratic in its number of layers.
    """

    def __init__(self, key: Array) -> None:
        self._key, self._count = key, itertools.count()

    def params(self) -> Array:
        """The next key."""
        return jax.random.fold_in(self._key, next(self._count))

    dropout = params


def activation(name: str) -> Activation:
    """The activation function that `model.nonlinearity` names."""
    return choose(ACTIVATIONS, name.lower(), "model.nonlinearity")


def check_halvings(image_size: int, halvings: int) -> None:
    """Raises InputError if images cannot be halved as often as a network needs."""
    if image_size % 2**halvings:
        raise InputError(
            f"data.image_size = {image_size} cannot be halved {halvings} times, as the levels of this network need; "
            f"use a multiple of {2**halvings}, or fewer levels."
        )


def default_init(scale: float = 1.0) -> nnx.Initializer:
    """DDPM's initializer (Ho et al. 2020); scale 0 stands for a tiny one."""
    return jax.nn.initializers.variance_scaling(scale or 1e-10, "fan_avg", "uniform")


def as_input(arrays: Sequence[Array | None], dtype: None = None) -> tuple[Array | None, ...]:
    """Of (input, parameters ...), the parameters in the type of the input; a `promote_dtype` of Flax's layers."""
    return tuple(None if array is None else array.astype(arrays[0].dtype) for array in arrays)


def conv3x3(
    in_features: int,
    features: int,
    *,
    stride: int = 1,
    bias: bool = True,
    init_scale: float = 1.0,
    rngs: Rngs,
) -> nnx.Conv:
    """3x3 convolution with SAME padding."""
    options = {"use_bias": bias, "kernel_init": default_init(init_scale), "promote_dtype": as_input}
    return nnx.Conv(in_features, features, (3, 3), stride, **options, rngs=rngs)


def convolve(x: Array, kernel: Array) -> Array:
    """Convolution of stride 1 with SAME padding: (B, H, W, in), (H, W, in, out) -> (B, H, W, out), in the type of x."""
    return jax.lax.conv_general_dilated(
        x, kernel.astype(x.dtype), (1, 1), "SAME", dimension_numbers=resample.LAYOUT
    )


def matmul(x: Array, kernel: Array, bias: Array) -> Array:
    """x @ kernel + bias: (..., in), (in, out), (out,) -> (..., out), in the type of x.

    All pixels are in one axis: XLA's CPU backend is slow at 1x1 convolutions, above all at their gradients.
    """
    x, kernel, bias = as_input((x, kernel, bias))
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], -1) + bias


class Conv1x1(nnx.Conv):
    """1x1 convolution."""

    def __init__(self, in_features: int, features: int, *, rngs: Rngs) -> None:
        super().__init__(in_features, features, (1, 1), kernel_init=default_init(), rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return matmul(x, self.kernel[0, 0], self.bias[...])


def dense(in_features: int, features: int, *, rngs: Rngs) -> nnx.Linear:
    """Linear layer."""
    return nnx.Linear(
        in_features, features, kernel_init=default_init(), promote_dtype=as_input, rngs=rngs
    )


def groups(features: int) -> int:
    """The number of normalization groups in NCSN++: four or more channels each, 32 groups at most."""
    return max(1, min(features // 4, 32))


def class_embedding(classes: int, features: int | None, *, rngs: Rngs) -> nnx.Embed | None:
    """A row for each class and, last, one for "no class", to be added to the noise-level embedding; None for 0 classes.

    Raises InputError if there is no such embedding, `features` being None.
    """
    if classes and features is None:
        raise InputError(f"data.num_classes = {classes} needs model.conditional = True.")
    return nnx.Embed(classes + 1, features, rngs=rngs) if classes else None


class GroupNorm(nnx.Module):
    """Group normalization (Wu & He 2018) of images (B, H, W, C), by default with the groups of NCSN++.

    Statistics are taken of channels first, then of groups: so forward and gradient are sums over pixels and one affine
    map for each image and channel, which vectorize over channels whatever the number of groups.

    Raises InputError if the groups cannot share the channels evenly.
    """

    def __init__(
        self, features: int, *, num_groups: int | None = None, epsilon: float = 1e-6
    ) -> None:
        self.num_groups, self.epsilon = num_groups or groups(features), epsilon
        if features % self.num_groups:
            raise InputError(
                f"model.nf: {self.num_groups} normalization groups cannot share the {features} features of a layer; "
                f"use a multiple of {self.num_groups} features."
            )
        self.scale, self.bias = nnx.Param(jnp.ones(features)), nnx.Param(jnp.zeros(features))

    def __call__(self, x: Array, shift: Array | float = 0.0) -> Array:
        """Normalizes x + shift, a sum that need not be stored, with `shift` (C,), (B, C) or the same for all."""
        h = x.astype(jnp.float32)
        mean, square = h.mean((1, 2)), jnp.square(h).mean((1, 2))
        mean, square = (
            self._over_groups(mean + shift),
            self._over_groups(square + shift * (2 * mean + shift)),
        )
        scale = (
            jax.lax.rsqrt(jnp.maximum(square - jnp.square(mean), 0.0) + self.epsilon)
            * self.scale[...]
        )
        shift = self.bias[...] + (shift - mean) * scale
        return (h * scale[:, None, None] + shift[:, None, None]).astype(x.dtype)

    def _over_groups(self, of_channels: Array) -> Array:
        """Means over the channels of each group, for each channel: (B, C) -> (B, C)."""
        grouped = of_channels.reshape(len(of_channels), self.num_groups, -1)
        return jnp.broadcast_to(grouped.mean(-1, keepdims=True), grouped.shape).reshape(
            of_channels.shape
        )


class NIN(nnx.Linear):
    """Network in network: a linear map over channels (a 1x1 convolution)."""

    def __init__(
        self, in_features: int, features: int, *, init_scale: float = 0.1, rngs: Rngs
    ) -> None:
        super().__init__(in_features, features, kernel_init=default_init(init_scale), rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return matmul(x, self.kernel[...], self.bias[...])


def residual(x: Array, h: Array, skip_rescale: bool) -> Array:
    """x + h, divided by sqrt(2) if `skip_rescale`, which keeps the variance (Appendix H)."""
    return (x + h) / math.sqrt(2.0) if skip_rescale else x + h


def dropout(key: Array, x: Array, rate: float) -> Array:
    """Sets a share `rate` of the entries of x, of any shape, to 0 and divides the others by 1 - rate.

    Srivastava et al. (2014); 0 <= rate < 1, as `factory.make_network` sees to.

    The bits are a hash of the key and of the number of the entry. Unlike Threefry's they need no loop: they fuse with
    what comes before and after, and the gradient computes them anew, so that no mask is kept.
    """
    kept = _bits(key, x.shape) >= np.uint32(round(rate * 2**32))
    return jnp.where(kept, x / (1 - rate), 0)


def _bits(key: Array, shape: Sequence[int]) -> Array:
    """32 bits for each entry; functions of the key and of the entry's number, not of how arrays are split."""
    words = jax.random.key_data(key)
    number = jnp.uint32(0)
    for axis, size in enumerate(shape):
        number = number * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    return _mix(_mix(number + words[0]) ^ words[1])


def _mix(h: Array) -> Array:
    """The bijection `lowbias32` (C. Wellons, hash-prospector): each bit of h changes half the bits of the result."""
    h = (h ^ (h >> 16)) * np.uint32(0x7FEB352D)
    h = (h ^ (h >> 15)) * np.uint32(0x846CA68B)
    return h ^ (h >> 16)


def timestep_embedding(label: Array, features: int, max_positions: float = 10000.0) -> Array:
    """Sinusoidal embedding (Vaswani et al. 2017): (B,) -> (B, features), sines first."""
    half = features // 2
    frequencies = jnp.exp(
        jnp.arange(half, dtype=jnp.float32) * -(math.log(max_positions) / max(half - 1, 1))
    )
    angles = label.astype(jnp.float32)[:, None] * frequencies[None, :]
    return jnp.pad(
        jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1), ((0, 0), (0, features % 2))
    )


class GaussianFourierProjection(nnx.Module):
    """Random Fourier features of log sigma (Tancik et al. 2020): (B,) -> (B, 2 features). W is never trained."""

    def __init__(self, features: int, scale: float, *, rngs: Rngs) -> None:
        self.W = nnx.Param(scale * jax.random.normal(rngs.params(), (features,)))

    def __call__(self, sigma: Array) -> Array:
        # Angles reach thousands of radians: another order of these products changes the features by 1e-4.
        angles = jnp.log(sigma)[:, None] * jax.lax.stop_gradient(self.W[...])[None, :] * 2 * jnp.pi
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)


class AttnBlockpp(nnx.Module):
    """Self-attention over pixels, one head, with a residual connection: (B, H, W, C) -> (B, H, W, C)."""

    def __init__(
        self,
        features: int,
        *,
        skip_rescale: bool,
        init_scale: float = 0.0,
        num_groups: int | None = None,
        rngs: Rngs,
    ) -> None:
        self.skip_rescale = skip_rescale
        self.norm = GroupNorm(features, num_groups=num_groups)
        self.query = NIN(features, features, rngs=rngs)
        self.key = NIN(features, features, rngs=rngs)
        self.value = NIN(features, features, rngs=rngs)
        self.out = NIN(features, features, init_scale=init_scale, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        batch, height, width, channels = x.shape
        h = self.norm(x).reshape(batch, height * width, 1, channels)
        h = jax.nn.dot_product_attention(self.query(h), self.key(h), self.value(h))
        return residual(x, self.out(h.reshape(x.shape)), self.skip_rescale)


class Conv2d(nnx.Module):
    """3x3 convolution joined with FIR up- or down-sampling by 2 (StyleGAN2)."""

    def __init__(
        self, in_features: int, features: int, fir_kernel: Sequence[float], up: bool, *, rngs: Rngs
    ) -> None:
        self.resample = resample.upsample_conv if up else resample.downsample_conv
        self.fir_kernel = tuple(fir_kernel)
        self.weight = nnx.Param(default_init()(rngs.params(), (3, 3, in_features, features)))
        self.bias = nnx.Param(jnp.zeros(features))

    def __call__(self, x: Array) -> Array:
        x, weight, bias = as_input((x, self.weight[...], self.bias[...]))
        return self.resample(x, weight, self.fir_kernel) + bias


class Resampler(nnx.Module):
    """What `Upsample` and `Downsample` share: an optional convolution, and an optional FIR filter, joined if both are.

    They take the arguments of a residual block, to be exchangeable with one, and look at x alone.
    """

    up: bool

    def __init__(
        self,
        in_features: int,
        features: int | None = None,
        *,
        with_conv: bool = False,
        fir: bool = False,
        fir_kernel: Sequence[float] = (1, 3, 3, 1),
        rngs: Rngs,
    ) -> None:
        self.fir, self.fir_kernel = fir, tuple(fir_kernel)
        plain = partial(conv3x3, stride=1 if self.up else 2)
        conv = partial(Conv2d, fir_kernel=fir_kernel, up=self.up) if fir else plain
        self.conv = conv(in_features, features or in_features, rngs=rngs) if with_conv else None


class Upsample(Resampler):
    """Doubles height and width: (B, H, W, in) -> (B, 2H, 2W, features)."""

    up = True

    def __call__(self, x: Array, temb: Array | None = None, rngs: Rngs | None = None) -> Array:
        if self.fir:
            return self.conv(x) if self.conv else resample.upsample_fir(x, self.fir_kernel)
        x = resample.upsample_nearest(x)
        return self.conv(x) if self.conv else x


class Downsample(Resampler):
    """Halves height and width: (B, H, W, in) -> (B, H/2, W/2, features)."""

    up = False

    def __call__(self, x: Array, temb: Array | None = None, rngs: Rngs | None = None) -> Array:
        if self.conv:
            return self.conv(x)
        return (
            resample.downsample_fir(x, self.fir_kernel) if self.fir else resample.downsample_mean(x)
        )


class Combine(nnx.Module):
    """Merges a progressive input x into features y: (B, H, W, in), (B, H, W, C) -> (B, H, W, C or 2C)."""

    def __init__(self, in_features: int, features: int, method: str, *, rngs: Rngs) -> None:
        self.method = method
        self.conv = Conv1x1(in_features, features, rngs=rngs)

    def __call__(self, x: Array, y: Array) -> Array:
        h = self.conv(x)
        return jnp.concatenate([h, y], -1) if self.method == "cat" else h + y


class ResnetBlockDDPMpp(nnx.Module):
    """DDPM's residual block, conditioned by a bias that depends on `temb`: (B, H, W, in) -> (B, H, W, features).

    With `remat` only its input is kept for the gradient, which then computes the rest anew.
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        temb_features: int | None,
        *,
        act: Activation,
        dropout: float,
        skip_rescale: bool = False,
        init_scale: float = 0.0,
        num_groups: int | None = None,
        remat: bool = False,
        rngs: Rngs,
    ) -> None:
        self.act, self.skip_rescale, self.dropout, self.remat = act, skip_rescale, dropout, remat
        self.norm1 = GroupNorm(in_features, num_groups=num_groups)
        self.conv1 = conv3x3(in_features, features, rngs=rngs)
        self.temb = dense(temb_features, features, rngs=rngs) if temb_features else None
        self.norm2 = GroupNorm(features, num_groups=num_groups)
        self.conv2 = conv3x3(features, features, init_scale=init_scale, rngs=rngs)
        self.shortcut = self.make_shortcut(in_features, features, rngs)

    def make_shortcut(self, in_features: int, features: int, rngs: Rngs) -> nnx.Module | None:
        """The layer that brings x to the shape of the residual, if one is needed."""
        return NIN(in_features, features, rngs=rngs) if in_features != features else None

    def resample(self, x: Array) -> Array:
        """Changes the resolution on both branches; here not at all."""
        return x

    def __call__(self, x: Array, temb: Array | None, rngs: Rngs | None = None) -> Array:
        compute = jax.checkpoint(self._compute) if self.remat else self._compute
        return compute(x, temb, rngs and rngs.dropout())

    def _compute(self, x: Array, temb: Array | None, key: Array | None) -> Array:
        h = convolve(self.resample(self.act(self.norm1(x))), self.conv1.kernel[...])
        shift = self.conv1.bias[...]  # The normalization adds it: so the sum is not stored.
        shift = shift if temb is None else shift + self.temb(self.act(temb))
        h = self.act(self.norm2(h, shift))
        h = h if key is None or not self.dropout else dropout(key, h, self.dropout)
        h = self.conv2(h)
        x = self.resample(x)
        return residual(self.shortcut(x) if self.shortcut else x, h, self.skip_rescale)


class ResnetBlockBigGANpp(ResnetBlockDDPMpp):
    """BigGAN's residual block (Brock et al. 2019), which can also double (`up`) or halve (`down`) the resolution."""

    def __init__(
        self,
        in_features: int,
        features: int,
        temb_features: int | None,
        *,
        up: bool = False,
        down: bool = False,
        fir: bool = False,
        fir_kernel: Sequence[float] = (1, 3, 3, 1),
        **kwargs,
    ) -> None:
        self.up, self.down, self.fir, self.fir_kernel = up, down, fir, tuple(fir_kernel)
        super().__init__(in_features, features, temb_features, **kwargs)

    def make_shortcut(self, in_features: int, features: int, rngs: Rngs) -> nnx.Module | None:
        changes = in_features != features or self.up or self.down
        return Conv1x1(in_features, features, rngs=rngs) if changes else None

    def resample(self, x: Array) -> Array:
        if self.up:
            return (
                resample.upsample_fir(x, self.fir_kernel)
                if self.fir
                else resample.upsample_nearest(x)
            )
        if self.down:
            return (
                resample.downsample_fir(x, self.fir_kernel)
                if self.fir
                else resample.downsample_mean(x)
            )
        return x
