"""The options of NCSN++, and its levels: all layers at one resolution, on the way down or up.

The progressive input is the image, resampled to each resolution, where it is merged into the
features; the progressive output is the sum of images or features from all resolutions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jax import Array

from models import blocks, layers
from models.building import one_of
from models.unet import UNetOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class NCSNppOptions(UNetOptions):
    """Options of NCSN++, besides those of all U-Nets.

    Attributes:
      conditional: whether the network is conditioned on the noise level.
      embedding_type: "fourier" features of log(label), or the "positional" embedding of label;
        "fourier_linear" and "positional_log" are those of label and log(label).
      noise_mult, temb_mult: features of this embedding before and after its dense layers, as
        multiples of nf. With noise_mult = 0 there are nf frequencies, or nf positional features.
      class_embedding: whether classes are added "before" or "after" these layers.
      fourier_scale: standard deviation of the random frequencies.
      resblock_type: "biggan" blocks resample inside a block, "ddpm" blocks in a separate layer.
      resamp_with_conv: whether that layer convolves.
      fir, fir_kernel: whether to resample through this FIR filter, else pixel by pixel.
      progressive, progressive_input: how images leave and enter at lower resolutions: as skips
        beside the features ("output_skip", "input_skip") or as residuals added to them ("residual";
        StyleGAN2, Figure 7).
      progressive_combine: whether an input skip is added to the features ("sum") or concatenated
        with them ("cat").
      skip_rescale: whether to divide residual sums by sqrt(2).
      init_scale: initial scale of the last layer of each residual branch.
      nonlinearity: activation function of all blocks.
    """

    conditional: bool = True
    embedding_type: str = one_of(
        "positional", ("fourier", "positional", "fourier_linear", "positional_log")
    )
    noise_mult: int = 0
    temb_mult: int = 4
    class_embedding: str = one_of("after", ("after", "before"))
    fourier_scale: float = 16.0
    resblock_type: str = one_of("biggan", ("biggan", "ddpm"))
    resamp_with_conv: bool = True
    fir: bool = False
    fir_kernel: Sequence[float] = (1, 3, 3, 1)
    progressive: str = one_of("none", ("none", "output_skip", "residual"))
    progressive_input: str = one_of("none", ("none", "input_skip", "residual"))
    progressive_combine: str = one_of("sum", ("sum", "cat"))
    skip_rescale: bool = True
    init_scale: float = 0.0
    nonlinearity: str = one_of("swish", layers.ACTIVATIONS)

    @property
    def block(self) -> blocks.BlockOptions:
        return blocks.BlockOptions(
            temb_features=self.temb_mult * self.nf if self.conditional else None,
            act=layers.ACTIVATIONS[self.nonlinearity],
            dropout=self.dropout,
            skip_rescale=self.skip_rescale,
            init_scale=self.init_scale,
            fir=self.fir,
            fir_kernel=self.fir_kernel,
            remat=self.remat,
        )


@dataclasses.dataclass(frozen=True)
class LayerFactory:
    """Constructs the layers of all levels of a network with `options`."""

    options: NCSNppOptions
    rngs: layers.Rngs

    def block(self, in_features: int, features: int, **resampling: bool) -> nnx.Module:
        """Return a residual block; only "biggan" blocks can change the resolution."""
        is_ddpm = self.options.resblock_type == "ddpm"
        kind = blocks.ResnetBlockDDPMpp if is_ddpm else blocks.ResnetBlockBigGANpp
        return kind(in_features, features, self.options.block, rngs=self.rngs, **resampling)

    def attention(self, features: int) -> nnx.Module:
        """Return a self-attention block."""
        return blocks.AttnBlockpp(features, self.options.block, rngs=self.rngs)

    def resampler(self, features: int, *, up: bool) -> nnx.Module:
        """Return the layer or block that doubles or halves the resolution of features."""
        if self.options.resblock_type == "biggan":
            return self.block(features, features, up=up, down=not up)
        return self._resampler(features, features, self.options.resamp_with_conv, up)

    def image_resampler(self, in_features: int, features: int, *, up: bool) -> nnx.Module:
        """Return the layer that resamples the progressive output (`up`) or input."""
        kind = self.options.progressive if up else self.options.progressive_input
        return self._resampler(in_features, features, kind == "residual", up)

    def _resampler(
        self, in_features: int, features: int, with_conv: bool, up: bool
    ) -> blocks.Resampler:
        resampler = blocks.Upsample if up else blocks.Downsample
        options = self.options.block
        return resampler(in_features, features, options, with_conv=with_conv, rngs=self.rngs)


class DownLevel(nnx.Module):
    """Residual blocks at one resolution and, except at the lowest, the step to the next.

    Args:
      index: that of the level, from the highest resolution.
      channels, image_channels: the numbers of channels of the features and the progressive input.

    Attributes:
      skips: the numbers of features of the states that this level passes to the up path.
      image_channels: the number of channels of the progressive input after this level.
    """

    def __init__(self, make: LayerFactory, index: int, channels: int, image_channels: int) -> None:
        o = make.options
        width = o.widths[index]
        self.skip_rescale = o.skip_rescale
        self.steps = nnx.List()
        for _ in range(o.num_res_blocks):
            step = nnx.List([make.block(channels, width)])
            if o.attends[index]:
                step.append(make.attention(width))
            self.steps.append(step)
            channels = width
        self.skips = (width,) * o.num_res_blocks
        self.image_channels = image_channels
        if index == o.lowest:
            self.down, self.image_down, self.combine = None, None, None
        else:
            self._build_transition(make, channels)

    def _build_transition(self, make: LayerFactory, channels: int) -> None:
        """Build the step to the next resolution, where the progressive input is merged."""
        self.down = make.resampler(channels, up=False)
        image_down, combine, inputs = None, None, self.image_channels
        if make.options.progressive_input == "residual":
            image_down = make.image_resampler(inputs, channels, up=False)
            self.image_channels = channels
        elif make.options.progressive_input == "input_skip":
            image_down = make.image_resampler(inputs, inputs, up=False)
            method = make.options.progressive_combine
            combine = blocks.Combine(inputs, channels, method, rngs=make.rngs)
            channels *= 2 if method == "cat" else 1
        self.image_down, self.combine = image_down, combine
        self.skips = (*self.skips, channels)

    def __call__(
        self, skips: list[Array], image: Array, temb: Array | None, rngs: layers.Rngs | None
    ) -> tuple[list[Array], Array]:
        """Append states to `skips`, whose last one is the input.

        Returns the list of states and the next progressive input.
        """
        for step in self.steps:
            h = skips[-1]
            for layer in step:
                h = layer(h, temb, rngs)
            skips = [*skips, h]
        if self.down is None:
            return skips, image
        h = self.down(skips[-1], temb, rngs)
        if self.image_down is None:
            return [*skips, h], image
        image = self.image_down(image)
        if self.combine is None:
            h = image = layers.residual(image, h, self.skip_rescale)
        else:
            h = self.combine(image, h)
        return [*skips, h], image


class UpLevel(nnx.Module):
    """Residual blocks that consume the skips of one resolution, and its progressive output.

    Except at the highest resolution, a step to the next one follows.

    Args:
      index: that of the level, from the highest resolution.
      channels, skips: the numbers of channels of the features and of the skips.
    """

    def __init__(self, make: LayerFactory, index: int, channels: int, skips: Sequence[int]) -> None:
        o = make.options
        width = o.widths[index]
        self.act = o.block.act
        self.progressive = o.progressive
        self.skip_rescale = o.skip_rescale
        in_features = channels
        self.blocks = nnx.List()
        for skip in skips:
            self.blocks.append(make.block(in_features + skip, width))
            in_features = width
        self.attn = make.attention(width) if o.attends[index] else None
        self._build_output(make, channels, width, index == o.lowest)
        self.up = make.resampler(width, up=True) if index > 0 else None

    def _build_output(self, make: LayerFactory, channels: int, width: int, lowest: bool) -> None:
        """Build the layers of the progressive output: `norm`, `conv` and `image_up`."""
        o, norm, conv, image_up = make.options, None, None, None
        if o.progressive == "output_skip":
            outputs, scale = o.num_channels, o.init_scale
            norm = layers.GroupNorm(width)
            conv = layers.conv3x3(width, outputs, init_scale=scale, rngs=make.rngs)
            if not lowest:
                image_up = make.image_resampler(outputs, outputs, up=True)
        elif o.progressive == "residual" and lowest:
            norm = layers.GroupNorm(width)
            conv = layers.conv3x3(width, width, rngs=make.rngs)
        elif o.progressive == "residual":
            image_up = make.image_resampler(channels, width, up=True)
        self.norm, self.conv, self.image_up = norm, conv, image_up

    def __call__(
        self,
        h: Array,
        skips: list[Array],
        image: Array,
        temb: Array | None,
        rngs: layers.Rngs | None,
    ) -> tuple[Array, Array]:
        """Consume `skips` in order.

        `image` is the progressive output of the previous level; the lowest level ignores it.
        Returns the features for the next level and the progressive output of this one.
        """
        for block, skip in zip(self.blocks, skips):
            h = block(jnp.concatenate([h, skip], -1), temb, rngs)
        if self.attn is not None:
            h = self.attn(h)
        output = h
        if self.norm is not None and self.conv is not None:
            output = self.conv(self.act(self.norm(h)))
        if self.image_up is None:  # The lowest level, or a network without progressive output.
            image = output
        elif self.progressive == "output_skip":
            image = self.image_up(image) + output
        else:
            h = image = layers.residual(self.image_up(image), h, self.skip_rescale)
        if self.up is not None:
            h = self.up(h, temb, rngs)
        return h, image
