"""ADM, the U-Net of Dhariwal & Nichol (2021, arXiv:2105.05233), as EDM trains it on ImageNet.

Compared with NCSN++, the embedding scales and shifts each normalization, attention has several
heads and follows every block of its levels, and residual sums are not rescaled. Resampling is pixel
by pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from errors import check_name
from models import embeddings, layers, resample
from models.blocks import AttnBlockpp
from readers.image_sizes import ImageSize, sides

CHANNELS_PER_HEAD = 64
EPSILON = 1e-5
EMBEDDINGS = ("positional", "positional_log")


class ADMBlock(nnx.Module):
    """A residual block, with attention if asked for: (B, H, W, in) -> (B, H', W', features).

    `up` doubles the resolution of both branches, `down` halves it. With `remat`, the backward pass
    recomputes activations from the block's input.
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        temb_features: int,
        *,
        attends: bool = False,
        up: bool = False,
        down: bool = False,
        dropout: float,
        remat: bool,
        rngs: layers.Rngs,
    ) -> None:
        self.features, self.up, self.down = features, up, down
        self.dropout, self.remat = dropout, remat
        self.norm1 = layers.GroupNorm(in_features, epsilon=EPSILON)
        self.conv1 = layers.conv3x3(in_features, features, rngs=rngs)
        self.temb = layers.dense(temb_features, 2 * features, rngs=rngs)
        self.norm2 = layers.GroupNorm(features, epsilon=EPSILON)
        self.conv2 = layers.conv3x3(features, features, init_scale=0.0, rngs=rngs)
        is_new = in_features != features
        self.shortcut = layers.Conv1x1(in_features, features, rngs=rngs) if is_new else None
        heads = features // CHANNELS_PER_HEAD  # Narrow blocks do not attend, as in EDM.
        attention = partial(AttnBlockpp, features, skip_rescale=False, epsilon=EPSILON, rngs=rngs)
        self.attn = attention(heads=heads) if attends and heads else None

    def __call__(self, x: Array, temb: Array, rngs: layers.Rngs | None = None) -> Array:
        compute = jax.checkpoint(self._compute) if self.remat else self._compute
        return compute(x, temb, None if rngs is None else rngs.dropout())

    def _compute(self, x: Array, temb: Array, key: Array | None) -> Array:
        h = self._resample_conv(layers.swish(self.norm1(x)))
        temb = self.temb(layers.swish(temb))[:, None, None]
        scale, shift = jnp.split(temb.astype(h.dtype), 2, -1)
        h = layers.swish(self.norm2(h) * (1 + scale) + shift)
        if key is not None and self.dropout:
            h = layers.dropout(key, h, self.dropout)
        x = self._resample(x)
        x = self.conv2(h) + (x if self.shortcut is None else self.shortcut(x))
        return x if self.attn is None else self.attn(x)

    def _resample(self, x: Array) -> Array:
        if self.up:
            return resample.upsample_nearest(x)
        return resample.downsample_mean(x) if self.down else x

    def _resample_conv(self, x: Array) -> Array:
        if self.up:
            return layers.upsample_conv(self.conv1, x)
        return self.conv1(self._resample(x))


