"""The levels of NCSN++'s U-Net: all layers at one resolution, on the way down or up.

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


@dataclasses.dataclass(frozen=True)
class LayerFactory:
    """Constructs layers with the options that all levels share; see `NCSNpp` for the options."""

    temb_features: int | None
    image_channels: int
    act: layers.Activation
    dropout: float
    resblock_type: str
    resamp_with_conv: bool
    fir: bool
    fir_kernel: Sequence[float]
    progressive: str
    progressive_input: str
    progressive_combine: str
    skip_rescale: bool
    init_scale: float
    remat: bool
    rngs: layers.Rngs

    def block(
        self, in_features: int, features: int, *, up: bool = False, down: bool = False
    ) -> nnx.Module:
        """Return a residual block; only "biggan" blocks can change the resolution."""
        options = {
            "act": self.act,
            "dropout": self.dropout,
            "skip_rescale": self.skip_rescale,
            "init_scale": self.init_scale,
            "remat": self.remat,
            "rngs": self.rngs,
        }
        if self.resblock_type == "ddpm":
            return blocks.ResnetBlockDDPMpp(in_features, features, self.temb_features, **options)
        options |= {"up": up, "down": down, "fir": self.fir, "fir_kernel": self.fir_kernel}
        return blocks.ResnetBlockBigGANpp(in_features, features, self.temb_features, **options)

    def attention(self, features: int) -> nnx.Module:
        """Return a self-attention block."""
        return blocks.AttnBlockpp(
            features, skip_rescale=self.skip_rescale, init_scale=self.init_scale, rngs=self.rngs
        )

    def down(self, features: int) -> nnx.Module:
        """Return the layer or block that halves the resolution of features."""
        if self.resblock_type == "biggan":
            return self.block(features, features, down=True)
        return self._resampler(blocks.Downsample, features, features, self.resamp_with_conv)

    def up(self, features: int) -> nnx.Module:
        """Return the layer or block that doubles the resolution of features."""
        if self.resblock_type == "biggan":
            return self.block(features, features, up=True)
        return self._resampler(blocks.Upsample, features, features, self.resamp_with_conv)

    def image_down(self, in_features: int, features: int) -> nnx.Module:
        """Return the layer that halves the resolution of the progressive input."""
        with_conv = self.progressive_input == "residual"
        return self._resampler(blocks.Downsample, in_features, features, with_conv)

    def image_up(self, in_features: int, features: int) -> nnx.Module:
        """Return the layer that doubles the resolution of the progressive output."""
        with_conv = self.progressive == "residual"
        return self._resampler(blocks.Upsample, in_features, features, with_conv)

    def combine(self, features: int) -> nnx.Module:
        """Return the layer that merges the progressive input, an image, into features."""
        method = self.progressive_combine
        return blocks.Combine(self.image_channels, features, method, rngs=self.rngs)

    def to_image(self, features: int) -> nnx.Module:
        """Return the convolution from features to an image."""
        return layers.conv3x3(
            features, self.image_channels, init_scale=self.init_scale, rngs=self.rngs
        )

    def _resampler(
        self, kind: type[blocks.Resampler], in_features: int, features: int, with_conv: bool
    ) -> nnx.Module:
        return kind(
            in_features,
            features,
            with_conv=with_conv,
            fir=self.fir,
            fir_kernel=self.fir_kernel,
            rngs=self.rngs,
        )


class DownLevel(nnx.Module):
    """Residual blocks at one resolution and, except at the lowest, the step to the next.

    Attributes:
      skips: the numbers of features of the states that this level passes to the up path.
      image_channels: the number of channels of the progressive input after this level.
    """

    def __init__(
        self,
        make: LayerFactory,
        channels: int,
        width: int,
        num_blocks: int,
        *,
        attends: bool,
        lowest: bool,
        image_channels: int,
    ) -> None:
        self.skip_rescale = make.skip_rescale
        self.steps = nnx.List()
        for _ in range(num_blocks):
            step = nnx.List([make.block(channels, width)])
            if attends:
                step.append(make.attention(width))
            self.steps.append(step)
            channels = width
        self.skips = (width,) * num_blocks
        self.image_channels = image_channels
        if lowest:
            self.down, self.image_down, self.combine = None, None, None
        else:
            self._build_transition(make, channels)

    def _build_transition(self, make: LayerFactory, channels: int) -> None:
        """Build the step to the next resolution, where the progressive input is merged."""
        self.down = make.down(channels)
        image_down, combine = None, None
        if make.progressive_input == "residual":
            image_down = make.image_down(self.image_channels, channels)
            self.image_channels = channels
        elif make.progressive_input == "input_skip":
            image_down = make.image_down(self.image_channels, self.image_channels)
            combine = make.combine(channels)
            if make.progressive_combine == "cat":
                channels *= 2
        self.image_down, self.combine = image_down, combine
        self.skips = (*self.skips, channels)

    def __call__(
        self, skips: list[Array], image: Array, temb: Array | None, rngs: layers.Rngs | None
    ) -> tuple[list[Array], Array]:
        """Append states to `skips`, whose last one is the input.

        Returns the list of states and the next progressive input.
        """
        for block, *attention in self.steps:
            h = block(skips[-1], temb, rngs)
            if attention:
                h = attention[0](h)
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
    """

    def __init__(
        self,
        make: LayerFactory,
        channels: int,
        skips: Sequence[int],
        width: int,
        *,
        attends: bool,
        lowest: bool,
        highest: bool,
    ) -> None:
        self.act = make.act
        self.progressive = make.progressive
        self.skip_rescale = make.skip_rescale
        in_features = channels
        self.blocks = nnx.List()
        for skip in skips:
            self.blocks.append(make.block(in_features + skip, width))
            in_features = width
        self.attn = make.attention(width) if attends else None
        self._build_output(make, channels, width, lowest)
        self.up = None if highest else make.up(width)

    def _build_output(self, make: LayerFactory, channels: int, width: int, lowest: bool) -> None:
        """Build the layers of the progressive output: `norm`, `conv` and `image_up`."""
        norm, conv, image_up = None, None, None
        if make.progressive == "output_skip":
            norm = layers.GroupNorm(width)
            conv = make.to_image(width)
            if not lowest:
                image_up = make.image_up(make.image_channels, make.image_channels)
        elif make.progressive == "residual" and lowest:
            norm = layers.GroupNorm(width)
            conv = layers.conv3x3(width, width, rngs=make.rngs)
        elif make.progressive == "residual":
            image_up = make.image_up(channels, width)
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
