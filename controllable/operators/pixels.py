"""Operators on pixels: masks, means of channels and of blocks."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array

from controllable.operators.linear import (
    Operator,
    Shape,
    cosine_matrix,
    einsum,
    matmul,
    with_or_without_channels,
)
from errors import InputError


def mask(known: np.ndarray) -> Operator:
    """Keep the entries where `known` is True and set the others to 0.

    `known` is a bool array of the shape of an event, or (B, *event) with one mask per event.
    Events of another shape raise InputError: they would be broadcast.
    """
    known = np.asarray(known, np.float32)

    def check(x: Array) -> Array:
        if known.shape not in (x.shape, x.shape[1:]):
            raise InputError(
                f"A mask of shape {known.shape} does not fit events of shape {x.shape[1:]}; both "
                "shapes must be the same."
            )
        return x

    return Operator(
        known,
        to_basis=check,
        to_measured=lambda c: c * known,
        from_measured=lambda y: y * known,
    )


def channel_mean(shape: Shape, weights: tuple[float, ...] | None = None) -> Operator:
    """Average the channels, or take a sum with the given weights: gray images (B, H, W, 1).

    Raises InputError unless there is one weight per channel and one of them is not 0.
    """
    channels = shape[-1]
    if weights is None:
        weights = (1 / channels,) * channels
    if len(weights) != channels or not any(weights):
        raise InputError(
            f"Channel weights {weights} do not fit images of {channels} channels: "
            f"pass {channels} weights, not all 0."
        )
    norm = np.linalg.norm(weights)
    direction = np.asarray(weights, np.float64) / norm
    basis, _ = np.linalg.qr(np.column_stack([direction, np.eye(channels)]))
    basis[:, 0] = direction  # QR may change its sign.
    basis = basis.astype(np.float32)
    values = np.zeros(shape, np.float32)
    values[..., 0] = norm

    return Operator(
        values,
        to_basis=lambda x: matmul(x, basis),
        from_basis=lambda c: matmul(c, basis.T),
        to_measured=lambda c: c[..., :1],
        from_measured=lambda y: jnp.pad(y, ((0, 0),) * 3 + ((0, channels - 1),)),
    )


@with_or_without_channels
def block_mean(shape: Shape, factor: int) -> Operator:
    """Average blocks of factor x factor pixels: images (B, H / factor, W / factor, C).

    Raises InputError if the blocks do not tile the image.
    """
    height, width, channels = shape
    if factor < 1 or height % factor or width % factor:
        raise InputError(
            f"Blocks of {factor}x{factor} pixels do not tile images of {height}x{width}: "
            f"choose a factor that divides height and width."
        )
    basis = cosine_matrix(factor)
    blocks = (height // factor, factor, width // factor, factor, channels)
    values = np.zeros(blocks, np.float32)
    values[:, 0, :, 0] = 1 / factor

    def transform_blocks(a: Array, matrix: np.ndarray) -> Array:
        return einsum("bhiwjc,ki,lj->bhkwlc", a, matrix, matrix)

    return Operator(
        values,
        to_basis=lambda x: transform_blocks(x.reshape(-1, *blocks), basis),
        from_basis=lambda c: transform_blocks(c, basis.T).reshape(-1, *shape),
        to_measured=lambda c: c[:, :, 0, :, 0],
        from_measured=lambda y: jnp.zeros((len(y), *blocks), y.dtype).at[:, :, 0, :, 0].set(y),
    )
