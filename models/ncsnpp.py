"""NCSN++ and DDPM++: one U-Net with options (arXiv:2011.13456, Section 4.1 and Appendix H)."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jax import Array

from models import embeddings, layers
from models.ncsnpp_levels import DownLevel, LayerFactory, NCSNppOptions, UpLevel
from models.unet import UNet


class NCSNpp(UNet):
    """NCSN++'s network; see `UNet` for its arguments and `NCSNppOptions` for its options."""

    Options = NCSNppOptions

    def _build_noise_features(self, o: NCSNppOptions, rngs: layers.Rngs) -> int:
        self.embedding_type, self.class_position = o.embedding_type, o.class_embedding
        is_fourier = o.embedding_type.startswith("fourier")
        features = o.nf * (o.noise_mult or 1 + is_fourier)
        if is_fourier:
            linear = o.embedding_type == "fourier_linear"
            self.fourier = embeddings.GaussianFourierProjection(
                features // 2, o.fourier_scale, linear=linear, rngs=rngs
            )
        else:
            self.fourier = None
        return features

    def _build_levels(self, o: NCSNppOptions, rngs: layers.Rngs) -> None:
        make = LayerFactory(o, rngs)
        skips, image_channels = [o.nf], o.num_channels
        self.down = nnx.List()
        for i in range(len(o.widths)):
            level = DownLevel(make, i, skips[-1], image_channels)
            self.down.append(level)
            skips.extend(level.skips)
            image_channels = level.image_channels
        channels = skips[-1]
        self.mid1 = make.block(channels, channels)
        self.mid_attn = make.attention(channels)
        self.mid2 = make.block(channels, channels)
        self.up = nnx.List()
        for i, width in reversed(list(enumerate(o.widths))):
            level_skips = [skips.pop() for _ in range(o.num_res_blocks + 1)]
            self.up.append(UpLevel(make, i, channels, level_skips))
            channels = width

    def _build_output(self, o: NCSNppOptions, rngs: layers.Rngs) -> None:
        if o.progressive == "output_skip":  # The levels return the image.
            self.norm_out, self.conv_out = None, None
        else:
            super()._build_output(o, rngs)

    def noise_features(self, label: Array) -> Array:
        if self.fourier is not None:
            return self.fourier(label)
        is_log = self.embedding_type == "positional_log"
        return super().noise_features(jnp.log(label) if is_log else label)

    def apply_levels(
        self, x: Array, h: Array, temb: Array | None, rngs: layers.Rngs | None
    ) -> Array:
        skips, image = [h], x
        for level in self.down:
            skips, image = level(skips, image, temb, rngs)
        h = self.mid1(skips[-1], temb, rngs)
        h = self.mid2(self.mid_attn(h), temb, rngs)
        image = h  # Ignored by the lowest level.
        for level in self.up:
            level_skips = [skips.pop() for _ in level.blocks]
            h, image = level(h, level_skips, image, temb, rngs)
        return h if self.conv_out is not None else image
