"""Basic layers that several networks share. Images are NHWC.

Class names are those of the official code, because its checkpoints address parameters by them.
Parameters are float32. Every layer computes in the dtype of its input, bfloat16 or float32, except
that normalizations, softmax and embeddings compute in float32.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, lax

from errors import InputError
from models import convolution, resample
from models.initial import default_init
from readers.image_sizes import ImageSize, sides

Activation = Callable[[Array], Array]
Arrays = TypeVar("Arrays", bound=tuple)


class Rngs(nnx.Rngs if TYPE_CHECKING else object):
    """The keys fold_in(key, 0), fold_in(key, 1), ..., like those of `nnx.Rngs`.

    They are counted in Python. The counter of `nnx.Rngs` is traced, so that the time to trace a
    network is quadratic in its number of layers. Flax's layers call `params` and `dropout` only,
    but their annotations require `nnx.Rngs`: it is the base class for type checkers only.
    """

    def __init__(self, key: Array) -> None:
        self._key = key
        self._count = itertools.count()

    def params(self) -> Array:
        """Return the next key."""
        return jax.random.fold_in(self._key, next(self._count))

    dropout = params


@jax.custom_jvp
def swish(x: Array) -> Array:
    """Return x sigmoid(x) (Ramachandran et al. 2017) for x of any shape.

    The backward pass stores x only.
    """
    return jax.nn.swish(x)


@swish.defjvp
def _swish_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,) = primals
    (tangent,) = tangents
    # If this were sigmoid(x), which the forward pass computes, XLA would store it for the gradient.
    complement = jax.nn.sigmoid(-x.astype(jnp.float32))
    slope = (1 - complement) * (1 + x * complement)
    return swish(x), (slope * tangent).astype(x.dtype)


ACTIVATIONS: dict[str, Activation] = {
    "elu": jax.nn.elu,
    "relu": jax.nn.relu,
    "lrelu": partial(jax.nn.leaky_relu, negative_slope=0.2),
    "swish": swish,
}
"""By `model.nonlinearity`."""


def check_halvings(image_size: ImageSize, halvings: int) -> None:
    """Raise InputError unless both sides can be halved as often as a network requires."""
    multiple = 2**halvings
    if any(side % multiple for side in sides(image_size)):
        raise InputError(
            f"data.image_size = {image_size} cannot be halved {halvings} times, which the levels "
            f"of this network require; use a multiple of {multiple}, or fewer levels."
        )


def attending_levels(
    image_size: ImageSize, attn_resolutions: Sequence[int], levels: int
) -> list[bool]:
    """Return for each level of a U-Net whether it has self-attention.

    It has if its side length, for rectangles that of the larger side, is in `attn_resolutions`.
    """
    return [side in tuple(attn_resolutions) for side in larger_sides(image_size, levels)]


def larger_sides(image_size: ImageSize, levels: int) -> list[int]:
    """Return the larger side of the images of each level of a U-Net, in pixels."""
    return [max(sides(image_size)) >> level for level in range(levels)]


def cast_to_input(arrays: Arrays, /, *, dtype: Any = None, inexact: bool = True) -> Arrays:
    """Cast (input, parameters ...) to the input's dtype; for `promote_dtype` of Flax's layers.

    Parameters that are None remain so. `dtype` and `inexact` are ignored.
    """
    del dtype, inexact
    return jax.tree.map(lambda array: array.astype(arrays[0].dtype), arrays)


def conv3x3(
    in_features: int,
    features: int,
    *,
    stride: int = 1,
    init_scale: float = 1.0,
    rngs: Rngs,
) -> nnx.Conv:
    """Return a 3x3 convolution with SAME padding."""
    return nnx.Conv(
        in_features,
        features,
        (3, 3),
        stride,
        kernel_init=default_init(init_scale),
        promote_dtype=cast_to_input,
        conv_general_dilated=convolution.for_flax if stride == 1 else lax.conv_general_dilated,
        rngs=rngs,
    )


def bias_of(conv: nnx.Conv) -> Array:
    """Return the bias of a convolution: (features,), or () and 0 if it has none."""
    return jnp.zeros(()) if conv.bias is None else conv.bias[...]


def upsample_conv(conv: nnx.Conv, x: Array) -> Array:
    """Repeat every pixel, then apply a 3x3 convolution: (B, H, W, in) -> (B, 2H, 2W, features)."""
    return resample.upsample_nearest_conv(x, conv.kernel[...]) + bias_of(conv).astype(x.dtype)


def matmul(x: Array, kernel: Array) -> Array:
    """Return x @ kernel: (..., in), (in, out) -> (..., out), in the dtype of x.

    Pixels are flattened to one axis, because XLA's CPU backend computes 1x1 convolutions, and
    especially their gradients, slowly.
    """
    pixels = x.reshape(-1, x.shape[-1])
    return (pixels @ kernel.astype(x.dtype)).reshape(*x.shape[:-1], -1)


class Conv1x1(nnx.Conv):
    """1x1 convolution: (B, H, W, in) -> (B, H, W, features).

    `resampled`, a linear map over pixels such as upsampling, takes effect before the bias is added.
    """

    bias: nnx.Param[Array]

    def __init__(self, in_features: int, features: int, *, rngs: Rngs) -> None:
        super().__init__(in_features, features, (1, 1), kernel_init=default_init(), rngs=rngs)

    def __call__(self, x: Array, resampled: Callable[[Array], Array] | None = None) -> Array:
        h = matmul(x, self.kernel[0, 0])
        return (resampled(h) if resampled else h) + self.bias.astype(x.dtype)


class NIN(nnx.Linear):
    """Network in network: a linear map over channels, equivalent to a 1x1 convolution."""

    bias: nnx.Param[Array]

    def __init__(
        self, in_features: int, features: int, *, init_scale: float = 0.1, rngs: Rngs
    ) -> None:
        super().__init__(in_features, features, kernel_init=default_init(init_scale), rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return matmul(x, self.kernel[...]) + self.bias.astype(x.dtype)


class Conv2d(nnx.Module):
    """3x3 convolution merged with FIR up- or down-sampling by 2 (StyleGAN2)."""

    def __init__(
        self, in_features: int, features: int, fir_kernel: Sequence[float], up: bool, *, rngs: Rngs
    ) -> None:
        self.resample = resample.upsample_conv if up else resample.downsample_conv
        self.fir_kernel = tuple(fir_kernel)
        self.weight = nnx.Param(default_init()(rngs.params(), (3, 3, in_features, features)))
        self.bias = nnx.Param(jnp.zeros(features))

    def __call__(self, x: Array) -> Array:
        x, weight, bias = cast_to_input((x, self.weight[...], self.bias[...]))
        return self.resample(x, weight, self.fir_kernel) + bias


def dense(in_features: int, features: int, *, rngs: Rngs) -> nnx.Linear:
    """Return a linear layer."""
    return nnx.Linear(
        in_features, features, kernel_init=default_init(), promote_dtype=cast_to_input, rngs=rngs
    )


def groups(features: int) -> int:
    """Return NCSN++'s number of normalization groups: at most 32, with at least 4 channels each."""
    return max(1, min(features // 4, 32))


class GroupNorm(nnx.Module):
    """Group normalization (Wu & He 2018) of images (B, H, W, C), by default with NCSN++'s groups.

    Statistics are computed per channel, then averaged over groups. Forward and backward pass thus
    consist of sums over pixels and one affine map per image and channel, which vectorize over
    channels for any number of groups.

    Raises InputError if the number of features is not a multiple of the number of groups.
    """

    def __init__(
        self, features: int, *, num_groups: int | None = None, epsilon: float = 1e-6
    ) -> None:
        self.num_groups = num_groups or groups(features)
        self.epsilon = epsilon
        if features % self.num_groups:
            raise InputError(
                f"model.nf leads to a layer of {features} features, which cannot be divided into "
                f"{self.num_groups} normalization groups; use a multiple of {self.num_groups}."
            )
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))

    def __call__(self, x: Array, shift: Array | float = 0.0) -> Array:
        """Normalize x + shift, where `shift` is a scalar, (C,) or (B, C).

        The sum is not stored.
        """
        h = x.astype(jnp.float32)
        mean = h.mean((1, 2))
        square = jnp.square(h).mean((1, 2))
        group_mean = self._average_groups(mean + shift)
        group_square = self._average_groups(square + shift * (2 * mean + shift))
        variance = jnp.maximum(group_square - jnp.square(group_mean), 0.0)
        scale = jax.lax.rsqrt(variance + self.epsilon) * self.scale[...]
        shift = self.bias[...] + (shift - group_mean) * scale
        return (h * scale[:, None, None] + shift[:, None, None]).astype(x.dtype)

    def _average_groups(self, values: Array) -> Array:
        """Replace each channel's value by the mean over its group: (B, C) -> (B, C)."""
        grouped = values.reshape(len(values), self.num_groups, -1)
        means = jnp.broadcast_to(grouped.mean(-1, keepdims=True), grouped.shape)
        return means.reshape(values.shape)


