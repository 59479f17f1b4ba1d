"""The noise-conditional classifier of arXiv:2011.13456, Appendix I: a Wide ResNet (Zagoruyko & Komodakis 2016)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from models import layers, resample

EMBEDDING = 128
TEMB = 4 * EMBEDDING


def conv3x3(in_features: int, features: int, *, stride: int = 1, rngs: layers.Rngs) -> nnx.Conv:
    """3x3 convolution without bias; kernels start normal with variance 2 / fan_out."""
    init = jax.nn.initializers.variance_scaling(2.0, "fan_out", "normal")
    return nnx.Conv(
        in_features, features, (3, 3), stride, use_bias=False, kernel_init=init, rngs=rngs
    )


def standardize(x: Array) -> Array:
    """Shifts and scales each image (H, W, C) to mean 0 and variance 1; the scale is bounded for flat images."""
    mean, std = x.mean((1, 2, 3), keepdims=True), x.std((1, 2, 3), keepdims=True)
    return (x - mean) / jnp.maximum(std, math.prod(x.shape[1:]) ** -0.5)


class WideResnetBlock(nnx.Module):
    """Pre-activation residual block told the noise level: (B, H, W, in), (B, 512) -> (B, H/stride, W/stride, features).

    The shortcut has no parameters: if the width changes, it takes means of 2x2 pixels and fills up with zero channels.
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        *,
        stride: int = 1,
        activate_before_residual: bool,
        rngs: layers.Rngs,
    ) -> None:
        self.activate_before_residual, self.grows, self.pools = (
            activate_before_residual,
            features - in_features,
            stride > 1,
        )
        self.norm1 = layers.GroupNorm(in_features)
        self.conv1 = conv3x3(in_features, features, stride=stride, rngs=rngs)
        self.temb = nnx.Linear(TEMB, features, rngs=rngs)
        self.norm2 = layers.GroupNorm(features)
        self.conv2 = conv3x3(features, features, rngs=rngs)

    def __call__(self, x: Array, temb: Array) -> Array:
        h = jax.nn.relu(self.norm1(x))
        shortcut = h if self.activate_before_residual else x
        h = self.norm2(self.conv1(h), self.temb(layers.swish(temb)))
        h = self.conv2(jax.nn.relu(h))
        if self.pools:
            shortcut = resample.downsample_mean(shortcut)
        return h + jnp.pad(shortcut, ((0, 0), (0, 0), (0, 0), (0, self.grows)))


class WideResnetGroup(nnx.Module):
    """Residual blocks of one width, of which the first may halve the resolution."""

    def __init__(
        self,
        in_features: int,
        features: int,
        num_blocks: int,
        *,
        stride: int,
        first: bool,
        rngs: layers.Rngs,
    ) -> None:
        self.blocks = nnx.List()
        for i in range(num_blocks):
            options = {
                "stride": 1 if i else stride,
                "activate_before_residual": first and i == 0,
                "rngs": rngs,
            }
            self.blocks.append(WideResnetBlock(features if i else in_features, features, **options))

    def __call__(self, x: Array, temb: Array) -> Array:
        for block in self.blocks:
            x = block(x, temb)
        return x


class WideResnet(nnx.Module):
    """Classifier (x, sigma) -> logits (B, num_outputs), with noised images x (B, H, W, C) and noise scales sigma (B,).

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
        self.fourier = layers.GaussianFourierProjection(EMBEDDING, 16.0, rngs=rngs)
        self.temb1 = nnx.Linear(2 * EMBEDDING, TEMB, rngs=rngs)
        self.temb2 = nnx.Linear(TEMB, TEMB, rngs=rngs)
        self.conv_in = conv3x3(num_channels, 16, rngs=rngs)
        self.groups, channels = nnx.List(), 16
        for i, width in enumerate((16, 32, 64)):
            options = {"stride": 2 if i else 1, "first": i == 0, "rngs": rngs}
            self.groups.append(
                WideResnetGroup(channels, width * channel_multiplier, blocks_per_group, **options)
            )
            channels = width * channel_multiplier
        self.norm_out = layers.GroupNorm(channels)
        self.out = nnx.Linear(channels, num_outputs, rngs=rngs)

    def __call__(self, x: Array, sigma: Array) -> Array:
        temb = self.temb2(layers.swish(self.temb1(self.fourier(sigma))))
        h = self.conv_in(standardize(x))
        for group in self.groups:
            h = group(h, temb)
        return self.out(jax.nn.relu(self.norm_out(h)).mean((1, 2)))
