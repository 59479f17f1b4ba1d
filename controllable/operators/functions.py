"""Linear measurements as functions of one event, without a singular value decomposition.

Methods that only differentiate the measurement accept such functions (`controllable.methods`).
`decompose` turns one for small events into an `Operator`, which all methods accept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from controllable.operators.linear import Operator, Shape
from controllable.operators.projections import check_size, dense
from errors import InputError


def radon(shape: Shape, angles: Sequence[float] | np.ndarray) -> Callable[[Array], Array]:
    """Return the Radon transform of an image (H, W) or (H, W, C): line integrals, as in CT.

    The result (angles, L) or (angles, L, C) holds, for each angle in degrees, the sums of the
    bilinearly interpolated image along L parallel lines at a distance of one pixel, where L covers
    the diagonal. At 0 degrees these are sums of columns; a positive angle turns the lines
    counterclockwise. The image is 0 outside its pixels.

    Raises InputError unless the shape is that of an image and there is an angle.
    """
    angles = np.deg2rad(np.asarray(angles, np.float64).reshape(-1))
    if len(shape) not in (2, 3) or not len(angles) or not np.isfinite(angles).all():
        raise InputError(
            f"A Radon transform of events of shape {tuple(shape)} at {len(angles)} angles is not "
            "defined: events must be (H, W) or (H, W, C), with at least one finite angle."
        )
    height, width = shape[:2]
    length = math.ceil(math.hypot(height, width))
    length += (length - width) % 2  # The lines at 0 degrees meet the centers of columns.
    along = np.arange(length) - (length - 1) / 2
    depth = np.arange(length + (length - height) % 2)
    depth = depth - (len(depth) - 1) / 2
    position, offset = np.meshgrid(depth, along, indexing="ij")
    sines, cosines = np.sin(angles)[:, None, None], np.cos(angles)[:, None, None]
    rows = (height - 1) / 2 + cosines * position - sines * offset
    columns = (width - 1) / 2 + sines * position + cosines * offset
    coordinates = [jnp.asarray(rows, jnp.float32), jnp.asarray(columns, jnp.float32)]

    def transform_plane(plane: Array) -> Array:
        values = jax.scipy.ndimage.map_coordinates(plane, coordinates, order=1, mode="constant")
        return values.sum(1)

    if len(shape) == 2:
        return transform_plane
    return jax.vmap(transform_plane, in_axes=-1, out_axes=-1)


def coil_fourier(maps: np.ndarray, known: np.ndarray) -> Callable[[Array], Array]:
    """Return the measurement of an MRI scanner with several coils, for real images (H, W).

    Coil k multiplies the image by its sensitivity and measures the known frequencies of the
    unitary Fourier transform: (K, N, 2), the real and imaginary parts of N frequencies.

    Args:
      maps: the complex sensitivities (K, H, W).
      known: bool (H, W), the N measured frequencies, in the order of `numpy.fft.fft2`.

    Raises InputError if the shapes do not fit or no frequency is known.
    """
    maps, known = np.asarray(maps, np.complex64), np.asarray(known, bool)
    if maps.ndim != 3 or maps.shape[1:] != known.shape or not known.any():
        raise InputError(
            f"Coil maps of shape {maps.shape} and known frequencies of shape {known.shape}, of "
            f"which {known.sum()} are True, do not fit: they must be (K, H, W) and (H, W), with "
            "at least one True."
        )
    rows, columns = np.nonzero(known)

    def measure(x: Array) -> Array:
        frequencies = jnp.fft.fft2(maps * x, norm="ortho")[:, rows, columns]
        return jnp.stack([frequencies.real, frequencies.imag], -1)

    return measure


def decompose(function: Callable[[Array], Array], shape: Shape) -> Operator:
    """Return a linear function of one event as an `Operator` with flat measurements (B, M).

    The matrix is computed and decomposed, so this is for events of up to LARGEST_EVENT entries.

    Raises InputError for larger events, and a function that is not linear.
    """
    size = check_size(shape)
    x = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    first, second, both = (np.asarray(function(jnp.asarray(each))) for each in (*x, x.sum(0)))
    if not np.allclose(first + second, both, atol=1e-4 * np.abs(both).max()):
        raise InputError(
            "The function is not linear, since f(a) + f(b) differs from f(a + b). Pass the "
            "function itself, with a method that accepts it."
        )
    columns = jax.lax.map(function, jnp.eye(size).reshape(size, *shape), batch_size=64)
    return dense(shape, np.asarray(columns, np.float64).reshape(size, -1).T)
