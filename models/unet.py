"""What all U-Nets share: options, the embedding of noise levels and classes, first and last layers.

Layers are constructed in the order of the official code, which numbers the parameters in its
checkpoints by it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array

from models import embeddings, layers
from models.blocks import BlockOptions
from models.building import NetworkOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNetOptions(NetworkOptions):
    """Options of all U-Nets.

    Attributes:
      nf, ch_mult, num_res_blocks: level i has nf ch_mult[i] features and num_res_blocks blocks on
        the way down, one more on the way up.
      attn_resolutions: side lengths at which there is self-attention; see `attending_levels`.
      dropout: dropout rate in all blocks.
      classes, vector_size, image_channels: what the network is conditioned on: the number of
        classes, the entries of a vector, and the channels of an image; see `conditions.Kinds`.
      remat: whether to recompute activations of residual blocks in the backward pass, which saves
        memory and takes more time (`training.remat`).

    Raises InputError if the levels cannot halve the image size.
    """

    nf: int
    ch_mult: Sequence[int]
    num_res_blocks: int
    attn_resolutions: Sequence[int]
    dropout: float = 0.0
    classes: int = 0
    vector_size: int = 0
    image_channels: int = 0
    remat: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        layers.check_halvings(self.image_size, self.lowest)

    @property
    def widths(self) -> list[int]:
        """The number of features of each level."""
        return [self.nf * multiplier for multiplier in self.ch_mult]

    @property
    def lowest(self) -> int:
        """The index of the level with the lowest resolution."""
        return len(self.ch_mult) - 1

    @property
    def attends(self) -> list[bool]:
        """Whether each level has self-attention."""
        return layers.attending_levels(self.image_size, self.attn_resolutions, len(self.ch_mult))

    @property
    def block(self) -> BlockOptions:
        """The options of all blocks."""
        raise NotImplementedError


class UNet(nnx.Module):
    """Score network (x, label) -> raw output of x's shape, with x (B, H, W, C) and label (B,).

    It is also conditioned on what its options state, in the form of `Kinds.arguments`: classes and
    vectors are added to the embedding of the noise level, and images are further channels of x.

    Args:
      options: the attributes of the network's `Options`, which raise errors.

    Raises:
      InputError: a layer cannot be divided into normalization groups, or a network that is not
        conditioned on the noise level has classes or vectors.
    """

    Options: type[UNetOptions] = UNetOptions
    class_position = "after"
    """Whether classes and vectors enter "before" or "after" the dense layers of the embedding."""

    def __init__(self, *, rngs: layers.Rngs, **options: Any) -> None:
        o = self.Options(**options)
        self.act = o.block.act
        self.nf, self.image_channels = o.nf, o.image_channels
        self._build_embedding(o, rngs)
        channels = o.num_channels + (o.image_channels + 1 if o.image_channels else 0)
        self.conv_in = layers.conv3x3(channels, o.nf, rngs=rngs)
        self._build_levels(o, rngs)
        self._build_output(o, rngs)

    def _build_embedding(self, o: UNetOptions, rngs: layers.Rngs) -> None:
        """Build the embedding of noise levels, classes and vectors."""
        self.in_features = self._build_noise_features(o, rngs)
        features = o.block.temb_features
        if features is None:
            self.temb1, self.temb2 = None, None
        else:
            self.temb1 = layers.dense(self.in_features, features, rngs=rngs)
            self.temb2 = layers.dense(features, features, rngs=rngs)
        is_first = self.class_position == "before" and features is not None
        class_features = self.in_features if is_first else features
        self.class_embedding, self.vector_embedding = embeddings.condition_embeddings(
            o.classes, o.vector_size, class_features, self.act, rngs=rngs
        )

    def _build_noise_features(self, o: Any, rngs: layers.Rngs) -> int:
        """Prepare `noise_features`; return their number."""
        return o.nf

    def _build_levels(self, o: Any, rngs: layers.Rngs) -> None:
        """Build the layers between the first convolution and the output."""
        raise NotImplementedError

    def _build_output(self, o: Any, rngs: layers.Rngs) -> None:
        """Build the layers from the features of the first level to the output."""
        features, scale = o.widths[0], o.block.init_scale
        self.norm_out = o.block.norm(features)
        self.conv_out = layers.conv3x3(features, o.num_channels, init_scale=scale, rngs=rngs)

    def noise_features(self, label: Array) -> Array:
        """Return the features (B, in_features) of noise levels (B,)."""
        return embeddings.timestep_embedding(label, self.in_features)

    def embed(
        self, label: Array, classes: Array | None = None, vector: Array | None = None
    ) -> Array | None:
        """Return the embedding (B, features) of noise levels (B,), classes (B,) and vectors (B, d).

        It is None if the network is not conditioned on the noise level.
        """
        if self.temb1 is None or self.temb2 is None:
            return None
        temb, is_first = self.noise_features(label), self.class_position == "before"
        known = (self.class_embedding, self.vector_embedding), classes, vector
        if is_first:
            temb = embeddings.add_condition(temb, *known)
        temb = self.temb2(self.act(self.temb1(temb)))
        return temb if is_first else embeddings.add_condition(temb, *known)

    def apply_levels(
        self, x: Array, h: Array, temb: Array | None, rngs: layers.Rngs | None
    ) -> Array:
        """Return the features of the first level on the way up, for images x with features h."""
        raise NotImplementedError

    def __call__(
        self,
        x: Array,
        label: Array,
        rngs: layers.Rngs | None = None,
        classes: Array | None = None,
        vector: Array | None = None,
        image: Array | None = None,
    ) -> Array:
        """Return the raw output for images x in [-1, 1]; `rngs` turns dropout on."""
        temb = self.embed(label, classes, vector)
        inputs = x if image is None else jnp.concatenate([x, image], -1)
        h = self.apply_levels(x, self.conv_in(inputs), temb, rngs)
        if self.norm_out is None or self.conv_out is None:
            return h
        return self.conv_out(self.act(self.norm_out(h)))
