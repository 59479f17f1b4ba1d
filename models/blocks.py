"""Blocks of the U-Nets: resampling, residual and attention blocks. Images are NHWC.

Class names are those of the official code, because its checkpoints address parameters by them. All
blocks take (x, temb, rngs), where `temb` is the embedding of noise level and class, (B, features)
or None, and `rngs` provides keys for dropout or is None. Attention and resampling ignore both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from models import resample
from models.convolution import convolve
from models.layers import (
    NIN,
    Activation,
    Conv1x1,
    Conv2d,
    GroupNorm,
    Rngs,
    bias_of,
    conv3x3,
    dense,
    dropout,
    residual,
    swish,
    upsample_conv,
)


@dataclasses.dataclass(frozen=True)
class BlockOptions:
    """Options that all blocks of a network share.

    Attributes:
      temb_features: number of features of the embedding; None if there is none.
      act: activation function.
      dropout: dropout rate.
      skip_rescale: whether to divide residual sums by sqrt(2).
      init_scale: initial scale of the last layer of each residual branch.
      num_groups, epsilon: see `GroupNorm`.
      fir, fir_kernel: whether to resample through this FIR filter, else pixel by pixel.
      remat: whether the backward pass recomputes activations from a residual block's input.
    """

    temb_features: int | None = None
    act: Activation = swish
    dropout: float = 0.0
    skip_rescale: bool = False
    init_scale: float = 0.0
    num_groups: int | None = None
    epsilon: float = 1e-6
    fir: bool = False
    fir_kernel: Sequence[float] = (1, 3, 3, 1)
    remat: bool = False

    def norm(self, features: int) -> GroupNorm:
        """Return the normalization of features."""
        return GroupNorm(features, num_groups=self.num_groups, epsilon=self.epsilon)

    def resample(self, x: Array, *, up: bool) -> Array:
        """Double or halve height and width of x (B, H, W, C)."""
        if self.fir:
            resize = resample.upsample_fir if up else resample.downsample_fir
            return resize(x, self.fir_kernel)
        return resample.upsample_nearest(x) if up else resample.downsample_mean(x)


class AttnBlockpp(nnx.Module):
    """Self-attention over pixels, with a residual connection: (B, H, W, C) -> the same shape.

    A head has C / heads channels.
    """

    def __init__(self, features: int, options: BlockOptions, *, heads: int = 1, rngs: Rngs) -> None:
        self.skip_rescale, self.heads = options.skip_rescale, heads
        self.norm = options.norm(features)
        self.query = NIN(features, features, rngs=rngs)
        self.key = NIN(features, features, rngs=rngs)
        self.value = NIN(features, features, rngs=rngs)
        self.out = NIN(features, features, init_scale=options.init_scale, rngs=rngs)

    def __call__(self, x: Array, temb: Array | None = None, rngs: Rngs | None = None) -> Array:
        batch, height, width, channels = x.shape
        h = self.norm(x).reshape(batch, height * width, channels)
        by_head = (batch, height * width, self.heads, channels // self.heads)
        h = jax.nn.dot_product_attention(
            *(layer(h).reshape(by_head) for layer in (self.query, self.key, self.value))
        )
        return residual(x, self.out(h.reshape(x.shape)), self.skip_rescale)


class Resampler(nnx.Module):
    """Base class of `Upsample` and `Downsample`, which convolve or apply a FIR filter if requested.

    One layer, `Conv2d`, performs both.
    """

    up: bool

    def __init__(
        self,
        in_features: int,
        features: int,
        options: BlockOptions,
        *,
        with_conv: bool,
        rngs: Rngs,
    ) -> None:
        self.options = options
        if not with_conv:
            self.conv = None
        elif options.fir:
            self.conv = Conv2d(in_features, features, options.fir_kernel, self.up, rngs=rngs)
        else:
            self.conv = conv3x3(in_features, features, stride=1 if self.up else 2, rngs=rngs)

    def __call__(self, x: Array, temb: Array | None = None, rngs: Rngs | None = None) -> Array:
        if self.conv is None:
            return self.options.resample(x, up=self.up)
        if self.up and isinstance(self.conv, nnx.Conv):
            return upsample_conv(self.conv, x)
        return self.conv(x)


class Upsample(Resampler):
    """Double height and width: (B, H, W, in) -> (B, 2H, 2W, features)."""

    up = True


class Downsample(Resampler):
    """Halve height and width: (B, H, W, in) -> (B, H/2, W/2, features)."""

    up = False


class Combine(nnx.Module):
    """Merge a progressive input x into features y: (B, H, W, in), (B, H, W, C) -> (B, H, W, D).

    D is C for method "sum" and 2C for method "cat".
    """

    def __init__(self, in_features: int, features: int, method: str, *, rngs: Rngs) -> None:
        self.method = method
        self.conv = Conv1x1(in_features, features, rngs=rngs)

    def __call__(self, x: Array, y: Array) -> Array:
        h = self.conv(x)
        return jnp.concatenate([h, y], -1) if self.method == "cat" else h + y


class ResnetBlockDDPMpp(nnx.Module):
    """DDPM's residual block, to which `temb` adds a bias: (B, H, W, in) -> (B, H, W, features)."""

    TEMB_OUTPUTS = 1  # What the embedding contributes to each feature.

    def __init__(
        self, in_features: int, features: int, options: BlockOptions, *, rngs: Rngs
    ) -> None:
        self.options = options
        self.norm1 = options.norm(in_features)
        self.conv1 = conv3x3(in_features, features, rngs=rngs)
        temb, outputs = options.temb_features, self.TEMB_OUTPUTS * features
        self.temb = dense(temb, outputs, rngs=rngs) if temb else None
        self.norm2 = options.norm(features)
        self.conv2 = conv3x3(features, features, init_scale=options.init_scale, rngs=rngs)
        self.shortcut = self.make_shortcut(in_features, features, rngs)

    def make_shortcut(self, in_features: int, features: int, rngs: Rngs) -> nnx.Module | None:
        """Return the layer that maps x to the shape of the residual, or None if none is needed."""
        return NIN(in_features, features, rngs=rngs) if in_features != features else None

    def resample(self, x: Array) -> Array:
        """Change the resolution; this block keeps it."""
        return x

    def resample_conv(self, x: Array, kernel: Array) -> Array:
        """Change the resolution, then convolve."""
        return convolve(self.resample(x), kernel)

    def resample_shortcut(self, x: Array) -> Array:
        """Change the resolution and the number of features of the block's input."""
        x = self.resample(x)
        return x if self.shortcut is None else self.shortcut(x)

    def __call__(self, x: Array, temb: Array | None, rngs: Rngs | None = None) -> Array:
        compute = jax.checkpoint(self._compute) if self.options.remat else self._compute
        key = None if rngs is None else rngs.dropout()
        return compute(x, temb, key)

    def _compute(self, x: Array, temb: Array | None, key: Array | None) -> Array:
        act, rate = self.options.act, self.options.dropout
        h = self.resample_conv(act(self.norm1(x)), self.conv1.kernel[...])
        # The normalization adds the bias of the convolution, so that the sum is not stored.
        shift = bias_of(self.conv1)
        if temb is not None and self.temb is not None:
            shift = shift + self.temb(act(temb))
        h = act(self.norm2(h, shift))
        if key is not None and rate:
            h = dropout(key, h, rate)
        return residual(self.resample_shortcut(x), self.conv2(h), self.options.skip_rescale)


class ResnetBlockBigGANpp(ResnetBlockDDPMpp):
    """BigGAN's residual block (Brock et al. 2019), which can also change the resolution.

    `up` doubles it, `down` halves it.
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        options: BlockOptions,
        *,
        up: bool = False,
        down: bool = False,
        rngs: Rngs,
    ) -> None:
        self.up = up
        self.down = down
        super().__init__(in_features, features, options, rngs=rngs)

    def make_shortcut(self, in_features: int, features: int, rngs: Rngs) -> nnx.Module | None:
        if in_features != features or self.up or self.down:
            return Conv1x1(in_features, features, rngs=rngs)
        return None

    def resample(self, x: Array) -> Array:
        return self.options.resample(x, up=self.up) if self.up or self.down else x

    def resample_conv(self, x: Array, kernel: Array) -> Array:
        if self.up and not self.options.fir:
            return resample.upsample_nearest_conv(x, kernel)
        return super().resample_conv(x, kernel)

    def resample_shortcut(self, x: Array) -> Array:
        if self.up and isinstance(self.shortcut, Conv1x1):
            return self.shortcut(x, self.resample)  # The same, with a quarter of the products.
        return super().resample_shortcut(x)
