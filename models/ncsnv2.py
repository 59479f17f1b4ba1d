"""NCSN and NCSNv2, which are RefineNets.

NCSN is from Song & Ermon 2019 (arXiv:1907.05600), NCSNv2 from Song & Ermon 2020 (arXiv:2006.09011).
Layers are constructed in the order of the official code, which numbers the parameters in its
checkpoints by it.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from flax import nnx
from jax import Array

from errors import choose
from models import instance_norm, layers, refinenet
from readers.image_sizes import ImageSize


class Stage(NamedTuple):
    """Two residual blocks on the way down and a refinement block on the way up.

    Widths are multiples of nf. Every stage except the first starts with a block that halves the
    resolution or, with a dilation, keeps it.
    """

    width: int
    refined_width: int
    dilation: int = 1


class NCSNv2(nnx.Module):
    """Score network (x, label) -> raw output of x's shape, with x (B, H, W, C) and label (B,).

    This version (`ncsnv2_64`) was designed for images of 32 to 64 pixels. It ignores the label: the
    noise level only scales its output (`model.scale_by_sigma`), which the caller does.

    The arguments are fields of `config.model`, except `image_size` and `num_channels`.

    Args:
      image_size, num_channels: H = W, or (H, W), and C of the images.
      nf: number of features of the first stage.
      interpolation: how lower resolutions are resized, "bilinear" or "nearest_neighbor".
      nonlinearity, normalization: activation function and normalization of all blocks; the only
        normalization is "InstanceNorm++".

    Raises:
      InputError: an option is unknown, or the stages cannot halve the image size.
    """

    STAGES = (Stage(1, 1), Stage(2, 2), Stage(2, 2, 2), Stage(2, 2, 4))
    BLOCKS = (refinenet.ResidualBlock, refinenet.RefineBlock)

    def __init__(
        self,
        *,
        image_size: ImageSize,
        num_channels: int,
        nf: int,
        interpolation: str = "bilinear",
        nonlinearity: str = "elu",
        normalization: str = "InstanceNorm++",
        rngs: layers.Rngs,
    ) -> None:
        norms = {"InstanceNorm++": partial(instance_norm.InstanceNorm2dPlus, rngs=rngs)}
        norm = choose(norms, normalization, "model.normalization")
        refine_norm = instance_norm.NoNorm
        self._build(
            image_size, num_channels, nf, interpolation, nonlinearity, norm, refine_norm, rngs
        )

    @classmethod
    def num_halvings(cls) -> int:
        """Return how often the network halves the resolution."""
        return len([stage for stage in cls.STAGES[1:] if stage.dilation == 1])

    def _build(
        self,
        image_size: ImageSize,
        num_channels: int,
        nf: int,
        interpolation: str,
        nonlinearity: str,
        norm: refinenet.Norm,
        refine_norm: refinenet.Norm,
        rngs: layers.Rngs,
    ) -> None:
        """Build the layers from the input image to the output."""
        layers.check_halvings(image_size, self.num_halvings())
        method = choose(refinenet.INTERPOLATIONS, interpolation, "model.interpolation")
        self.act = layers.activation(nonlinearity)
        residual_block, refine_block = self.BLOCKS
        block = partial(residual_block, norm=norm, act=self.act, rngs=rngs)
        refine = partial(
            refine_block, norm=refine_norm, act=self.act, interpolation=method, rngs=rngs
        )

        self.conv_in = refinenet.conv3x3(num_channels, nf, rngs=rngs)
        channels = nf
        self.stages = nnx.List()
        for i, stage in enumerate(self.STAGES):
            width = nf * stage.width
            first = block(channels, width, down=i > 0, dilation=stage.dilation)
            second = block(width, width, dilation=stage.dilation)
            self.stages.append(nnx.List([first, second]))
            channels = width
        lower = []  # The refined features of the stage below; none at the lowest stage.
        self.refine = nnx.List()
        for i, stage in reversed(list(enumerate(self.STAGES))):
            width = nf * stage.refined_width
            self.refine.append(refine([nf * stage.width, *lower], width, end=i == 0))
            lower = [width]
        self.norm_out = norm(width)
        self.conv_out = refinenet.conv3x3(width, num_channels, rngs=rngs)

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


class NCSN(NCSNv2):
    """NCSN: like NCSNv2, but the label, an integer, selects the coefficients of all normalizations.

    Args:
      num_scales: number of noise levels; labels are less than it.

    The other arguments are those of `NCSNv2`.
    """

    BLOCKS = (refinenet.ConditionalResidualBlock, refinenet.CondRefineBlock)

    def __init__(
        self,
        *,
        image_size: ImageSize,
        num_channels: int,
        nf: int,
        num_scales: int,
        interpolation: str = "bilinear",
        nonlinearity: str = "elu",
        normalization: str = "InstanceNorm++",
        rngs: layers.Rngs,
    ) -> None:
        conditional = partial(
            instance_norm.ConditionalInstanceNorm2dPlus, num_scales=num_scales, rngs=rngs
        )
        norm = choose({"InstanceNorm++": conditional}, normalization, "model.normalization")
        self._build(image_size, num_channels, nf, interpolation, nonlinearity, norm, norm, rngs)
