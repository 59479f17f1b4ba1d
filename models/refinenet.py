"""RefineNet (Lin et al. 2017, arXiv:1611.06612) as NCSN and NCSNv2 use it. Images are NHWC.

Every layer is called with features and `label` (B,), the index of the noise level, of which only conditional
normalizations take notice. Class names are those of the official code, since its checkpoints are addressed by them;
what it calls conditional is the same layer with a conditional normalization before each activation or convolution.
`norm` makes a normalization for a number of features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from models import layers, resample

Norm = Callable[[int], nnx.Module]

EPSILON = 1e-5
INTERPOLATIONS = {"bilinear": "bilinear", "nearest_neighbor": "nearest"}


def conv3x3(
    in_features: int, features: int, *, bias: bool = True, dilation: int = 1, rngs: layers.Rngs
) -> nnx.Conv:
    """3x3 convolution with SAME padding; kernel and bias start uniform in +-fan_in^-1/2, as in PyTorch."""
    bound = (9 * in_features) ** -0.5

    def init(key: Array, shape: Sequence[int], dtype: jnp.dtype) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    args = {"use_bias": bias, "kernel_dilation": dilation, "kernel_init": init, "bias_init": init}
    return nnx.Conv(in_features, features, (3, 3), **args, rngs=rngs)


# --- normalization ----------------------------------------------------------------------------------------------------


def instance_norm_plus(x: Array, gamma: Array, alpha: Array, beta: Array) -> Array:
    """InstanceNorm++ (Song & Ermon 2019, Appendix A): x (B, H, W, C), the others (C,) or (B, 1, 1, C).

    Instance normalization forgets the channel means; alpha scales how much of them, normalized over channels, returns.
    """
    means = x.mean((1, 2), keepdims=True)
    h = (x - means) / jnp.sqrt(x.var((1, 2), keepdims=True) + EPSILON)
    center = means.mean(-1, keepdims=True)
    means = (means - center) / jnp.sqrt(means.var(-1, keepdims=True) + EPSILON)
    return gamma * (h + alpha * means) + beta


class InstanceNorm2dPlus(nnx.Module):
    """InstanceNorm++ that is the same at all noise levels."""

    def __init__(self, features: int, *, rngs: layers.Rngs) -> None:
        self.gamma = nnx.Param(1 + 0.02 * jax.random.normal(rngs.params(), (features,)))
        self.alpha = nnx.Param(1 + 0.02 * jax.random.normal(rngs.params(), (features,)))
        self.beta = nnx.Param(jnp.zeros(features))

    def __call__(self, x: Array, label: Array) -> Array:
        return instance_norm_plus(x, self.gamma[...], self.alpha[...], self.beta[...])


class ConditionalInstanceNorm2dPlus(nnx.Module):
    """InstanceNorm++ with coefficients of its own at each of `num_scales` noise levels."""

    def __init__(self, features: int, *, num_scales: int, rngs: layers.Rngs) -> None:
        def init(key: Array, shape: Sequence[int], dtype: jnp.dtype) -> Array:
            return (1 + 0.02 * jax.random.normal(key, shape, dtype)).at[:, 2 * features :].set(0)

        self.table = nnx.Embed(num_scales, 3 * features, embedding_init=init, rngs=rngs)

    def __call__(self, x: Array, label: Array) -> Array:
        return instance_norm_plus(x, *jnp.split(self.table(label)[:, None, None, :], 3, -1))


class NoNorm(nnx.Module):
    """Stands where an unconditional block has no normalization."""

    def __init__(self, features: int) -> None:
        del features

    def __call__(self, x: Array, label: Array) -> Array:
        return x


# --- the residual network ---------------------------------------------------------------------------------------------


class ConvMeanPool(nnx.Module):
    """Convolution, then means of 2x2 pixels: (B, H, W, in) -> (B, H/2, W/2, features)."""

    def __init__(
        self, in_features: int, features: int, kernel_size: int, *, rngs: layers.Rngs
    ) -> None:
        self.conv = nnx.Conv(in_features, features, (kernel_size, kernel_size), rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return resample.downsample_mean(self.conv(x))


class ResidualBlock(nnx.Module):
    """Two normalized convolutions beside a shortcut.

    With `down` it also changes the number of features, and its field of view grows: by halving height and width, or, if
    there is a dilation (Yu & Koltun 2016), by this alone.
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        *,
        down: bool = False,
        dilation: int = 1,
        norm: Norm,
        act: layers.Activation,
        rngs: layers.Rngs,
    ) -> None:
        conv = partial(conv3x3, dilation=dilation, rngs=rngs)
        last, shortcut = conv, conv
        if down and dilation == 1:
            last, shortcut = (partial(ConvMeanPool, kernel_size=size, rngs=rngs) for size in (3, 1))
        self.act = act
        self.norm1, self.conv1 = norm(in_features), conv(in_features, in_features)
        self.norm2, self.conv2 = norm(in_features), last(in_features, features)
        self.shortcut = shortcut(in_features, features) if down else None

    def __call__(self, x: Array, label: Array) -> Array:
        h = self.conv1(self.act(self.norm1(x, label)))
        h = self.conv2(self.act(self.norm2(h, label)))
        return h + (self.shortcut(x) if self.shortcut else x)


