"""Embeddings of noise levels, classes and vectors, which the networks are conditioned on.

Class names are those of the official code, because its checkpoints address parameters by them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from errors import InputError
from models.layers import Activation, Rngs, dense


def timestep_embedding(
    label: Array, features: int, max_positions: float = 10000.0, *, endpoint: bool = True
) -> Array:
    """Return the sinusoidal embedding (Vaswani et al. 2017), (B,) -> (B, features), sines first.

    With `endpoint`, the lowest frequency is 1 / max_positions, else slightly higher.
    """
    half = features // 2
    log_spacing = math.log(max_positions) / max(half - endpoint, 1)
    frequencies = jnp.exp(jnp.arange(half, dtype=jnp.float32) * -log_spacing)
    angles = label.astype(jnp.float32)[:, None] * frequencies[None, :]
    embedding = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)
    return jnp.pad(embedding, ((0, 0), (0, features % 2)))


class GaussianFourierProjection(nnx.Module):
    """Random Fourier features of the label's logarithm: (B,) -> (B, 2 features).

    See Tancik et al. (2020).

    With `linear`, they are features of the label itself. W is not trained; `models.building.FIXED`
    is its name.
    """

    def __init__(self, features: int, scale: float, *, linear: bool = False, rngs: Rngs) -> None:
        self.linear = linear
        self.W = nnx.Param(scale * jax.random.normal(rngs.params(), (features,)))

    def __call__(self, label: Array) -> Array:
        # Angles reach thousands of radians: another order of factors changes the features by 1e-4.
        W = jax.lax.stop_gradient(self.W[...])
        if self.linear:
            angles = label[:, None] * (2 * jnp.pi * W)[None, :]
        else:
            angles = jnp.log(label)[:, None] * W[None, :] * 2 * jnp.pi
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)


class VectorEmbedding(nnx.Module):
    """Two dense layers, whose output is added to the embedding: (B, d + 1) -> (B, features)."""

    def __init__(self, size: int, features: int, act: Activation, *, rngs: Rngs) -> None:
        self.act = act
        self.dense1 = dense(size + 1, features, rngs=rngs)
        self.dense2 = dense(features, features, rngs=rngs)

    def __call__(self, vector: Array) -> Array:
        return self.dense2(self.act(self.dense1(vector)))


def condition_embeddings(
    classes: int, vector_size: int, features: int | None, act: Activation, *, rngs: Rngs
) -> tuple[nnx.Embed | None, VectorEmbedding | None]:
    """Return the embeddings of classes and of vectors; None for each one whose size is 0.

    The first is a table with one row per class and a last row for "no class". The network adds them
    to its embedding of the noise level, which has `features` features. Raises InputError if there
    is no such embedding (`features` is None).
    """
    if features is None and (classes or vector_size):
        field = f"num_classes = {classes}" if classes else f"vector_size = {vector_size}"
        raise InputError(
            f"data.{field} needs model.conditional = True, because conditions are added to the "
            "embedding of the noise level."
        )
    table = nnx.Embed(classes + 1, features or 0, rngs=rngs) if classes else None
    size = vector_size
    return table, VectorEmbedding(size, features or 0, act, rngs=rngs) if size else None


def add_condition(
    temb: Array,
    embeddings: tuple[Callable[[Array], Array] | None, Callable[[Array], Array] | None],
    classes: Array | None,
    vector: Array | None,
) -> Array:
    """Return temb (B, features) plus the embeddings of classes (B,) and vectors (B, d + 1).

    `embeddings` is the result of `condition_embeddings`. Raises ValueError for a missing condition.
    """
    for embedding, value in zip(embeddings, (classes, vector)):
        if embedding is None:
            continue
        if value is None:
            raise ValueError("classes or vector = None: the network is conditioned on it.")
        temb = temb + embedding(value)
    return temb
