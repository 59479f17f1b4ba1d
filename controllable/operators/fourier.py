"""Operators by the Fourier transform: convolutions, and frequencies as measured in MRI."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array

from controllable.operators.linear import NEGLIGIBLE, Operator, Shape, with_or_without_channels
from controllable.operators.patterns import gaussian_kernel, motion_kernel
from errors import InputError


@with_or_without_channels
def convolution(shape: Shape, kernel: np.ndarray) -> Operator:
    """Convolve each channel with a kernel (h, w), centered, with periodic boundaries.

    Raises InputError if the kernel is larger than the image.
    """
    height, width, _ = shape
    if kernel.ndim != 2 or kernel.shape[0] > height or kernel.shape[1] > width:
        raise InputError(
            f"A kernel of shape {kernel.shape} does not fit images of {height}x{width}: "
            f"it must have two axes and be no larger than the image."
        )
    padded = np.zeros((height, width))
    padded[: kernel.shape[0], : kernel.shape[1]] = kernel
    center = (kernel.shape[0] // 2, kernel.shape[1] // 2)
    response = np.fft.fft2(np.roll(padded, (-center[0], -center[1]), (0, 1)))[..., None]
    values = np.abs(response)
    phase = (response / np.maximum(values, 1e-30)).astype(np.complex64)
    values = np.where(values > NEGLIGIBLE * values.max(), values, 0.0).astype(np.float32)

    def from_basis(c: Array) -> Array:
        return jnp.fft.ifft2(c, axes=(1, 2), norm="ortho").real

    return Operator(
        np.broadcast_to(values, shape),
        _fourier,
        from_basis,
        to_measured=lambda c: from_basis(jnp.where(values > 0, c, 0) * phase),
        from_measured=lambda y: _fourier(y) * np.conj(phase),
    )


def blur(shape: Shape, std: float) -> Operator:
    """Convolve with a Gaussian kernel, `std` in pixels, with periodic boundaries."""
    return convolution(shape, gaussian_kernel(std))


def motion_blur(shape: Shape, length: float, angle: float = 0.0) -> Operator:
    """Convolve with a straight line of `length` pixels, at `angle` degrees to the horizontal."""
    return convolution(shape, motion_kernel(length, angle))


def fourier_mask(known: np.ndarray, *, channels: bool = True) -> Operator:
    """Keep the Fourier coefficients where `known` (H, W) is True, as in MRI; set the others to 0.

    The coefficients of a real image at opposite frequencies are conjugate, so a frequency is known
    if its opposite is. Measurements (B, H, W, C) are real: the real part of the unitary transform
    minus its imaginary part (the Hartley transform). White noise is white in them, too. Without
    `channels`, images and measurements have shape (B, H, W).
    """
    known = np.asarray(known, bool)
    opposite = np.roll(known[::-1, ::-1], (1, 1), (0, 1))
    values = (known | opposite).astype(np.float32)
    if channels:
        values = values[..., None]

    def hartley(x: Array) -> Array:  # its own inverse
        frequencies = _fourier(x)
        return frequencies.real - frequencies.imag

    return Operator(values, hartley, hartley, lambda c: c * values, lambda y: y * values)


def _fourier(x: Array) -> Array:
    return jnp.fft.fft2(x, axes=(1, 2), norm="ortho")
