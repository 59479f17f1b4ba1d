"""DDPM's U-Net (Ho et al. 2020, arXiv:2006.11239, Appendix B).

Layers are constructed in the order of the official score-SDE code, which numbers the parameters in
its checkpoints by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax import Array

from errors import InputError, choose
from models import blocks, embeddings, layers
from readers.image_sizes import ImageSize

NUM_GROUPS = 32
NORMALIZATIONS = {"GroupNorm": partial(layers.GroupNorm, num_groups=NUM_GROUPS)}


class ResnetBlockDDPM(blocks.ResnetBlockDDPMpp):
    """DDPM's residual block: (B, H, W, in) -> (B, H, W, features)."""


class AttnBlock(blocks.AttnBlockpp):
    """Self-attention that accepts the arguments of a residual block and ignores all but x."""

    def __call__(
        self, x: Array, temb: Array | None = None, rngs: layers.Rngs | None = None
    ) -> Array:
        return super().__call__(x)


class Level(NamedTuple):
    """One resolution: its index from the highest, its number of features, whether it attends."""

    index: int
    width: int
    attends: bool


class DDPM(nnx.Module):
    """Score network (x, label) -> raw output of x's shape, with x (B, H, W, C) and label (B,).

    With `classes` > 0 it is also conditioned on the class of each image, an int in 0 .. classes
    (B,), where `classes` stands for "no class".

    The arguments are fields of `config.model`, except `image_size`, `num_channels`, `classes` and
    `remat`.

    Args:
      image_size, num_channels: H = W, or (H, W), and C of the images.
      nf, ch_mult, num_res_blocks: level i has nf ch_mult[i] features and num_res_blocks blocks on
        the way down, one more on the way up.
      attn_resolutions: side lengths at which there is self-attention; see `attending_levels`.
      attend_after_each_up_block: whether to attend after each block on the way up, as Ho et al. do,
        or once per level, as the official score-SDE code does.
      dropout: dropout rate in all blocks.
      conditional: whether the network is conditioned on the noise level.
      resamp_with_conv: whether to convolve when resampling; otherwise 2x2 pixels are averaged and
        pixels are repeated.
      nonlinearity, normalization: activation function and normalization of all blocks.
      classes: number of classes, `data.num_classes`.
      remat: whether to recompute activations of residual blocks in the backward pass, which saves
        memory and takes more time (`training.remat`).

    Raises:
      InputError: an option is unknown, nf is not a multiple of 32, the levels cannot halve the
        image size, or a network that is not conditional has classes.
    """

    def __init__(
        self,
        *,
        image_size: ImageSize,
        num_channels: int,
        nf: int,
        ch_mult: Sequence[int],
        num_res_blocks: int,
        attn_resolutions: Sequence[int],
        attend_after_each_up_block: bool = False,
        dropout: float = 0.0,
        conditional: bool = True,
        resamp_with_conv: bool = True,
        nonlinearity: str = "swish",
        normalization: str = "GroupNorm",
        classes: int = 0,
        remat: bool = False,
        rngs: layers.Rngs,
    ) -> None:
        layers.check_halvings(image_size, len(ch_mult) - 1)
        if nf % NUM_GROUPS:
            raise InputError(
                f"model.nf = {nf} must be a multiple of {NUM_GROUPS}, the number of normalization "
                f"groups of DDPM."
            )
        norm = choose(NORMALIZATIONS, normalization, "model.normalization")
        self.act = layers.activation(nonlinearity)
        self.nf = nf
        temb_features = 4 * nf if conditional else None
        self._build_embedding(temb_features, classes, rngs)

        branch = {"num_groups": NUM_GROUPS, "skip_rescale": False, "rngs": rngs}
        options = {"act": self.act, "dropout": dropout, "remat": remat, **branch}
        block = partial(ResnetBlockDDPM, temb_features=temb_features, **options)
        attention = partial(AttnBlock, **branch)
        down = partial(blocks.Downsample, with_conv=resamp_with_conv, rngs=rngs)
        up = partial(blocks.Upsample, with_conv=resamp_with_conv, rngs=rngs)

        levels = []
        attending = layers.attending_levels(image_size, attn_resolutions, len(ch_mult))
        for i, multiplier in enumerate(ch_mult):
            levels.append(Level(i, nf * multiplier, attending[i]))
        self.conv_in = layers.conv3x3(num_channels, nf, rngs=rngs)
        skips = self._build_down(levels, nf, num_res_blocks, block, attention, down)
        channels = skips[-1]
        self.mid = nnx.List(
            [block(channels, channels), attention(channels), block(channels, channels)]
        )
        self._build_up(
            levels, skips, num_res_blocks + 1, block, attention, up, attend_after_each_up_block
        )
        channels = levels[0].width
        self.norm_out = norm(channels)
        self.conv_out = layers.conv3x3(channels, num_channels, init_scale=0.0, rngs=rngs)

    def _build_embedding(self, temb_features: int | None, classes: int, rngs: layers.Rngs) -> None:
        """Build the embedding of noise levels and classes."""
        if temb_features is None:
            self.temb1, self.temb2 = None, None
        else:
            self.temb1 = layers.dense(self.nf, temb_features, rngs=rngs)
            self.temb2 = layers.dense(temb_features, temb_features, rngs=rngs)
        self.class_embedding = embeddings.class_embedding(classes, temb_features, rngs=rngs)

    def _build_down(
        self,
        levels: list[Level],
        nf: int,
        num_blocks: int,
        block: partial,
        attention: partial,
        downsample: partial,
    ) -> list[int]:
        """Build `down`; return the numbers of features of the states passed to the up path."""
        self.down = nnx.List()
        skips = [nf]
        for level in levels:
            for _ in range(num_blocks):
                step = nnx.List([block(skips[-1], level.width)])
                # Also constructed where unused, so that a seed initializes as in version 0.5.1.
                attention_block = attention(level.width)
                if level.attends:
                    step.append(attention_block)
                self.down.append(step)
                skips.append(level.width)
            if level is not levels[-1]:
                self.down.append(nnx.List([downsample(skips[-1])]))
                skips.append(skips[-1])
        return skips

    def _build_up(
        self,
        levels: list[Level],
        skips: list[int],
        num_blocks: int,
        block: partial,
        attention: partial,
        upsample: partial,
        attend_after_each_block: bool,
    ) -> None:
        """Build `up`, whose blocks consume `skips` from the end."""
        channels = skips[-1]
        self.up = nnx.List()
        for level in reversed(levels):
            for i in range(num_blocks):
                step = nnx.List([block(channels + skips.pop(), level.width)])
                is_last = i == num_blocks - 1
                if level.attends and (is_last or attend_after_each_block):
                    step.append(attention(level.width))
                if is_last and level.index > 0:
                    step.append(upsample(level.width))
                self.up.append(step)
                channels = level.width

    def embed(self, label: Array, classes: Array | None = None) -> Array | None:
        """Return the embedding of noise levels (B,) and, if conditioned on them, classes (B,).

        Its shape is (B, 4 nf); it is None if the network is not conditional.
        """
        if self.temb1 is None or self.temb2 is None:
            return None
        temb = self.temb2(self.act(self.temb1(embeddings.timestep_embedding(label, self.nf))))
        return embeddings.add_class(temb, self.class_embedding, classes)

    def __call__(
        self, x: Array, label: Array, rngs: layers.Rngs | None = None, classes: Array | None = None
    ) -> Array:
        """Return the raw output for images x in [-1, 1]; `rngs` turns dropout on."""
        temb = self.embed(label, classes)

        def apply(step: nnx.List, h: Array) -> Array:
            for layer in step:
                h = layer(h, temb, rngs)
            return h

        skips = [self.conv_in(x)]
        for step in self.down:
            skips.append(apply(step, skips[-1]))
        h = apply(self.mid, skips[-1])
        for step in self.up:
            h = apply(step, jnp.concatenate([h, skips.pop()], -1))
        return self.conv_out(self.act(self.norm_out(h)))
