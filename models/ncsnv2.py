"""NCSN and NCSNv2, which are RefineNets.

NCSN is from Song & Ermon 2019 (arXiv:1907.05600), NCSNv2 from Song & Ermon 2020 (arXiv:2006.09011).
Layers are constructed in the order of the official code, which numbers the parameters in its
checkpoints by it.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

from flax import nnx
from jax import Array

from models import instance_norm, layers, refinenet
from models.building import NetworkOptions, one_of


class Stage(NamedTuple):
    """Two residual blocks on the way down and a refinement block on the way up.

    Widths are multiples of nf. Every stage except the first starts with a block that halves the
    resolution or, with a dilation, keeps it.
    """

    width: int
    refined_width: int
    dilation: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class NCSNv2Options(NetworkOptions):
    """Options of NCSNv2.

    Attributes:
      nf: number of features of the first stage.
      interpolation: how lower resolutions are resized.
      nonlinearity, normalization: activation function and normalization of all blocks.
    """

    nf: int
    interpolation: str = one_of("bilinear", refinenet.INTERPOLATIONS)
    nonlinearity: str = one_of("elu", layers.ACTIVATIONS)
    normalization: str = one_of("InstanceNorm++", ("InstanceNorm++",))

    def norms(self, rngs: layers.Rngs) -> tuple[refinenet.Norm, refinenet.Norm]:
        """Return the normalizations of residual blocks and of refinement blocks."""
        return partial(instance_norm.InstanceNorm2dPlus, rngs=rngs), instance_norm.NoNorm


class NCSNv2(nnx.Module):
    """Score network (x, label) -> raw output of x's shape, with x (B, H, W, C) and label (B,).

    This version (`ncsnv2_64`) was designed for images of 32 to 64 pixels. It ignores the label: the
    noise level only scales its output (`model.scale_by_sigma`), which the caller does.

    Args:
      options: the attributes of the network's `Options`, which raise errors.

    Raises:
      InputError: the stages cannot halve the image size.
    """

    Options: type[NCSNv2Options] = NCSNv2Options
    STAGES = (Stage(1, 1), Stage(2, 2), Stage(2, 2, 2), Stage(2, 2, 4))
    BLOCKS = (refinenet.ResidualBlock, refinenet.RefineBlock)

    def __init__(self, *, rngs: layers.Rngs, **options: Any) -> None:
        o = self.Options(**options)
        halvings = sum(stage.dilation == 1 for stage in self.STAGES[1:])
        layers.check_halvings(o.image_size, halvings)
        self.act = layers.ACTIVATIONS[o.nonlinearity]
        method = refinenet.INTERPOLATIONS[o.interpolation]
        norm, refine_norm = o.norms(rngs)
        style = refinenet.Style(norm, self.act, method, rngs)
        residual_block, refine_block = self.BLOCKS

        self.conv_in = refinenet.conv3x3(o.num_channels, o.nf, rngs=rngs)
        channels = o.nf
        self.stages = nnx.List()
        for i, stage in enumerate(self.STAGES):
            width, dilation = o.nf * stage.width, stage.dilation
            first = residual_block(channels, width, style, down=i > 0, dilation=dilation)
            second = residual_block(width, width, style, dilation=dilation)
            self.stages.append(nnx.List([first, second]))
            channels = width
        style = style._replace(norm=refine_norm)
        lower = []  # The refined features of the stage below; none at the lowest stage.
        self.refine = nnx.List()
        for i, stage in reversed(list(enumerate(self.STAGES))):
            width = o.nf * stage.refined_width
            self.refine.append(refine_block([o.nf * stage.width, *lower], width, style, end=i == 0))
            lower = [width]
        self.norm_out = norm(width)
        self.conv_out = refinenet.conv3x3(width, o.num_channels, rngs=rngs)

    def __call__(self, x: Array, label: Array, rngs: layers.Rngs | None = None) -> Array:
        """Return the raw output for images x in [-1, 1]. There is no dropout: `rngs` is ignored."""
        h = self.conv_in(x)
        states = []
        for first, second in self.stages:
            h = second(first(h, label), label)
            states.append(h)
        refined = []
        for refine in self.refine:
            refined = [refine([states.pop(), *refined], label)]
        return self.conv_out(self.act(self.norm_out(refined[0], label)))


class NCSNv2_128(NCSNv2):
    """NCSNv2 with one more stage, for images of 96 to 128 pixels (`ncsnv2_128`)."""

    STAGES = (Stage(1, 1), Stage(2, 1), Stage(2, 2), Stage(4, 2, 2), Stage(4, 4, 4))


class NCSNv2_256(NCSNv2):
    """NCSNv2 with two more stages, for images of 256 pixels (`ncsnv2_256`)."""

    STAGES = (Stage(1, 1), Stage(2, 1), Stage(2, 2), Stage(2, 2), Stage(4, 2, 2), Stage(4, 4, 4))


@dataclasses.dataclass(frozen=True, kw_only=True)
class NCSNOptions(NCSNv2Options):
    """Options of NCSN: those of NCSNv2, and the number of noise levels, which labels index."""

    num_scales: int

    def norms(self, rngs: layers.Rngs) -> tuple[refinenet.Norm, refinenet.Norm]:
        norm = partial(
            instance_norm.ConditionalInstanceNorm2dPlus, num_scales=self.num_scales, rngs=rngs
        )
        return norm, norm


class NCSN(NCSNv2):
    """NCSN: like NCSNv2, but the label selects the coefficients of all normalizations."""

    Options = NCSNOptions
    BLOCKS = (refinenet.ConditionalResidualBlock, refinenet.CondRefineBlock)
