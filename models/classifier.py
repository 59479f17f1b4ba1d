"""The noise-conditional classifier of arXiv:2011.13456, Appendix I.

It is a Wide ResNet (Zagoruyko & Komodakis 2016) with an embedding of the noise level.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from models import embeddings, layers, resample

EMBEDDING_FEATURES = 128
TEMB_FEATURES = 4 * EMBEDDING_FEATURES
GROUP_WIDTHS = (16, 32, 64)


def conv3x3(in_features: int, features: int, *, stride: int = 1, rngs: layers.Rngs) -> nnx.Conv:
    """Return a 3x3 convolution without bias, initialized with variance 2 / fan_out."""
    init = jax.nn.initializers.variance_scaling(2.0, "fan_out", "normal")
    return nnx.Conv(
        in_features, features, (3, 3), stride, use_bias=False, kernel_init=init, rngs=rngs
    )


def standardize(x: Array) -> Array:
    """Shift and scale each image of x (B, H, W, C) to mean 0 and variance 1.

    The standard deviation is at least (H W C)^-1/2, which bounds the scale for constant images.
    """
    mean = x.mean((1, 2, 3), keepdims=True)
    std = x.std((1, 2, 3), keepdims=True)
    return (x - mean) / jnp.maximum(std, math.prod(x.shape[1:]) ** -0.5)


class WideResnetBlock(nnx.Module):
    """Pre-activation residual block conditioned on the noise level.

    It maps (B, H, W, in) and the embedding (B, 512) to (B, H, W, features), or with `down` to
    (B, H/2, W/2, features). The shortcut has no parameters: it averages 2x2 pixels and pads with
    zero channels where needed.
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        *,
        down: bool = False,
        activate_before_residual: bool = False,
        rngs: layers.Rngs,
    ) -> None:
        self.activate_before_residual = activate_before_residual
        self.added_features = features - in_features
        self.down = down
        self.norm1 = layers.GroupNorm(in_features)
        self.conv1 = conv3x3(in_features, features, stride=2 if down else 1, rngs=rngs)
        self.temb = nnx.Linear(TEMB_FEATURES, features, rngs=rngs)
        self.norm2 = layers.GroupNorm(features)
        self.conv2 = conv3x3(features, features, rngs=rngs)

    def __call__(self, x: Array, temb: Array) -> Array:
        h = jax.nn.relu(self.norm1(x))
        shortcut = h if self.activate_before_residual else x
        h = self.norm2(self.conv1(h), self.temb(layers.swish(temb)))
        h = self.conv2(jax.nn.relu(h))
        if self.down:
            shortcut = resample.downsample_mean(shortcut)
        return h + jnp.pad(shortcut, ((0, 0), (0, 0), (0, 0), (0, self.added_features)))


class WideResnetGroup(nnx.Module):
    """`count` residual blocks of the same width; except in the first group, the first block
    halves the resolution."""

    def __init__(
        self, in_features: int, features: int, count: int, *, is_first: bool, rngs: layers.Rngs
    ) -> None:
        kind = {"activate_before_residual": True} if is_first else {"down": True}
        self.blocks = nnx.List([WideResnetBlock(in_features, features, **kind, rngs=rngs)])
        for _ in range(count - 1):
            self.blocks.append(WideResnetBlock(features, features, rngs=rngs))

    def __call__(self, x: Array, temb: Array) -> Array:
        for block in self.blocks:
            x = block(x, temb)
        return x


class WideResnet(nnx.Module):
    """Classifier (x, sigma) -> logits (B, num_outputs).

    x (B, H, W, C) are noisy images and sigma (B,) the standard deviations of their noise.

    Args:
      num_channels: C of the images.
      blocks_per_group, channel_multiplier: (4, 10) in the paper, a Wide ResNet-28-10.
      num_outputs: number of classes.
    """

    def __init__(
        self,
        *,
        num_channels: int = 3,
        blocks_per_group: int = 4,
        channel_multiplier: int = 10,
        num_outputs: int = 10,
        rngs: layers.Rngs,
    ) -> None:
        self.fourier = embeddings.GaussianFourierProjection(EMBEDDING_FEATURES, 16.0, rngs=rngs)
        self.temb1 = nnx.Linear(2 * EMBEDDING_FEATURES, TEMB_FEATURES, rngs=rngs)
        self.temb2 = nnx.Linear(TEMB_FEATURES, TEMB_FEATURES, rngs=rngs)
        channels = GROUP_WIDTHS[0]
        self.conv_in = conv3x3(num_channels, channels, rngs=rngs)
        self.groups = nnx.List()
        for i, width in enumerate(GROUP_WIDTHS):
            features = width * channel_multiplier
            self.groups.append(
                WideResnetGroup(channels, features, blocks_per_group, is_first=i == 0, rngs=rngs)
            )
            channels = features
        self.norm_out = layers.GroupNorm(channels)
        self.out = nnx.Linear(channels, num_outputs, rngs=rngs)

    def __call__(self, x: Array, sigma: Array) -> Array:
        temb = self.temb2(layers.swish(self.temb1(self.fourier(sigma))))
        h = self.conv_in(standardize(x))
        for group in self.groups:
            h = group(h, temb)
        return self.out(jax.nn.relu(self.norm_out(h)).mean((1, 2)))