class ConditionalResidualBlock(ResidualBlock):
    """The official name of a residual block with conditional normalization."""


# --- refinement -------------------------------------------------------------------------------------------------------


class RCUBlock(nnx.Module):
    """Residual convolution units, each of two convolutions: (B, H, W, features) -> the same."""

    def __init__(
        self,
        features: int,
        num_units: int,
        *,
        norm: Norm,
        act: layers.Activation,
        rngs: layers.Rngs,
    ) -> None:
        self.act, self.num_units = act, num_units
        self.norms = nnx.List([norm(features) for _ in range(2 * num_units)])
        self.convs = nnx.List(
            [conv3x3(features, features, bias=False, rngs=rngs) for _ in range(2 * num_units)]
        )

    def __call__(self, x: Array, label: Array) -> Array:
        stages = iter(zip(self.norms, self.convs))
        for _ in range(self.num_units):
            h = x
            for _ in range(2):
                norm, conv = next(stages)
                h = conv(self.act(norm(h, label)))
            x = x + h
        return x


class CRPBlock(nnx.Module):
    """Chained residual pooling, which gathers context from windows of growing size: (B, H, W, features) -> the same."""

    NUM_STAGES = 2
    pool = staticmethod(nnx.max_pool)

    def __init__(
        self, features: int, *, norm: Norm, act: layers.Activation, rngs: layers.Rngs
    ) -> None:
        self.act = act
        self.norms = nnx.List([norm(features) for _ in range(self.NUM_STAGES)])
        self.convs = nnx.List(
            [conv3x3(features, features, bias=False, rngs=rngs) for _ in range(self.NUM_STAGES)]
        )

    def __call__(self, x: Array, label: Array) -> Array:
        x = path = self.act(x)
        for norm, conv in zip(self.norms, self.convs):
            path = conv(self.pool(norm(path, label), (5, 5), padding="SAME"))
            x = x + path
        return x


class MSFBlock(nnx.Module):
    """Multi-resolution fusion, a sum at the first input's resolution: [(B, H, W, in), ...] -> (B, H, W, features)."""

    def __init__(
        self,
        in_features: Sequence[int],
        features: int,
        *,
        norm: Norm,
        interpolation: str,
        rngs: layers.Rngs,
    ) -> None:
        self.interpolation = interpolation
        self.norms = nnx.List([norm(channels) for channels in in_features])
        self.convs = nnx.List([conv3x3(channels, features, rngs=rngs) for channels in in_features])

    def __call__(self, xs: Sequence[Array], label: Array) -> Array:
        hs = [conv(norm(x, label)) for x, norm, conv in zip(xs, self.norms, self.convs)]
        return sum(jax.image.resize(h, hs[0].shape, self.interpolation) for h in hs)


class CondRCUBlock(RCUBlock):
    """The official name of an RCUBlock with conditional normalization."""


class CondCRPBlock(CRPBlock):
    """CRPBlock with conditional normalization, and means (zeros beyond the edges count) in place of maxima."""

    pool = staticmethod(nnx.avg_pool)


class CondMSFBlock(MSFBlock):
    """The official name of an MSFBlock with conditional normalization."""


class RefineBlock(nnx.Module):
    """Refines features by those of a lower resolution: [(B, H, W, in), ...] -> (B, H, W, features).

    Args:
      in_features: of each input; the first input sets the resolution. A lone one must have `features` already.
      end: whether this is the last block, which has more residual units on its way out.
    """

    RCU, CRP, MSF = RCUBlock, CRPBlock, MSFBlock

    def __init__(
        self,
        in_features: Sequence[int],
        features: int,
        *,
        end: bool = False,
        interpolation: str,
        norm: Norm,
        act: layers.Activation,
        rngs: layers.Rngs,
    ) -> None:
        args = {"norm": norm, "act": act, "rngs": rngs}
        fuse = partial(self.MSF, interpolation=interpolation, norm=norm, rngs=rngs)
        self.adapt = nnx.List([self.RCU(channels, 2, **args) for channels in in_features])
        self.fuse = fuse(in_features, features) if len(in_features) > 1 else None
        self.pool = self.CRP(features, **args)
        self.out = self.RCU(features, 3 if end else 1, **args)

    def __call__(self, xs: Sequence[Array], label: Array) -> Array:
        hs = [adapt(x, label) for adapt, x in zip(self.adapt, xs)]
        h = self.fuse(hs, label) if self.fuse else hs[0]
        return self.out(self.pool(h, label), label)


class CondRefineBlock(RefineBlock):
    """RefineBlock with conditional normalization."""

    RCU, CRP, MSF = CondRCUBlock, CondCRPBlock, CondMSFBlock
