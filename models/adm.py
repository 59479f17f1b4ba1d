"""ADM, the U-Net of Dhariwal & Nichol (2021, arXiv:2105.05233), as EDM trains it on ImageNet.

Compared with NCSN++, the embedding scales and shifts each normalization, attention has several
heads and follows every block of its levels, and residual sums are not rescaled. Resampling is pixel
by pixel.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax.numpy as jnp
from flax import nnx
from jax import Array

from models import blocks, embeddings, layers
from models.building import one_of
from models.unet import UNet, UNetOptions

CHANNELS_PER_HEAD = 64
EPSILON = 1e-5


class ADMBlock(blocks.ResnetBlockBigGANpp):
    """A residual block, with attention if asked for: (B, H, W, in) -> (B, H', W', features).

    `up` doubles the resolution of both branches, `down` halves it.
    """

    TEMB_OUTPUTS = 2  # The embedding scales and shifts the second normalization.
    temb: nnx.Linear

    def __init__(
        self,
        in_features: int,
        features: int,
        options: blocks.BlockOptions,
        *,
        attends: bool = False,
        rngs: layers.Rngs,
        **resampling: bool,
    ) -> None:
        super().__init__(in_features, features, options, rngs=rngs, **resampling)
        # Narrow blocks do not attend, as in EDM.
        heads = features // CHANNELS_PER_HEAD if attends else 0
        self.attn = blocks.AttnBlockpp(features, options, heads=heads, rngs=rngs) if heads else None

    def make_shortcut(
        self, in_features: int, features: int, rngs: layers.Rngs
    ) -> nnx.Module | None:
        return layers.Conv1x1(in_features, features, rngs=rngs) if in_features != features else None

    def _compute(self, x: Array, temb: Array, key: Array | None) -> Array:
        h = layers.swish(self.norm1(x))
        h = layers.upsample_conv(self.conv1, h) if self.up else self.conv1(self.resample(h))
        temb = self.temb(layers.swish(temb))[:, None, None]
        scale, shift = jnp.split(temb.astype(h.dtype), 2, -1)
        h = layers.swish(self.norm2(h) * (1 + scale) + shift)
        if key is not None and self.options.dropout:
            h = layers.dropout(key, h, self.options.dropout)
        x = self.resample(x)
        x = self.conv2(h) + (x if self.shortcut is None else self.shortcut(x))
        return x if self.attn is None else self.attn(x)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ADMOptions(UNetOptions):
    """Options of ADM, besides those of all U-Nets.

    Attributes:
      embedding_type: the "positional" embedding of label, or that of log(label), "positional_log".
      temb_mult: features of the embedding, as a multiple of nf.
    """

    embedding_type: str = one_of("positional", ("positional", "positional_log"))
    temb_mult: int = 4

    @property
    def block(self) -> blocks.BlockOptions:
        return blocks.BlockOptions(
            temb_features=self.temb_mult * self.nf,
            dropout=self.dropout,
            epsilon=EPSILON,
            remat=self.remat,
        )


class ADM(UNet):
    """ADM's network; see `UNet` for its arguments."""

    Options = ADMOptions

    def _build_noise_features(self, o: ADMOptions, rngs: layers.Rngs) -> int:
        self.sides = tuple(layers.larger_sides(o.image_size, len(o.ch_mult)))
        self.log_label = o.embedding_type == "positional_log"
        return o.nf // 2 * 2

    def _build_levels(self, o: ADMOptions, rngs: layers.Rngs) -> None:
        """Build `down`, and `up` from the two blocks of the middle on.

        `merges` states which blocks of `up` receive a skip.
        """
        residual = partial(ADMBlock, options=o.block, rngs=rngs)
        skips = [o.nf]
        self.down = nnx.List()
        for i, width in enumerate(o.widths):
            if i > 0:
                self.down.append(residual(skips[-1], skips[-1], down=True))
                skips.append(skips[-1])
            for _ in range(o.num_res_blocks):
                self.down.append(residual(skips[-1], width, attends=o.attends[i]))
                skips.append(width)
        channels = skips[-1]
        self.up = nnx.List(
            [residual(channels, channels, attends=True), residual(channels, channels)]
        )
        merges = [False, False]
        for i, width in reversed(list(enumerate(o.widths))):
            if i < o.lowest:
                self.up.append(residual(channels, channels, up=True))
                merges.append(False)
            for _ in range(o.num_res_blocks + 1):
                self.up.append(residual(channels + skips.pop(), width, attends=o.attends[i]))
                merges.append(True)
                channels = width
        self.merges = tuple(merges)

    def block_names(self) -> dict[tuple[str | int, ...], str]:
        """The names of the layers in EDM's files, by their paths."""
        names: dict[tuple[str | int, ...], str] = {}
        names |= {("conv_in",): f"enc.{self.sides[0]}x{self.sides[0]}_conv"}
        names |= {("norm_out",): "out_norm", ("conv_out",): "out_conv"}
        levels = len(self.sides)
        count = (len(self.down) + 1) // levels - 1  # of blocks in a level
        down, up = [], []
        for i, side in enumerate(f"{each}x{each}" for each in self.sides):
            down += [f"enc.{side}_down"] * (i > 0)
            down += [f"enc.{side}_block{j}" for j in range(count)]
            is_lowest = i == levels - 1
            first = [f"dec.{side}_in0", f"dec.{side}_in1"] if is_lowest else [f"dec.{side}_up"]
            up = [*first, *(f"dec.{side}_block{j}" for j in range(count + 1)), *up]
        names |= {("down", i): name for i, name in enumerate(down)}
        return names | {("up", i): name for i, name in enumerate(up)}

    def noise_features(self, label: Array) -> Array:
        """Return the features (B, in_features) of noise levels (B,), cosines first."""
        label = jnp.log(label) if self.log_label else label
        features = embeddings.timestep_embedding(label, self.in_features, endpoint=False)
        return jnp.roll(features, self.in_features // 2, -1)

    def apply_levels(
        self, x: Array, h: Array, temb: Array | None, rngs: layers.Rngs | None
    ) -> Array:
        skips = [h]
        for block in self.down:
            skips.append(block(skips[-1], temb, rngs))
        h = skips[-1]
        for block, merges in zip(self.up, self.merges):
            h = jnp.concatenate([h, skips.pop()], -1) if merges else h
            h = block(h, temb, rngs)
        return h
