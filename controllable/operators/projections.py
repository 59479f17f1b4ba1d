"""Operators that mix all pixels: random projections and arbitrary matrices."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jax import Array

from controllable.operators.linear import (
    NEGLIGIBLE,
    Operator,
    Shape,
    cosine_matrix,
    einsum,
    matmul,
    with_or_without_channels,
)
from errors import InputError

LARGEST_EVENT = 4096  # entries; the decomposition of a larger matrix takes minutes


@with_or_without_channels
def compressed_sensing(shape: Shape, rows: int, seed: int = 0) -> Operator:
    """Measure `rows` random coefficients (B, rows) of the cosine transform of x with random signs.

    These measurements are orthonormal and as incoherent with pixels as Gaussian ones, and need no
    matrix. Raises InputError unless `rows` is from 1 to the size of the image.
    """
    size = math.prod(shape)
    if not 0 < rows <= size:
        raise InputError(
            f"{rows} measurements of an image of {size} entries: choose from 1 to {size}."
        )
    rng = np.random.default_rng(seed)
    signs = rng.choice(np.array([-1, 1], np.float32), shape)
    chosen = np.sort(rng.permutation(size)[:rows])
    values = np.zeros(size, np.float32)
    values[chosen] = 1
    vertical, horizontal = cosine_matrix(shape[0]), cosine_matrix(shape[1])

    def to_basis(x: Array) -> Array:
        frequencies = einsum("bhwc,kh,lw->bklc", x * signs, vertical, horizontal)
        return frequencies.reshape(-1, size)

    def from_basis(c: Array) -> Array:
        frequencies = c.reshape(-1, *shape)
        return einsum("bklc,kh,lw->bhwc", frequencies, vertical, horizontal) * signs

    return Operator(
        values,
        to_basis,
        from_basis,
        to_measured=lambda c: c[:, chosen],
        from_measured=lambda y: jnp.zeros((len(y), size), y.dtype).at[:, chosen].set(y),
    )


def check_size(shape: Shape) -> int:
    """Return the entries of an event. Raises InputError if they are too many for `dense`."""
    size = math.prod(shape)
    if size > LARGEST_EVENT:
        raise InputError(
            f"Events of shape {tuple(shape)} have {size} entries; a decomposition is possible for "
            f"up to {LARGEST_EVENT}. Pass the function itself, with a method that accepts it."
        )
    return size


def dense(shape: Shape, matrix: np.ndarray) -> Operator:
    """Multiply the flattened event by a matrix (M, N), N its number of entries: y is (B, M).

    The matrix is decomposed by numpy. Raises InputError if its shape does not fit.
    """
    size = check_size(shape)
    if matrix.ndim != 2 or matrix.shape[1] != size or not len(matrix):
        raise InputError(
            f"A matrix of shape {matrix.shape} does not fit events of shape {tuple(shape)}: it "
            f"must have {size} columns, and at least one row."
        )
    u, s, vh = np.linalg.svd(matrix, full_matrices=len(matrix) < size)
    count = len(s)
    values = np.zeros(size, np.float32)
    values[:count] = np.where(s > NEGLIGIBLE * s.max(), s, 0)
    u, vh = u.astype(np.float32), vh.astype(np.float32)

    return Operator(
        values,
        to_basis=lambda x: matmul(x.reshape(-1, size), vh.T),
        from_basis=lambda c: matmul(c, vh).reshape(-1, *shape),
        to_measured=lambda c: matmul(jnp.where(values > 0, c, 0)[:, :count], u.T),
        from_measured=lambda y: jnp.pad(matmul(y, u), ((0, 0), (0, size - count))),
    )
