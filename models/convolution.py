"""3x3 convolutions of NHWC images that are fast on CPUs, where they take most of a network's time.

Four rows of the result take six products of rows instead of twelve, by interpolation (Winograd
1980; Lavin & Gray 2016, arXiv:1509.09308).

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
import numpy as np
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero

LAYOUT = ("NHWC", "HWIO", "NHWC")
WIDE = 128  # features from which on gradients by rows are faster; with 16 they are slower
PIXELS = 512  # of a batch, from which on interpolation is faster
POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)  # of interpolation; others have larger rounding errors


def convolve(x: Array, weight: Array) -> Array:
    """Convolve x (B, H, W, in) with `weight` (3, 3, in, out) in the dtype of x: (B, H, W, out).

    Images have a border of zeros. A float32 result by interpolation has two to three times the
    rounding errors of another.
    """
    return _convolve(x, weight.astype(x.dtype))


def for_flax(x: Array, weight: Array, *arguments: Any, **options: Any) -> Array:
    """Convolve in a layer of Flax that has a 3x3 kernel, stride 1, SAME padding and no dilation.

    `arguments` and `options`, in which Flax states them, are ignored.
    """
    del arguments, options
    return convolve(x, weight)


@jax.custom_jvp
def _convolve(x: Array, weight: Array) -> Array:
    if not _is_faster_by_interpolation(x, weight):
        return _convolve_directly(x, weight)
    by_interpolation = _convolve_by_interpolation
    return lax.platform_dependent(x, weight, cpu=by_interpolation, default=_convolve_directly)


def _convolve_directly(x: Array, weight: Array) -> Array:
    return lax.conv_general_dilated(x, weight, (1, 1), "SAME", dimension_numbers=LAYOUT)


@functools.partial(_convolve.defjvp, symbolic_zeros=True)
def _convolve_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    """Differentiate; JAX derives the backward pass by transposing what is linear here."""
    (x, weight), (x_tangent, weight_tangent) = primals, tangents
    terms = []
    if not isinstance(x_tangent, SymbolicZero):
        terms.append(_convolve(x_tangent, weight))
    if not isinstance(weight_tangent, SymbolicZero):
        term = _weight_term if _is_faster_by_rows(weight) else _convolve_directly
        terms.append(term(x, weight_tangent))
    return _convolve(x, weight), sum(terms[1:], terms[0])


# --- by interpolation -----------------------------------------------------------------------------


def _is_faster_by_interpolation(x: Array, weight: Array) -> bool:
    """Return whether CPUs compute the convolution faster by interpolation.

    With few pixels, the interpolation of the weights takes longer than it saves.
    """
    batch, rows, columns, _ = x.shape
    is_large = min(weight.shape[2:]) >= WIDE and batch * rows * columns >= PIXELS
    return is_large and rows % 4 == 0 and x.dtype == jnp.float32


def _convolve_by_interpolation(x: Array, weight: Array) -> Array:
    """Return the convolution of x (B, H, W, in), where 4 divides H.

    Along a column of an image, 4 entries of the result are those of the product of two polynomials,
    transposed, which is known from its highest coefficient and its values at POINTS.
    """
    of_rows, of_weight, of_result = _interpolation()
    batch, height, width, _ = x.shape
    # Without the barrier, each of the six sums would pad its rows.
    padded = lax.optimization_barrier(jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0))))
    rows = [padded[:, i : i + height - 3 : 4] for i in range(6)]
    weights = [weight[i : i + 1] for i in range(3)]
    products = [
        _convolve_directly(_sum(a, rows), _sum(b, weights)) for a, b in zip(of_rows, of_weight)
    ]
    result = jnp.stack([_sum(each, products) for each in of_result], 2)
    return result.reshape(batch, height, width, -1)


def _interpolation() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the coefficients of rows (6, 6), of weights (6, 3), and of their products (4, 6)."""
    points = np.array(POINTS)
    of_rows = [np.poly(points)]
    for i, point in enumerate(points):
        others = np.delete(points, i)
        of_rows.append(np.append(0.0, np.poly(others) / np.prod(point - others)))  # Lagrange's
    values = [np.vander(points, count, increasing=True) for count in (3, 4)]
    of_weight, of_result = (np.vstack([np.eye(each.shape[1])[-1], each]) for each in values)
    return np.array(of_rows)[:, ::-1], of_weight, of_result.T


def _sum(coefficients: np.ndarray, arrays: list[Array]) -> Array:
    """Return the sum of arrays times their coefficients, of which some are 0."""
    terms: list[Array] = [c.astype(x.dtype) * x for c, x in zip(coefficients, arrays) if c]
    return sum(terms[1:], terms[0])


# --- the gradient of the weights by rows ----------------------------------------------------------


def _is_faster_by_rows(weight: Array) -> bool:
    """Return whether CPUs compute the gradient of this weight (3, 3, in, out) faster by rows.

    With few features, shifting takes longer than it saves. XLA cannot split the rows of all images
    over devices that share a batch, and would gather the batch.
    """
    return min(weight.shape[2:]) >= WIDE and jax.device_count() == 1


@jax.jit  # Traced once for all equal shapes.
def _weight_term(x: Array, weight: Array) -> Array:
    """Return _convolve(x, weight), for its transpose with respect to the weight."""
    by_rows = _convolve_by_rows
    return lax.platform_dependent(x, weight, cpu=by_rows, default=_convolve_directly)


def _convolve_by_rows(x: Array, weight: Array) -> Array:
    """Return _convolve(x, weight) as the transpose of `weight_gradient`, which is its transpose."""
    result = jax.eval_shape(_convolve_directly, x, weight)
    (transposed,) = jax.linear_transpose(lambda g: weight_gradient(x, g), result)(weight)
    return transposed


def weight_gradient(x: Array, g: Array) -> Array:
    """Return the gradient (3, 3, in, out) of sum(g convolve(x, weight)) with respect to the weight.

    x (B, H, W, in) are the images, and g (B, H, W, out) is the cotangent of the result. The array
    with fewer features is shifted along the rows once for each column of the weight. A convolution
    along the columns, whose window is the other array, gives the sums.
    """
    if x.shape[-1] <= g.shape[-1]:
        return _correlate(x, g).transpose(2, 0, 1, 3)
    # With the roles exchanged, the sums belong to the weight turned by 180 degrees.
    return _correlate(g, x)[::-1, :, ::-1].transpose(2, 0, 3, 1)


def _correlate(a: Array, b: Array) -> Array:
    """Return the products of all entries of shifted a and b, summed over images and pixels.

    a is (B, H, W, C) and b (B, H, W, D). The result (3, C, 3, D) is by the shift along the rows,
    and that along the columns.
    """
    count, height, width, features = a.shape
    row = width * count  # the entries of a row, of all images
    a = jnp.pad(a.transpose(3, 1, 2, 0), ((0, 0), (0, 0), (1, 1), (0, 0)))
    a = a.reshape(features, height, -1)
    shifted = jnp.stack([a[:, :, i * count : i * count + row] for i in range(3)])
    shifted = shifted.reshape(3 * features, height, row)
    window = b.transpose(1, 2, 0, 3).reshape(height, row, -1)
    sums = lax.conv_general_dilated(
        shifted, window, (1,), [(1, 1)], dimension_numbers=("NHC", "HIO", "NHC")
    )
    return sums.reshape(3, features, *sums.shape[1:])