def residual(x: Array, h: Array, skip_rescale: bool) -> Array:
    """Return x + h, with `skip_rescale` divided by sqrt(2) to keep the variance (Appendix H)."""
    return (x + h) / math.sqrt(2.0) if skip_rescale else x + h


def dropout(key: Array, x: Array, rate: float) -> Array:
    """Set a fraction `rate` of the entries of x to 0 and divide the others by 1 - rate.

    Srivastava et al. (2014); x has any shape, and 0 <= rate < 1.

    The random bits are a hash of the key and the entry's index. Unlike Threefry, the hash has no
    loop: XLA fuses it with the neighboring operations, and the backward pass recomputes it, so
    that no mask is stored.
    """
    kept = _random_bits(key, x.shape) >= np.uint32(round(rate * 2**32))
    return jnp.where(kept, x / (1 - rate), 0)


def _random_bits(key: Array, shape: Sequence[int]) -> Array:
    """Return 32 bits per entry, which do not depend on how arrays are sharded."""
    words = jax.random.key_data(key)
    index = jnp.uint32(0)
    for axis, size in enumerate(shape):
        index = index * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    return _hash(_hash(index + words[0]) ^ words[1])


def _hash(h: Array) -> Array:
    """Apply the bijection `lowbias32` (C. Wellons, hash-prospector) to 32-bit integers.

    Each bit of h changes half the bits of the result on average.
    """
    h = (h ^ (h >> 16)) * np.uint32(0x7FEB352D)
    h = (h ^ (h >> 15)) * np.uint32(0x846CA68B)
    return h ^ (h >> 16)
