"""DDPM's U-Net (Ho et al. 2020, arXiv:2006.11239, Appendix B)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax.numpy as jnp
from flax import nnx
from jax import Array

from errors import InputError, choose
from models import layers

NUM_GROUPS = 32
NORMALIZATIONS = {"GroupNorm": partial(layers.GroupNorm, num_groups=NUM_GROUPS)}


class ResnetBlockDDPM(layers.ResnetBlockDDPMpp):
    """DDPM's residual block: (B, H, W, in) -> (B, H, W, features)."""


class AttnBlock(layers.AttnBlockpp):
    """Self-attention. It takes the arguments of a residual block, to be exchangeable with one, and looks at x alone."""

    def __call__(
        self, x: Array, temb: Array | None = None, rngs: layers.Rngs | None = None
    ) -> Array:
        return super().__call__(x)


class DDPM(nnx.Module):
    """Score network (x, label) -> raw output of x's shape, with x (B, H, W, C) and label (B,).

    With `classes` > 0 it is also told the class of each image, an int in 0 .. classes (B,), where `classes` means none.

    Args (as the fields of `config.model`, but for `classes`, which is data.num_classes, and training.remat):
      image_size, num_channels: H = W and C of the images.
      nf, ch_mult, num_res_blocks: level i has nf ch_mult[i] features and num_res_blocks blocks, one more on the way up.
      attn_resolutions: heights at which there is self-attention.
      attend_after_each_up_block: on the way up, attend after each block, as Ho et al. do; else once a level, as the
        official score-SDE code does.
      resamp_with_conv: convolve when resampling, else take the mean of pixels or repeat them.
      conditional: whether the network is told the noise level.
      nonlinearity, normalization, dropout: of all blocks.
      remat: compute residual blocks anew for the gradient, which takes less memory and more time.

    Raises:
      InputError: an unknown option, nf that is no multiple of 32, or an image size that the levels cannot halve.
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
                f"model.nf = {nf} must be a multiple of {NUM_GROUPS}, DDPM's number of normalization groups."
            )
        norm = choose(NORMALIZATIONS, normalization, "model.normalization")
        self.act, self.nf = layers.activation(nonlinearity), nf
        self.temb1 = layers.dense(nf, 4 * nf, rngs=rngs) if conditional else None
        self.temb2 = layers.dense(4 * nf, 4 * nf, rngs=rngs) if conditional else None

        branch = {"num_groups": NUM_GROUPS, "skip_rescale": False, "rngs": rngs}
        temb_features = 4 * nf if conditional else None
        self.class_embedding = layers.class_embedding(classes, temb_features, rngs=rngs)
        options = {"act": self.act, "dropout": dropout, "remat": remat}
        block = partial(ResnetBlockDDPM, temb_features=temb_features, **options, **branch)
        attn = partial(AttnBlock, **branch)
        down = partial(layers.Downsample, with_conv=resamp_with_conv, rngs=rngs)
        up = partial(layers.Upsample, with_conv=resamp_with_conv, rngs=rngs)

        last, widths = len(ch_mult) - 1, [nf * multiplier for multiplier in ch_mult]
        levels = [
            (i, width, image_size >> i in tuple(attn_resolutions)) for i, width in enumerate(widths)
        ]
        self.conv_in = layers.conv3x3(num_channels, nf, rngs=rngs)
        self.down, skips = nnx.List(), [nf]
        for i, width, attends in levels:
            for _ in range(num_res_blocks):
                self.down.append(nnx.List([block(skips[-1], width)] + [attn(width)] * attends))
                skips.append(width)
            if i < last:
                self.down.append(nnx.List([down(skips[-1])]))
                skips.append(skips[-1])
        channels = skips[-1]
        self.mid = nnx.List([block(channels, channels), attn(channels), block(channels, channels)])
        self.up = nnx.List()
        for i, width, attends in reversed(levels):
            for last_block in (False,) * num_res_blocks + (True,):
                self.up.append(nnx.List([block(channels + skips.pop(), width)]))
                if attends and (last_block or attend_after_each_up_block):
                    self.up[-1].append(attn(width))
                channels = width
            if i > 0:
                self.up[-1].append(up(width))
        self.norm_out = norm(channels)
        self.conv_out = layers.conv3x3(channels, num_channels, init_scale=0.0, rngs=rngs)

    def embed(self, label: Array, classes: Array | None = None) -> Array | None:
        """The embedding of noise levels and, if the network is told them, classes: (B,), (B,) -> (B, 4 nf)."""
        if self.temb1 is None:
            return None
        temb = self.temb2(self.act(self.temb1(layers.timestep_embedding(label, self.nf))))
        return temb if self.class_embedding is None else temb + self.class_embedding(classes)

    def __call__(
        self, x: Array, label: Array, rngs: layers.Rngs | None = None, classes: Array | None = None
    ) -> Array:
        """Raw output for images x in [-1, 1]; with `rngs` dropout is on."""
        temb = self.embed(label, classes)

        def apply(steps: nnx.List, h: Array) -> Array:
            for layer in steps:
                h = layer(h, temb, rngs)
            return h

        skips = [self.conv_in(x)]
        for steps in self.down:
            skips.append(apply(steps, skips[-1]))
        h = apply(self.mid, skips[-1])
        for steps in self.up:
            h = apply(steps, jnp.concatenate([h, skips.pop()], -1))
        return self.conv_out(self.act(self.norm_out(h)))
