"""Measurements of images by name: an operator, and the options that it is made from.

The fields of `config.restore` and the tasks of `--mode=restore` follow from `TASKS`. To add one,
write a function from an image's shape (H, W, C) and its options to an `Operator`, and enter it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from PIL import Image

from controllable import operators
from controllable.operators import Operator
from errors import InputError, brief, expand_home, printable
from options import FilePath, Integer, Option, Options, Real
from readers import image_files
from readers.files import check_regular

Shape = tuple[int, int, int]


class Task(NamedTuple):
    """A measurement.

    Attributes:
      make: (image shape, **options) -> Operator.
      options: the keyword arguments of `make`.
      is_image: whether the measurement is an image.
      is_shown: whether a picture shows the measurement itself, not its pseudo-inverse.
    """

    make: Callable[..., Operator]
    options: Options = MappingProxyType({})
    is_image: bool = True
    is_shown: bool = False


def inpaint(shape: Shape, *, mask: str, share: float) -> Operator:
    """Measure the pixels outside a box, a random subset of pixels, or the bright part of a mask."""
    if mask == "box":
        known = operators.box(shape, share)
    elif mask == "random":
        known = operators.random_pixels(shape, share)
    else:
        known = np.broadcast_to(_read_mask(mask, shape) > 127, shape)
    if known.all() or not known.any():
        unknown = "nothing" if known.all() else "all"
        raise InputError(
            f"restore.mask = {mask!r} leaves {unknown} unknown. Change restore.share = {share} for "
            "'box' and 'random'; a mask file needs bright (known) and dark (unknown) pixels."
        )
    return operators.mask(known)


def _read_mask(name: str, shape: Shape) -> np.ndarray:
    """Return the mask image (H, W, 1). Raises InputError if it does not have the images' size."""
    path = expand_home(name, "restore.mask")
    check_regular(path, "restore.mask")
    mask = image_files.to_array(read_image(path, 1))
    if mask.shape[:2] != shape[:2]:
        raise InputError(
            f"restore.mask = {name!r} has {mask.shape[1]}x{mask.shape[0]} pixels, but the images "
            f"have {shape[1]}x{shape[0]}. Resize the mask to their size."
        )
    return mask


def read_image(path: Path, channels: int) -> Image.Image:
    """Decode an image file, to gray or RGB by `channels`. Raises InputError if it is damaged."""
    try:
        return image_files.decode(path, channels)
    except InputError:
        raise
    except Exception as error:  # Decoders raise many exception types for damaged files.
        raise InputError(
            f"The image '{printable(path)}' cannot be read: {brief(error)}. Replace or remove it."
        ) from error


def compressed_sensing(shape: Shape, *, share: float) -> Operator:
    """Measure random projections, `share` times as many as an image has entries."""
    return operators.compressed_sensing(shape, max(1, round(share * int(np.prod(shape)))))


def fourier(shape: Shape, *, share: float) -> Operator:
    """Measure a share of the columns of the Fourier transform."""
    return operators.fourier_mask(operators.frequency_columns(shape, share))


MASK = {
    "mask": Option(
        "box",
        FilePath(("box", "random")),
        "Unknown pixels: box, random, or an image, bright where known.",
    )
}
PART = {
    "share": Option(
        0.5,
        Real(0, 1, open_low=True),
        "Share of the box's sides; of the known pixels, frequencies or measurements.",
    )
}
FACTOR = {"factor": Option(2, Integer(1, 4096), "Factor of super-resolution.")}
BLUR = {"blur": Option(1.0, Real(1e-3, 1000), "Standard deviation of the blur, in pixels.")}
MOTION = {
    "length": Option(4.0, Real(1e-3, 1000), "Length of the motion, in pixels."),
    "angle": Option(45.0, Real(-360, 360), "Angle of the motion to the horizontal, in degrees."),
}

TASKS = {
    "inpaint": Task(inpaint, {**MASK, **PART}),
    "colorize": Task(operators.channel_mean),
    "super_resolution": Task(operators.block_mean, FACTOR),
    "deblur": Task(lambda shape, blur: operators.blur(shape, blur), BLUR, is_shown=True),
    "motion_deblur": Task(operators.motion_blur, MOTION, is_shown=True),
    "compressed_sensing": Task(compressed_sensing, PART, is_image=False),
    "fourier": Task(fourier, PART, is_image=False),
}
"""By `config.restore.task`."""
