"""A residual MLP for events of any shape with few entries, such as vectors."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array

from models import embeddings, layers
from models.building import NetworkOptions, one_of
from readers.image_sizes import sides


@dataclasses.dataclass(frozen=True, kw_only=True)
class MLPOptions(NetworkOptions):
    """Options of the MLP. An event has the shape (*sides of image_size, num_channels).

    Attributes:
      nf: features of a hidden layer.
      num_res_blocks: residual blocks.
      dropout: dropout rate in all blocks.
      nonlinearity: activation function.
      classes, vector_size: what the network is conditioned on; see `conditions.Kinds`.
      vector_at: where the vector enters: "input", beside the event, or "embedding", with the noise
        level. The first one overfits less (docs/simulations.md).
    """

    nf: int = 128
    num_res_blocks: int = 3
    dropout: float = 0.0
    nonlinearity: str = one_of("swish", layers.ACTIVATIONS)
    classes: int = 0
    vector_size: int = 0
    vector_at: str = one_of("embedding", ("embedding", "input"))

    @property
    def size(self) -> int:
        """The number of entries of an event."""
        return math.prod((*sides(self.image_size), self.num_channels))


class Block(nnx.Module):
    """A residual block (B, nf) -> (B, nf), whose first layer the embedding scales and shifts.

    See Perez et al. 2018 (FiLM, arXiv:1709.07871).
    """

    def __init__(self, o: MLPOptions, rngs: layers.Rngs) -> None:
        self.act, self.rate = layers.ACTIVATIONS[o.nonlinearity], o.dropout
        self.norm = nnx.LayerNorm(o.nf, use_bias=False, use_scale=False, rngs=rngs)
        self.film = layers.dense(o.nf, 2 * o.nf, rngs=rngs)
        self.dense1 = layers.dense(o.nf, o.nf, rngs=rngs)
        self.dense2 = _zero_dense(o.nf, o.nf, rngs)

    def __call__(self, h: Array, embedding: Array, rngs: layers.Rngs | None) -> Array:
        scale, shift = jnp.split(self.film(embedding), 2, -1)
        y = self.act(self.dense1(self.act(self.norm(h) * (1 + scale) + shift)))
        if rngs is not None and self.rate:
            y = layers.dropout(rngs.dropout(), y, self.rate)
        return h + self.dense2(y)


class MLP(nnx.Module):
    """Score network (x, label) -> output of x's shape, for x (B, ...) and label (B,).

    It is also conditioned on what its options state, in the form of `Kinds.arguments`.
    """

    Options = MLPOptions

    def __init__(self, *, rngs: layers.Rngs, **options: Any) -> None:
        o = self.Options(**options)
        self.nf, self.act = o.nf, layers.ACTIVATIONS[o.nonlinearity]
        self.temb1 = layers.dense(o.nf, o.nf, rngs=rngs)
        self.temb2 = layers.dense(o.nf, o.nf, rngs=rngs)
        size = o.vector_size if o.vector_at == "input" else 0
        self.class_embedding, self.vector_embedding = embeddings.condition_embeddings(
            o.classes, o.vector_size - size, o.nf, self.act, rngs=rngs
        )
        self.vector_in = layers.dense(size + 1, o.nf, rngs=rngs) if size else None
        self.dense_in = layers.dense(o.size, o.nf, rngs=rngs)
        self.blocks = nnx.List([Block(o, rngs) for _ in range(o.num_res_blocks)])
        self.dense_out = _zero_dense(o.nf, o.size, rngs)

    def __call__(
        self,
        x: Array,
        label: Array,
        rngs: layers.Rngs | None = None,
        classes: Array | None = None,
        vector: Array | None = None,
    ) -> Array:
        """Return the raw output for events x; `rngs` turns dropout on."""
        features = embeddings.timestep_embedding(label, self.nf)
        embedding = self.temb2(self.act(self.temb1(features.astype(x.dtype))))
        tables = self.class_embedding, self.vector_embedding
        embedding = embeddings.add_condition(embedding, tables, classes, vector)
        h, embedding = self.dense_in(x.reshape(len(x), -1)), self.act(embedding)
        h = embeddings.add_condition(h, (None, self.vector_in), None, vector)
        for block in self.blocks:
            h = block(h, embedding, rngs)
        return self.dense_out(self.act(h)).reshape(x.shape)


def _zero_dense(in_features: int, features: int, rngs: layers.Rngs) -> nnx.Linear:
    """Return a linear layer that starts as 0."""
    return nnx.Linear(in_features, features, kernel_init=nnx.initializers.zeros, rngs=rngs)
