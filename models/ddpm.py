"""DDPM's U-Net (Ho et al. 2020, arXiv:2006.11239, Appendix B)."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax.numpy as jnp
from flax import nnx
from jax import Array

from errors import InputError
from models import blocks, layers
from models.building import one_of
from models.unet import UNet, UNetOptions

NUM_GROUPS = 32


class ResnetBlockDDPM(blocks.ResnetBlockDDPMpp):
    """DDPM's residual block: (B, H, W, in) -> (B, H, W, features)."""


class AttnBlock(blocks.AttnBlockpp):
    """Self-attention, under its official name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDPMOptions(UNetOptions):
    """Options of DDPM, besides those of all U-Nets.

    Attributes:
      attend_after_each_up_block: whether to attend after each block on the way up, as Ho et al. do,
        or once per level, as the official score-SDE code does.
      conditional: whether the network is conditioned on the noise level.
      resamp_with_conv: whether to convolve when resampling; otherwise 2x2 pixels are averaged and
        pixels are repeated.
      nonlinearity, normalization: activation function and normalization of all blocks.

    Raises InputError if nf is not a multiple of 32.
    """

    attend_after_each_up_block: bool = False
    conditional: bool = True
    resamp_with_conv: bool = True
    nonlinearity: str = one_of("swish", layers.ACTIVATIONS)
    normalization: str = one_of("GroupNorm", ("GroupNorm",))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nf % NUM_GROUPS:
            raise InputError(
                f"model.nf = {self.nf} must be a multiple of {NUM_GROUPS}, the number of "
                "normalization groups of DDPM."
            )

    @property
    def block(self) -> blocks.BlockOptions:
        return blocks.BlockOptions(
            temb_features=4 * self.nf if self.conditional else None,
            act=layers.ACTIVATIONS[self.nonlinearity],
            dropout=self.dropout,
            num_groups=NUM_GROUPS,
            remat=self.remat,
        )


class DDPM(UNet):
    """DDPM's network; see `UNet` for its arguments."""

    Options = DDPMOptions

    def _build_levels(self, o: DDPMOptions, rngs: layers.Rngs) -> None:
        residual = partial(ResnetBlockDDPM, options=o.block, rngs=rngs)
        attention = partial(AttnBlock, options=o.block, rngs=rngs)
        resampling = {"options": o.block, "with_conv": o.resamp_with_conv, "rngs": rngs}
        skips = [o.nf]
        self.down = nnx.List()
        for i, width in enumerate(o.widths):
            if i > 0:
                self.down.append(nnx.List([blocks.Downsample(skips[-1], skips[-1], **resampling)]))
                skips.append(skips[-1])
            for _ in range(o.num_res_blocks):
                step: nnx.List[nnx.Module] = nnx.List([residual(skips[-1], width)])
                if o.attends[i]:
                    step.append(attention(width))
                self.down.append(step)
                skips.append(width)
        channels = skips[-1]
        self.mid = nnx.List(
            [residual(channels, channels), attention(channels), residual(channels, channels)]
        )
        self.up = nnx.List()
        for i, width in reversed(list(enumerate(o.widths))):
            for j in range(o.num_res_blocks + 1):
                step: nnx.List[nnx.Module] = nnx.List([residual(channels + skips.pop(), width)])
                is_last = j == o.num_res_blocks
                if o.attends[i] and (is_last or o.attend_after_each_up_block):
                    step.append(attention(width))
                if is_last and i > 0:
                    step.append(blocks.Upsample(width, width, **resampling))
                self.up.append(step)
                channels = width

    def apply_levels(
        self, x: Array, h: Array, temb: Array | None, rngs: layers.Rngs | None
    ) -> Array:
        def apply(step: nnx.List, h: Array) -> Array:
            for layer in step:
                h = layer(h, temb, rngs)
            return h

        skips = [h]
        for step in self.down:
            skips.append(apply(step, skips[-1]))
        h = apply(self.mid, skips[-1])
        for step in self.up:
            h = apply(step, jnp.concatenate([h, skips.pop()], -1))
        return h
