"""NCSN++ and DDPM++: one U-Net with options (arXiv:2011.13456, Section 4.1 and Appendix H)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax import Array

from errors import check_name
from models import layers

OPTIONS = {
    "progressive": ("none", "output_skip", "residual"),
    "progressive_input": ("none", "input_skip", "residual"),
    "progressive_combine": ("sum", "cat"),
    "embedding_type": ("fourier", "positional"),
    "resblock_type": ("biggan", "ddpm"),
}


class Parts(NamedTuple):
    """The options that all levels share, and constructors (in_features, features) -> layer that know the others."""

    block: Callable[..., nnx.Module]
    attn: Callable[..., nnx.Module]
    down: Callable[..., nnx.Module]
    up: Callable[..., nnx.Module]
    image_down: Callable[..., nnx.Module]
    image_up: Callable[..., nnx.Module]
    act: layers.Activation
    image_channels: int
    progressive: str
    progressive_input: str
    progressive_combine: str
    skip_rescale: bool
    init_scale: float
    rngs: layers.Rngs


class DownLevel(nnx.Module):
    """Residual blocks at one resolution and, but for the lowest, a step to the next one, where images enter again.

    `skips` holds the widths of the states that the level leaves for the up path, `image_channels` the width of the
    progressive input after it.
    """

    def __init__(
        self,
        parts: Parts,
        channels: int,
        width: int,
        num_blocks: int,
        attends: bool,
        lowest: bool,
        image_channels: int,
    ) -> None:
        widths = [channels] + [width] * num_blocks
        self.steps = nnx.List()
        for a, b in zip(widths, widths[1:]):
            self.steps.append(
                nnx.List([parts.block(a, b)] + [parts.attn(b) for _ in range(attends)])
            )
        self.skip_rescale = parts.skip_rescale
        channels, skips = widths[-1], widths[1:]
        kind = "none" if lowest else parts.progressive_input
        self.down = None if lowest else parts.down(channels, channels)
        as_skip, method = kind == "input_skip", parts.progressive_combine
        image_features = channels if kind == "residual" else image_channels
        self.image_down = (
            None if kind == "none" else parts.image_down(image_channels, image_features)
        )
        self.combine = (
            layers.Combine(image_channels, channels, method, rngs=parts.rngs) if as_skip else None
        )
        channels *= 2 if as_skip and method == "cat" else 1
        self.skips, self.image_channels = (
            tuple(skips if lowest else [*skips, channels]),
            image_features,
        )

    def __call__(
        self, skips: list[Array], image: Array, temb: Array | None, rngs: layers.Rngs | None
    ) -> tuple[list[Array], Array]:
        """Appends states to `skips`, whose last one is the input; returns them and the next progressive input."""
        for block, *attn in self.steps:
            h = block(skips[-1], temb, rngs)
            skips = [*skips, attn[0](h) if attn else h]
        if self.down is not None:
            h = self.down(skips[-1], temb, rngs)
            if self.image_down is not None:
                image = self.image_down(image)
                h = (
                    self.combine(image, h)
                    if self.combine
                    else layers.residual(image, h, self.skip_rescale)
                )
                image = image if self.combine else h
            skips = [*skips, h]
        return skips, image


class UpLevel(nnx.Module):
    """Residual blocks that take up the skips of one resolution, the image that leaves there, and a step upwards."""

    def __init__(
        self,
        parts: Parts,
        channels: int,
        skips: Sequence[int],
        width: int,
        attends: bool,
        lowest: bool,
        highest: bool,
    ) -> None:
        widths = [channels] + [width] * len(skips)
        self.blocks = nnx.List(
            [parts.block(a + skip, b) for a, skip, b in zip(widths, skips, widths[1:])]
        )
        self.attn = parts.attn(width) if attends else None
        self.as_skip, self.act, self.skip_rescale = (
            parts.progressive == "output_skip",
            parts.act,
            parts.skip_rescale,
        )
        as_residual = parts.progressive == "residual"
        makes_image = self.as_skip or (as_residual and lowest)
        features, scale = (parts.image_channels, parts.init_scale) if self.as_skip else (width, 1.0)
        self.norm = layers.GroupNorm(width) if makes_image else None
        self.conv = (
            layers.conv3x3(width, features, init_scale=scale, rngs=parts.rngs)
            if makes_image
            else None
        )
        takes_image = (self.as_skip or as_residual) and not lowest
        self.image_up = (
            parts.image_up(features if self.as_skip else channels, features)
            if takes_image
            else None
        )
        self.up = None if highest else parts.up(width, width)

    def __call__(
        self,
        h: Array,
        skips: list[Array],
        image: Array | None,
        temb: Array | None,
        rngs: layers.Rngs | None,
    ) -> tuple[Array, Array | None]:
        """Takes `skips` in order; returns the features for the next level and the progressive output so far."""
        for block, skip in zip(self.blocks, skips):
            h = block(jnp.concatenate([h, skip], -1), temb, rngs)
        h = self.attn(h) if self.attn else h
        out = self.conv(self.act(self.norm(h))) if self.conv else h
        if self.image_up is None:  # No image yet, or none ever.
            image = out
        elif self.as_skip:
            image = self.image_up(image) + out
        else:
            h = image = layers.residual(self.image_up(image), h, self.skip_rescale)
        return self.up(h, temb, rngs) if self.up else h, image


class NCSNpp(nnx.Module):
    """Score network (x, label) -> raw output of x's shape, with x (B, H, W, C) and label (B,).

    With `classes` > 0 it is also told the class of each image, an int in 0 .. classes (B,), where `classes` means none.

    Args (as the fields of `config.model`, but for `classes`, which is data.num_classes, and training.remat):
      image_size, num_channels: H = W and C of the images.
      nf, ch_mult, num_res_blocks: level i has nf ch_mult[i] features and num_res_blocks blocks, one more on the way up.
      attn_resolutions: heights at which there is self-attention.
      conditional: whether the network is told the noise level.
      embedding_type: "fourier" features of log(label), or the "positional" embedding of label.
      resblock_type: "biggan" blocks resample inside a block, "ddpm" ones in a layer of its own.
      fir, fir_kernel: resample through this FIR filter, else by pixels; resamp_with_conv: a "ddpm" resampler convolves.
      progressive, progressive_input, progressive_combine: how images leave and enter at lower resolutions: as skips
        beside the features ("output_skip", "input_skip") or as residuals added to them (StyleGAN2, Figure 7).
      skip_rescale: divide residual sums by sqrt(2). init_scale: scale of the last layer of each branch.
      fourier_scale: standard deviation of the random frequencies. nonlinearity, dropout: of all blocks.
      remat: compute residual blocks anew for the gradient, which takes less memory and more time.

    Raises:
      InputError: an unknown option, or an image size that the levels cannot halve.
    """

    def __init__(
        self,
        *,
        image_size: int,
        num_channels: int,
        nf: int,
        ch_mult: Sequence[int],
        num_res_blocks: int,
        attn_resolutions: Sequence[int],
        dropout: float = 0.0,
        conditional: bool = True,
        embedding_type: str = "positional",
        fourier_scale: float = 16.0,
        resblock_type: str = "biggan",
        resamp_with_conv: bool = True,
        fir: bool = False,
        fir_kernel: Sequence[float] = (1, 3, 3, 1),
        progressive: str = "none",
        progressive_input: str = "none",
        progressive_combine: str = "sum",
        skip_rescale: bool = True,
        init_scale: float = 0.0,
        nonlinearity: str = "swish",
        classes: int = 0,
        remat: bool = False,
        rngs: layers.Rngs,
    ) -> None:
        options = {name: value.lower() for name, value in locals().items() if name in OPTIONS}
        for name, value in options.items():
            check_name(value, OPTIONS[name], f"model.{name}")
        layers.check_halvings(image_size, len(ch_mult) - 1)
        embedding_type, resblock_type = options.pop("embedding_type"), options.pop("resblock_type")
        self.act, self.nf = layers.activation(nonlinearity), nf
        self.as_skip = options["progressive"] == "output_skip"
        self.fourier = (
            layers.GaussianFourierProjection(nf, fourier_scale, rngs=rngs)
            if embedding_type == "fourier"
            else None
        )
        self.temb1 = (
            layers.dense(2 * nf if self.fourier else nf, 4 * nf, rngs=rngs) if conditional else None
        )
        self.temb2 = layers.dense(4 * nf, 4 * nf, rngs=rngs) if conditional else None
        self.class_embedding = layers.class_embedding(
            classes, 4 * nf if conditional else None, rngs=rngs
        )

        filters = {"fir": fir, "fir_kernel": fir_kernel}
        branch = {"skip_rescale": skip_rescale, "init_scale": init_scale, "rngs": rngs}
        block_args = {
            "temb_features": 4 * nf if conditional else None,
            "act": self.act,
            "dropout": dropout,
            **branch,
        }
        block_args["remat"] = remat
        if resblock_type == "biggan":
            block = partial(layers.ResnetBlockBigGANpp, **block_args, **filters)
            down, up = partial(block, down=True), partial(block, up=True)
        else:
            block = partial(layers.ResnetBlockDDPMpp, **block_args)
            down = partial(layers.Downsample, with_conv=resamp_with_conv, **filters, rngs=rngs)
            up = partial(layers.Upsample, with_conv=resamp_with_conv, **filters, rngs=rngs)
        with_conv = {
            name: options[name] == "residual" for name in ("progressive", "progressive_input")
        }
        parts = Parts(
            block=block,
            attn=partial(layers.AttnBlockpp, **branch),
            down=down,
            up=up,
            image_down=partial(
                layers.Downsample, with_conv=with_conv["progressive_input"], **filters, rngs=rngs
            ),
            image_up=partial(
                layers.Upsample, with_conv=with_conv["progressive"], **filters, rngs=rngs
            ),
            act=self.act,
            image_channels=num_channels,
            **options,
            **branch,
        )
        widths = [nf * multiplier for multiplier in ch_mult]
        attends = [image_size >> i in tuple(attn_resolutions) for i in range(len(widths))]
        self._build(parts, nf, widths, num_res_blocks, attends)

    def _build(
        self, parts: Parts, nf: int, widths: list[int], num_blocks: int, attends: list[bool]
    ) -> None:
        """The layers from image to image; built in the order of the official code, by which its checkpoints number."""
        last = len(widths) - 1
        self.conv_in = layers.conv3x3(parts.image_channels, nf, rngs=parts.rngs)
        self.down, skips, image_channels = nnx.List(), [nf], parts.image_channels
        for i, width in enumerate(widths):
            level = DownLevel(
                parts, skips[-1], width, num_blocks, attends[i], i == last, image_channels
            )
            self.down.append(level)
            skips, image_channels = [*skips, *level.skips], level.image_channels
        channels = skips[-1]
        self.mid1, self.mid_attn = parts.block(channels, channels), parts.attn(channels)
        self.mid2, self.up = parts.block(channels, channels), nnx.List()
        for i, width in reversed(list(enumerate(widths))):
            taken = [skips.pop() for _ in range(num_blocks + 1)]
            self.up.append(UpLevel(parts, channels, taken, width, attends[i], i == last, i == 0))
            channels = width
        out = {"init_scale": parts.init_scale, "rngs": parts.rngs}
        self.norm_out = None if self.as_skip else layers.GroupNorm(channels)
        self.conv_out = (
            None if self.as_skip else layers.conv3x3(channels, parts.image_channels, **out)
        )

    def embed(self, label: Array, classes: Array | None = None) -> Array | None:
        """The embedding of noise levels and, if the network is told them, classes: (B,), (B,) -> (B, 4 nf)."""
        if self.temb1 is None:
            return None
        temb = self.fourier(label) if self.fourier else layers.timestep_embedding(label, self.nf)
        temb = self.temb2(self.act(self.temb1(temb)))
        return temb if self.class_embedding is None else temb + self.class_embedding(classes)

    def __call__(
        self, x: Array, label: Array, rngs: layers.Rngs | None = None, classes: Array | None = None
    ) -> Array:
        """Raw output for images x in [-1, 1]; with `rngs` dropout is on."""
        temb = self.embed(label, classes)
        skips, image = [self.conv_in(x)], x
        for level in self.down:
            skips, image = level(skips, image, temb, rngs)
        h = self.mid1(skips[-1], temb, rngs)
        h = self.mid2(self.mid_attn(h), temb, rngs)
        image = None
        for level in self.up:
            taken = [skips.pop() for _ in level.blocks]
            h, image = level(h, taken, image, temb, rngs)
        return image if self.as_skip else self.conv_out(self.act(self.norm_out(h)))
