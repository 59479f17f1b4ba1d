"""NCSN++ and DDPM++: one U-Net with options (arXiv:2011.13456, Section 4.1 and Appendix H).

Layers are constructed in the order of the official code, which numbers the parameters in its
checkpoints by it.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jax import Array

from errors import check_name
from models import embeddings, layers
from models.ncsnpp_levels import DownLevel, LayerFactory, UpLevel
from readers.image_sizes import ImageSize

OPTIONS = {
    "progressive": ("none", "output_skip", "residual"),
    "progressive_input": ("none", "input_skip", "residual"),
    "progressive_combine": ("sum", "cat"),
    "embedding_type": ("fourier", "positional", "fourier_linear", "positional_log"),
    "class_embedding": ("after", "before"),
    "resblock_type": ("biggan", "ddpm"),
}


def check_option(field: str, value: str) -> str:
    """Return `value` in lower case; raise InputError unless it is a value of `model.field`."""
    value = value.lower()
    check_name(value, OPTIONS[field], f"model.{field}")
    return value


class NCSNpp(nnx.Module):
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
      dropout: dropout rate in all blocks.
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
      classes: number of classes, `data.num_classes`.
      remat: whether to recompute activations of residual blocks in the backward pass, which saves
        memory and takes more time (`training.remat`).

    Raises:
      InputError: an option is unknown, the levels cannot halve the image size, or a network that
        is not conditional has classes.
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
        conditional: bool = True,
        embedding_type: str = "positional",
        noise_mult: int = 0,
        temb_mult: int = 4,
        class_embedding: str = "after",
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
        temb_features = temb_mult * nf if conditional else None
        make = LayerFactory(
            temb_features=temb_features,
            image_channels=num_channels,
            act=layers.activation(nonlinearity),
            dropout=dropout,
            resblock_type=check_option("resblock_type", resblock_type),
            resamp_with_conv=resamp_with_conv,
            fir=fir,
            fir_kernel=fir_kernel,
            progressive=check_option("progressive", progressive),
            progressive_input=check_option("progressive_input", progressive_input),
            progressive_combine=check_option("progressive_combine", progressive_combine),
            skip_rescale=skip_rescale,
            init_scale=init_scale,
            remat=remat,
            rngs=rngs,
        )
        layers.check_halvings(image_size, len(ch_mult) - 1)
        self.act = make.act
        self.nf = nf
        self.progressive = make.progressive
        self.embedding_type = check_option("embedding_type", embedding_type)
        self.class_position = check_option("class_embedding", class_embedding)
        self._build_embedding(noise_mult, fourier_scale, temb_features, classes, rngs)
        widths = [nf * multiplier for multiplier in ch_mult]
        attends = layers.attending_levels(image_size, attn_resolutions, len(widths))
        self._build_levels(make, nf, widths, num_res_blocks, attends)

    def _build_embedding(
        self,
        noise_mult: int,
        fourier_scale: float,
        temb_features: int | None,
        classes: int,
        rngs: layers.Rngs,
    ) -> None:
        """Build the embedding of noise levels and classes."""
        is_fourier = self.embedding_type.startswith("fourier")
        self.in_features = in_features = self.nf * (noise_mult or 1 + is_fourier)
        if is_fourier:
            linear = self.embedding_type == "fourier_linear"
            self.fourier = embeddings.GaussianFourierProjection(
                in_features // 2, fourier_scale, linear=linear, rngs=rngs
            )
        else:
            self.fourier = None
        if temb_features is None:
            self.temb1, self.temb2 = None, None
        else:
            self.temb1 = layers.dense(in_features, temb_features, rngs=rngs)
            self.temb2 = layers.dense(temb_features, temb_features, rngs=rngs)
        is_first = self.class_position == "before" and temb_features is not None
        class_features = in_features if is_first else temb_features
        self.class_embedding = embeddings.class_embedding(classes, class_features, rngs=rngs)

    def _build_levels(
        self, make: LayerFactory, nf: int, widths: list[int], num_blocks: int, attends: list[bool]
    ) -> None:
        """Build the layers from the input image to the output."""
        lowest = len(widths) - 1
        self.conv_in = layers.conv3x3(make.image_channels, nf, rngs=make.rngs)
        skips = [nf]
        image_channels = make.image_channels
        self.down = nnx.List()
        for i, width in enumerate(widths):
            level = DownLevel(
                make,
                skips[-1],
                width,
                num_blocks,
                attends=attends[i],
                lowest=i == lowest,
                image_channels=image_channels,
            )
            self.down.append(level)
            skips.extend(level.skips)
            image_channels = level.image_channels
        channels = skips[-1]
        self.mid1 = make.block(channels, channels)
        self.mid_attn = make.attention(channels)
        self.mid2 = make.block(channels, channels)
        self.up = nnx.List()
        for i, width in reversed(list(enumerate(widths))):
            level_skips = [skips.pop() for _ in range(num_blocks + 1)]
            is_end = {"lowest": i == lowest, "highest": i == 0}
            level = UpLevel(make, channels, level_skips, width, attends=attends[i], **is_end)
            self.up.append(level)
            channels = width
        if make.progressive == "output_skip":
            self.norm_out, self.conv_out = None, None
        else:
            self.norm_out = layers.GroupNorm(channels)
            self.conv_out = make.to_image(channels)

    def embed(self, label: Array, classes: Array | None = None) -> Array | None:
        """Return the embedding of noise levels (B,) and, if conditioned on them, classes (B,).

        Its shape is (B, temb_mult nf); it is None if the network is not conditional.
        """
        if self.temb1 is None or self.temb2 is None:
            return None
        if self.embedding_type == "positional_log":
            label = jnp.log(label)
        if self.fourier is None:
            temb = embeddings.timestep_embedding(label, self.in_features)
        else:
            temb = self.fourier(label)
        if self.class_position == "before":
            temb = embeddings.add_class(temb, self.class_embedding, classes)
            return self.temb2(self.act(self.temb1(temb)))
        temb = self.temb2(self.act(self.temb1(temb)))
        return embeddings.add_class(temb, self.class_embedding, classes)

    def __call__(
        self, x: Array, label: Array, rngs: layers.Rngs | None = None, classes: Array | None = None
    ) -> Array:
        """Return the raw output for images x in [-1, 1]; `rngs` turns dropout on."""
        temb = self.embed(label, classes)
        skips = [self.conv_in(x)]
        image = x
        for level in self.down:
            skips, image = level(skips, image, temb, rngs)
        h = self.mid1(skips[-1], temb, rngs)
        h = self.mid2(self.mid_attn(h), temb, rngs)
        image = h  # Ignored by the lowest level.
        for level in self.up:
            level_skips = [skips.pop() for _ in level.blocks]
            h, image = level(h, level_skips, image, temb, rngs)
        if self.norm_out is None or self.conv_out is None:
            return image
        return self.conv_out(self.act(self.norm_out(h)))
