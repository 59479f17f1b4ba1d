"""Linear measurements of images and other events: y = A x.

An `Operator` states the singular value decomposition of A, which every method for inverse problems
accepts. `radon` and `coil_fourier` return functions of one event, for the methods that only need
derivatives of the measurement.
"""

from controllable.operators.fourier import blur, convolution, fourier_mask, motion_blur
from controllable.operators.functions import coil_fourier, decompose, radon
from controllable.operators.linear import Operator, Shape
from controllable.operators.patterns import (
    box,
    frequency_columns,
    gaussian_kernel,
    motion_kernel,
    random_pixels,
)
from controllable.operators.pixels import block_mean, channel_mean, mask
from controllable.operators.projections import compressed_sensing, dense

__all__ = [
    "Operator",
    "Shape",
    "block_mean",
    "blur",
    "box",
    "channel_mean",
    "coil_fourier",
    "compressed_sensing",
    "convolution",
    "decompose",
    "dense",
    "fourier_mask",
    "frequency_columns",
    "gaussian_kernel",
    "mask",
    "motion_blur",
    "motion_kernel",
    "radon",
    "random_pixels",
]
