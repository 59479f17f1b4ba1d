"""NCSN (Song & Ermon 2019, arXiv:1907.05600) and NCSNv2 (Song & Ermon 2020, arXiv:2006.09011): RefineNets."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from flax import nnx
from jax import Array

from errors import choose
from models import layers, refinenet


class Stage(NamedTuple):
    """Two residual blocks on the way down, and the block that refines them on the way up; widths in multiples of nf.

    Every stage but the first starts with a step that halves the resolution, or keeps it if there is a dilation.
    """

    width: int
    refined_width: int
    dilation: int = 1


class NCSNv2(nnx.Module):
    """Score network (x, label) -> raw output of x's shape, with x (B, H, W, C) and label (B,).

    This one (`ncsnv2_64`) was made for images of 32 to 64 pixels. It does not look at the label: all that the noise
    level changes is the scale of the output, which `model.scale_by_sigma` asks of the caller.

    Args (as the fields of `config.model`):
      image_size, num_channels: H = W and C of the images.
      nf: number of features of the first stage.
      interpolation: how lower resolutions are brought to higher ones, "bilinear" or "nearest_neighbor".
      nonlinearity, normalization: of all blocks; "InstanceNorm++" is the one normalization there is.

    Raises:
      InputError: an unknown option, or an image size that the stages cannot halve.
    """

    STAGES = (Stage(1, 1), Stage(2, 2), Stage(2, 2, 2), Stage(2, 2, 4))
    BLOCKS = (refinenet.ResidualBlock, refinenet.RefineBlock)

    def __init__(
        self,
        *,
        image_size: int,
        num_channels: int,
        nf: int,
        interpolation: str = "bilinear",
        nonlinearity: str = "elu",
        normalization: str = "InstanceNorm++",
        rngs: layers.Rngs,
    ) -> None:
        norms = {"InstanceNorm++": partial(refinenet.InstanceNorm2dPlus, rngs=rngs)}
        norm = choose(norms, normalization, "model.normalization")
        self._build(
            image_size, num_channels, nf, interpolation, nonlinearity, norm, refinenet.NoNorm, rngs
        )

    def _build(
        self,
        image_size: int,
        num_channels: int,
        nf: int,
        interpolation: str,
        nonlinearity: str,
        norm: refinenet.Norm,
        refine_norm: refinenet.Norm,
        rngs: layers.Rngs,
    ) -> None:
        """The layers from image to image; built in the order of the official code, by which its checkpoints number."""
        layers.check_halvings(image_size, sum(stage.dilation == 1 for stage in self.STAGES[1:]))
        method = choose(refinenet.INTERPOLATIONS, interpolation, "model.interpolation")
        self.act = layers.activation(nonlinearity)
        block, refine = self.BLOCKS
        block = partial(block, norm=norm, act=self.act, rngs=rngs)
        refine = partial(refine, norm=refine_norm, act=self.act, interpolation=method, rngs=rngs)

        self.conv_in = refinenet.conv3x3(num_channels, nf, rngs=rngs)
        self.stages, channels = nnx.List(), nf
        for i, stage in enumerate(self.STAGES):
            width, dilation = nf * stage.width, stage.dilation
            first = block(channels, width, down=i > 0, dilation=dilation)
            self.stages.append(nnx.List([first, block(width, width, dilation=dilation)]))
            channels = width
        self.refine, lower = nnx.List(), []
        for i, stage in reversed(list(enumerate(self.STAGES))):
            width = nf * stage.refined_width
            self.refine.append(refine([nf * stage.width, *lower], width, end=i == 0))
            lower = [width]
        self.norm_out = norm(width)
        self.conv_out = refinenet.conv3x3(width, num_channels, rngs=rngs)

    def __call__(self, x: Array, label: Array, rngs: layers.Rngs | None = None) -> Array:
        """Raw output for images x in [-1, 1]. There is no dropout, so `rngs` changes nothing."""
        h, states, refined = self.conv_in(x), [], []
        for first, second in self.stages:
            h = second(first(h, label), label)
            states.append(h)
        for refine in self.refine:
            refined = [refine([states.pop(), *refined], label)]
        return self.conv_out(self.act(self.norm_out(refined[0], label)))


class NCSNv2_128(NCSNv2):
    """NCSNv2 with a stage more, for images of 96 to 128 pixels (`ncsnv2_128`)."""

    STAGES = (Stage(1, 1), Stage(2, 1), Stage(2, 2), Stage(4, 2, 2), Stage(4, 4, 4))


class NCSNv2_256(NCSNv2):
    """NCSNv2 with two stages more, for images of 256 pixels (`ncsnv2_256`)."""

    STAGES = (Stage(1, 1), Stage(2, 1), Stage(2, 2), Stage(2, 2), Stage(4, 2, 2), Stage(4, 4, 4))


class NCSN(NCSNv2):
    """The first NCSN: as NCSNv2, but the label, an integer below `num_scales`, selects the coefficients of all norms.

    Args (as the fields of `config.model`):
      num_scales: number of noise levels. The others are those of NCSNv2.
    """

    BLOCKS = (refinenet.ConditionalResidualBlock, refinenet.CondRefineBlock)

    def __init__(
        self,
        *,
        image_size: int,
        num_channels: int,
        nf: int,
        num_scales: int,
        interpolation: str = "bilinear",
        nonlinearity: str = "elu",
        normalization: str = "InstanceNorm++",
        rngs: layers.Rngs,
    ) -> None:
        norms = {
            "InstanceNorm++": partial(
                refinenet.ConditionalInstanceNorm2dPlus, num_scales=num_scales, rngs=rngs
            )
        }
        norm = choose(norms, normalization, "model.normalization")
        self._build(image_size, num_channels, nf, interpolation, nonlinearity, norm, norm, rngs)
