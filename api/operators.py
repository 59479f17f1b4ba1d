"""The operators of `controllable.operators`, with checked arguments."""

from __future__ import annotations

import functools

from api.arguments import IMAGE, SHAPE, Numbers, checked
from controllable import operators
from controllable.operators import Operator as Operator
from controllable.operators import Shape as Shape
from options import Integer

_of_images = functools.partial(checked, shape=IMAGE, seed=Integer(0, 2**63 - 1))

block_mean = _of_images(operators.block_mean)
blur = _of_images(operators.blur)
box = _of_images(operators.box)
channel_mean = _of_images(operators.channel_mean)
coil_fourier = _of_images(operators.coil_fourier)
compressed_sensing = _of_images(operators.compressed_sensing)
convolution = _of_images(operators.convolution)
decompose = checked(operators.decompose, shape=SHAPE)
dense = checked(operators.dense, shape=SHAPE)
fourier_mask = _of_images(operators.fourier_mask, known=Numbers(2, 2, binary=True))
frequency_columns = _of_images(operators.frequency_columns)
gaussian_kernel = _of_images(operators.gaussian_kernel)
mask = _of_images(operators.mask)
motion_blur = _of_images(operators.motion_blur)
motion_kernel = _of_images(operators.motion_kernel)
radon = _of_images(operators.radon)
random_pixels = _of_images(operators.random_pixels)
