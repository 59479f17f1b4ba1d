"""Convolutions of NHWC images with stride 1, whose weights have a fast gradient on CPUs.

XLA computes the gradient of the weights as a convolution whose window is the whole image and whose
features are the images of the batch. On CPUs it is slower than the other convolutions
(docs/BENCHMARKS.md). Here, on a single CPU device and for wide layers, the features are whole rows
of all images.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero

LAYOUT = ("NHWC", "HWIO", "NHWC")
WIDE = 128  # features from which on gradients by rows are faster; with 16 they are slower
Padding = tuple[tuple[int, int], tuple[int, int]]
"""The zeros above and below, and left and right of an image."""


def convolve(x: Array, weight: Array, padding: Padding | None = None) -> Array:
    """Convolve x (B, H, W, in) with `weight` (h, w, in, out) in the dtype of x.

    By default the padding keeps the size: the result is (B, H, W, out).
    """
    if padding is None:
        rows, columns = weight.shape[:2]
        padding = ((rows - 1) // 2, rows // 2), ((columns - 1) // 2, columns // 2)
    return _convolve(x, weight.astype(x.dtype), padding)


def for_flax(x: Array, weight: Array, *arguments: Any, **options: Any) -> Array:
    """Convolve in a layer of Flax that has stride 1, SAME padding and no dilation.

    `arguments` and `options`, in which Flax states them, are ignored.
    """
    del arguments, options
    return convolve(x, weight)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _convolve(x: Array, weight: Array, padding: Padding) -> Array:
    return lax.conv_general_dilated(x, weight, (1, 1), padding, dimension_numbers=LAYOUT)


@functools.partial(_convolve.defjvp, symbolic_zeros=True)
def _convolve_jvp(
    padding: Padding, primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    """Differentiate; JAX derives the backward pass by transposing what is linear here."""
    (x, weight), (x_tangent, weight_tangent) = primals, tangents
    terms = []
    if not isinstance(x_tangent, SymbolicZero):
        terms.append(_convolve(x_tangent, weight, padding))
    if not isinstance(weight_tangent, SymbolicZero):
        term = _weight_term if _is_faster_by_rows(weight) else _convolve
        terms.append(term(x, weight_tangent, padding))
    return _convolve(x, weight, padding), sum(terms[1:], terms[0])


def _is_faster_by_rows(weight: Array) -> bool:
    """Return whether CPUs compute the gradient of this weight (h, w, in, out) faster by rows.

    With few features, shifting takes longer than it saves. XLA cannot split the rows of all images
    over devices that share a batch, and would gather the batch.
    """
    return min(weight.shape[2:]) >= WIDE and jax.device_count() == 1


@functools.partial(jax.jit, static_argnames="padding")  # Traced once for all equal shapes.
def _weight_term(x: Array, weight: Array, padding: Padding) -> Array:
    """Return _convolve(x, weight), for its transpose with respect to the weight."""
    by_rows = functools.partial(_convolve_by_rows, padding=padding)
    plain = functools.partial(_convolve, padding=padding)
    return lax.platform_dependent(x, weight, cpu=by_rows, default=plain)


def _convolve_by_rows(x: Array, weight: Array, padding: Padding) -> Array:
    """Return _convolve(x, weight) as the transpose of `weight_gradient`, which is its transpose."""
    result = jax.eval_shape(functools.partial(_convolve, padding=padding), x, weight)
    gradient = functools.partial(weight_gradient, x, size=weight.shape[:2], padding=padding)
    (transposed,) = jax.linear_transpose(gradient, result)(weight)
    return transposed


def weight_gradient(x: Array, g: Array, size: tuple[int, ...], padding: Padding) -> Array:
    """Return the gradient (h, w, in, out) of sum(g convolve(x, weight)) with respect to the weight.

    Args:
      x: the images (B, H, W, in).
      g: the cotangent of the result (B, H', W', out).
      size: h and w.
      padding: that of the convolution.

    The array with fewer features is shifted along the rows once for each column of the weight. A
    convolution along the columns, whose window is the other array, gives the sums.
    """
    (rows, columns), (vertical, horizontal) = size, padding
    if x.shape[-1] <= g.shape[-1]:
        sums = _correlate(x, g, columns, vertical, horizontal)  # (w, in, h, out)
        return sums.transpose(2, 0, 1, 3)
    # With the roles exchanged, the sums belong to the weight turned by 180 degrees.
    vertical, horizontal = (
        (length - 1 - before, length - 1 - after)
        for length, (before, after) in zip((rows, columns), (vertical, horizontal))
    )
    sums = _correlate(g, x, columns, vertical, horizontal)  # (w, out, h, in)
    return sums[::-1, :, ::-1].transpose(2, 0, 3, 1)


def _correlate(
    a: Array, b: Array, shifts: int, vertical: tuple[int, int], horizontal: tuple[int, int]
) -> Array:
    """Return the products of all entries of shifted a and b, summed over images and pixels.

    a is (B, H, W, C), to be padded by `vertical` and `horizontal`, and b (B, H', W', D). The result
    is (shifts, C, rows, D). The padded a has `shifts` - 1 more columns than b, and rows - 1 more
    rows.
    """
    count, height, width, features = a.shape
    row = b.shape[2] * count  # the entries of a row of b, of all images
    a = jnp.pad(a.transpose(3, 1, 2, 0), ((0, 0), (0, 0), horizontal, (0, 0)))
    a = a.reshape(features, height, -1)
    shifted = jnp.stack([a[:, :, i * count : i * count + row] for i in range(shifts)])
    shifted = shifted.reshape(shifts * features, height, row)
    window = b.transpose(1, 2, 0, 3).reshape(b.shape[1], row, -1)
    sums = lax.conv_general_dilated(
        shifted, window, (1,), [vertical], dimension_numbers=("NHC", "HIO", "NHC")
    )
    return sums.reshape(shifts, features, *sums.shape[1:])
