"""RefineNet (Lin et al. 2017, arXiv:1611.06612) as used by NCSN and NCSNv2. Images are NHWC.

Every layer takes features and `label` (B,), the index of the noise level, which only conditional
normalizations read.

Class names are those of the official code, because its checkpoints address parameters by them. The
official conditional blocks are the same blocks with a conditional normalization before each
activation or convolution.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from models import layers, resample

Norm = Callable[[int], nnx.Module]

INTERPOLATIONS = {"bilinear": "bilinear", "nearest_neighbor": "nearest"}
"""JAX's names of the values of `model.interpolation`."""


class Style(NamedTuple):
    """What blocks share: normalization for a number of features, activation, and how lower
    resolutions are resized (a value of INTERPOLATIONS)."""

    norm: Norm
    act: layers.Activation
    interpolation: str
    rngs: layers.Rngs


def conv3x3(
    in_features: int, features: int, *, bias: bool = True, dilation: int = 1, rngs: layers.Rngs
) -> nnx.Conv:
    """Return a 3x3 convolution with SAME padding.

    Kernel and bias are initialized as in PyTorch: uniformly in +-fan_in^-1/2.
    """
    bound = (9 * in_features) ** -0.5

    def init(key: Array, shape: Sequence[int], dtype: jnp.dtype) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return nnx.Conv(
        in_features,
        features,
        (3, 3),
        use_bias=bias,
        kernel_dilation=dilation,
        kernel_init=init,
        bias_init=init,
        rngs=rngs,
    )


# --- residual network ---


class ConvMeanPool(nnx.Module):
    """Convolve, then average 2x2 pixels: (B, H, W, in) -> (B, H/2, W/2, features)."""

    def __init__(
        self, in_features: int, features: int, kernel_size: int, *, rngs: layers.Rngs
    ) -> None:
        self.conv = nnx.Conv(in_features, features, (kernel_size, kernel_size), rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return resample.downsample_mean(self.conv(x))


class ResidualBlock(nnx.Module):
    """Two normalized convolutions and a shortcut.

    Without `down`, shapes are kept. With `down`, the number of features changes, and the block
    halves height and width or, if there is a dilation (Yu & Koltun 2016), keeps them.
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        style: Style,
        *,
        down: bool = False,
        dilation: int = 1,
    ) -> None:
        conv = partial(conv3x3, dilation=dilation, rngs=style.rngs)
        if down and dilation == 1:
            last = partial(ConvMeanPool, kernel_size=3, rngs=style.rngs)
            shortcut = partial(ConvMeanPool, kernel_size=1, rngs=style.rngs)
        else:
            last, shortcut = conv, conv
        self.act = style.act
        self.norm1 = style.norm(in_features)
        self.conv1 = conv(in_features, in_features)
        self.norm2 = style.norm(in_features)
        self.conv2 = last(in_features, features)
        self.shortcut = shortcut(in_features, features) if down else None

    def __call__(self, x: Array, label: Array) -> Array:
        h = self.conv1(self.act(self.norm1(x, label)))
        h = self.conv2(self.act(self.norm2(h, label)))
        if self.shortcut is not None:
            x = self.shortcut(x)
        return h + x


class ConditionalResidualBlock(ResidualBlock):
    """ResidualBlock with conditional normalization, under its official name."""


# --- refinement ---


class RCUBlock(nnx.Module):
    """Residual convolution units of two convolutions each; keeps the shape (B, H, W, features)."""

    CONVS_PER_UNIT = 2

    def __init__(self, features: int, num_units: int, style: Style) -> None:
        self.act = style.act
        count = self.CONVS_PER_UNIT * num_units
        conv = partial(conv3x3, features, features, bias=False, rngs=style.rngs)
        self.norms = nnx.List([style.norm(features) for _ in range(count)])
        self.convs = nnx.List([conv() for _ in range(count)])

    def __call__(self, x: Array, label: Array) -> Array:
        for first in range(0, len(self.convs), self.CONVS_PER_UNIT):
            h = x
            for i in range(first, first + self.CONVS_PER_UNIT):
                h = self.convs[i](self.act(self.norms[i](h, label)))
            x = x + h
        return x


class CRPBlock(nnx.Module):
    """Chained residual pooling over windows of growing size; keeps the shape (B, H, W, C)."""

    NUM_STAGES = 2
    pool = staticmethod(nnx.max_pool)

    def __init__(self, features: int, style: Style) -> None:
        self.act = style.act
        conv = partial(conv3x3, features, features, bias=False, rngs=style.rngs)
        self.norms = nnx.List([style.norm(features) for _ in range(self.NUM_STAGES)])
        self.convs = nnx.List([conv() for _ in range(self.NUM_STAGES)])

    def __call__(self, x: Array, label: Array) -> Array:
        x = self.act(x)
        path = x
        for norm, conv in zip(self.norms, self.convs):
            path = conv(self.pool(norm(path, label), (5, 5), padding="SAME"))
            x = x + path
        return x


class MSFBlock(nnx.Module):
    """Multi-resolution fusion: a sum at the resolution of the first input.

    It maps [(B, H_i, W_i, in_i), ...] to (B, H_0, W_0, features).
    """

    def __init__(self, in_features: Sequence[int], features: int, style: Style) -> None:
        self.interpolation = style.interpolation
        conv = partial(conv3x3, features=features, rngs=style.rngs)
        self.norms = nnx.List([style.norm(channels) for channels in in_features])
        self.convs = nnx.List([conv(channels) for channels in in_features])

    def __call__(self, xs: Sequence[Array], label: Array) -> Array:
        hs = []
        for x, norm, conv in zip(xs, self.norms, self.convs):
            h = conv(norm(x, label))
            shape = hs[0].shape if hs else h.shape
            hs.append(jax.image.resize(h, shape, self.interpolation))
        return sum(hs[1:], start=hs[0])


class CondRCUBlock(RCUBlock):
    """RCUBlock with conditional normalization, under its official name."""


class CondCRPBlock(CRPBlock):
    """CRPBlock with conditional normalization and average pooling, which includes zero padding."""

    pool = staticmethod(nnx.avg_pool)


class CondMSFBlock(MSFBlock):
    """MSFBlock with conditional normalization, under its official name."""


class RefineBlock(nnx.Module):
    """Refine features with those of a lower resolution.

    It maps [(B, H_i, W_i, in_i), ...] to (B, H_0, W_0, features).

    Args:
      in_features: number of features of each input. The first input determines the resolution. A
        single input must have `features` features.
      end: whether this is the last block, which has three instead of one residual units at its end.
    """

    RCU, CRP, MSF = RCUBlock, CRPBlock, MSFBlock

    def __init__(
        self, in_features: Sequence[int], features: int, style: Style, *, end: bool = False
    ) -> None:
        self.adapt = nnx.List([self.RCU(channels, 2, style) for channels in in_features])
        is_single = len(in_features) == 1
        self.fuse = None if is_single else self.MSF(in_features, features, style)
        self.pool = self.CRP(features, style)
        self.out = self.RCU(features, 3 if end else 1, style)

    def __call__(self, xs: Sequence[Array], label: Array) -> Array:
        hs = [adapt(x, label) for adapt, x in zip(self.adapt, xs)]
        h = hs[0] if self.fuse is None else self.fuse(hs, label)
        return self.out(self.pool(h, label), label)


class CondRefineBlock(RefineBlock):
    """RefineBlock with conditional normalization."""

    RCU, CRP, MSF = CondRCUBlock, CondCRPBlock, CondMSFBlock