class ADM(nnx.Module):
    """Network (x, label) -> raw output of x's shape, with x (B, H, W, C) and label (B,).

    With `classes` > 0 it is also conditioned on the class of each image, an int in 0 .. classes
    (B,), where `classes` stands for "no class".

    The arguments are fields of `config.model`, except `image_size`, `num_channels`, `classes` and
    `remat`.

    Args:
      image_size, num_channels: H = W, or (H, W), and C of the images.
      nf, ch_mult, num_res_blocks: level i has nf ch_mult[i] features and num_res_blocks blocks on
        the way down, one more on the way up.
      attn_resolutions: side lengths at which there is self-attention; see `attending_levels`.
      dropout: dropout rate in all blocks.
      embedding_type: the "positional" embedding of label, or that of log(label), "positional_log".
      temb_mult: features of the embedding, as a multiple of nf.
      classes: number of classes, `data.num_classes`.
      remat: whether to recompute activations in the backward pass (`training.remat`).

    Raises:
      InputError: an option is unknown, the levels cannot halve the image size, or a layer cannot be
        divided into normalization groups.
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
        dropout: float = 0.0,
        embedding_type: str = "positional",
        temb_mult: int = 4,
        classes: int = 0,
        remat: bool = False,
        rngs: layers.Rngs,
    ) -> None:
        check_name(
            embedding_type.lower(), EMBEDDINGS, "With model.name = 'adm', model.embedding_type"
        )
        layers.check_halvings(image_size, len(ch_mult) - 1)
        self.nf, self.log_label = nf, embedding_type.lower() == "positional_log"
        features = temb_mult * nf
        self.temb1 = layers.dense(nf // 2 * 2, features, rngs=rngs)
        self.temb2 = layers.dense(features, features, rngs=rngs)
        self.class_embedding = embeddings.class_embedding(classes, features, rngs=rngs)
        block = partial(ADMBlock, temb_features=features, dropout=dropout, remat=remat, rngs=rngs)
        self.conv_in = layers.conv3x3(num_channels, nf, rngs=rngs)
        widths = [nf * multiplier for multiplier in ch_mult]
        attends = layers.attending_levels(image_size, attn_resolutions, len(widths))
        self.sides = tuple(max(sides(image_size)) >> level for level in range(len(widths)))
        skips = self._build_down(block, widths, num_res_blocks, attends)
        self._build_up(block, widths, num_res_blocks + 1, attends, skips)
        self.norm_out = layers.GroupNorm(widths[0], epsilon=EPSILON)
        self.conv_out = layers.conv3x3(widths[0], num_channels, init_scale=0.0, rngs=rngs)

    def _build_down(
        self, block: partial, widths: list[int], num_blocks: int, attends: list[bool]
    ) -> list[int]:
        """Build `down`; return the numbers of features of the states that the up path receives."""
        self.down = nnx.List()
        skips = [self.nf]
        for i, width in enumerate(widths):
            if i > 0:
                self.down.append(block(skips[-1], skips[-1], down=True))
                skips.append(skips[-1])
            for _ in range(num_blocks):
                self.down.append(block(skips[-1], width, attends=attends[i]))
                skips.append(width)
        return skips

    def _build_up(
        self,
        block: partial,
        widths: list[int],
        num_blocks: int,
        attends: list[bool],
        skips: list[int],
    ) -> None:
        """Build `up`, from the two blocks of the middle on, and the blocks' skips in `merges`."""
        channels = skips[-1]
        self.up = nnx.List([block(channels, channels, attends=True), block(channels, channels)])
        merges = [False, False]
        for i, width in reversed(list(enumerate(widths))):
            if i < len(widths) - 1:
                self.up.append(block(channels, channels, up=True))
                merges.append(False)
            for _ in range(num_blocks):
                self.up.append(block(channels + skips.pop(), width, attends=attends[i]))
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

    def embed(self, label: Array, classes: Array | None = None) -> Array:
        """Return the embedding (B, temb_mult nf) of noise levels (B,) and classes (B,)."""
        label = jnp.log(label) if self.log_label else label
        features = embeddings.timestep_embedding(label, self.nf, endpoint=False)
        half = self.nf // 2  # Cosines first.
        temb = self.temb1(jnp.roll(features[:, : 2 * half], half, -1))
        temb = self.temb2(layers.swish(temb))
        return embeddings.add_class(temb, self.class_embedding, classes)

    def __call__(
        self, x: Array, label: Array, rngs: layers.Rngs | None = None, classes: Array | None = None
    ) -> Array:
        """Return the raw output for images x; `rngs` turns dropout on."""
        temb = self.embed(label, classes)
        skips = [self.conv_in(x)]
        for block in self.down:
            skips.append(block(skips[-1], temb, rngs))
        h = skips[-1]
        for block, merges in zip(self.up, self.merges):
            h = jnp.concatenate([h, skips.pop()], -1) if merges else h
            h = block(h, temb, rngs)
        return self.conv_out(layers.swish(self.norm_out(h)))
