"""Masks of known pixels and frequencies, and blur kernels."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float

from controllable.operators.linear import Shape


def box(shape: Shape, share: float) -> Bool[np.ndarray, "h w ..."]:
    """Return a mask that hides a box in the middle, whose sides are `share` of the image's."""
    known = np.ones(shape, bool)
    rows, columns = (
        slice(round(n * (1 - share) / 2), round(n * (1 + share) / 2)) for n in shape[:2]
    )
    known[rows, columns] = False
    return known


def random_pixels(shape: Shape, share: float, seed: int = 0) -> Bool[np.ndarray, "h w ..."]:
    """Return a mask that keeps all channels, if there are any, of a random `share` of pixels."""
    count = shape[0] * shape[1]
    known = np.random.default_rng(seed).permutation(count) < max(1, round(share * count))
    return np.broadcast_to(known.reshape(*shape[:2], *(1 for _ in shape[2:])), shape)


def frequency_columns(shape: Shape, share: float, seed: int = 0) -> Bool[np.ndarray, "h w"]:
    """Return a mask of Fourier columns, like the Cartesian undersampling of an MRI scanner.

    It keeps `share` of the columns, half of them at the lowest frequencies and half at random.
    """
    width = shape[1]
    frequency = np.abs(np.fft.fftfreq(width))
    count = max(1, round(share * width))
    lowest = np.argsort(frequency, kind="stable")[: (count + 1) // 2]
    others = np.setdiff1d(np.arange(width), lowest)
    chosen = np.random.default_rng(seed).permutation(others)[: count // 2]
    return np.broadcast_to(np.isin(np.arange(width), [*lowest, *chosen]), shape[:2])


def gaussian_kernel(std: float) -> Float[np.ndarray, "h h"]:
    """Return a Gaussian kernel of sum 1 with `std` in pixels, cut off at three of them."""
    radius = max(1, math.ceil(3 * std))
    line = np.exp(-0.5 * (np.arange(-radius, radius + 1) / std) ** 2)
    return np.outer(line, line) / line.sum() ** 2


def motion_kernel(length: float, angle: float) -> Float[np.ndarray, "h h"]:
    """Return the kernel of sum 1 of a straight movement over `length` pixels.

    `angle` is measured against the horizontal, in degrees.
    """
    radius = max(1, math.ceil(length / 2))
    kernel = np.zeros((2 * radius + 2, 2 * radius + 2))
    direction = math.radians(angle)
    for distance in np.linspace(-length / 2, length / 2, 64):
        y = radius - distance * math.sin(direction)
        x = radius + distance * math.cos(direction)
        top, left = math.floor(y), math.floor(x)
        # Bilinear weights distribute the point over the four pixels around it.
        vertical = [1 - y + top, y - top]
        horizontal = [1 - x + left, x - left]
        kernel[top : top + 2, left : left + 2] += np.outer(vertical, horizontal)
    return kernel[:-1, :-1] / kernel.sum()
