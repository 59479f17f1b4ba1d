"""The tasks of `--mode=restore`.

A task turns `config.restore` into the linear operator A of the measurement y = A x + noise. A new
one is a function and an entry in `TASKS`. The methods are those of `controllable.methods`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from commands import restoration_images
from commands.restoration_images import Shape
from configs.default import Config
from controllable import operators
from controllable.operators import Operator
from errors import InputError, advice, expand_home
from readers import image_files
from readers.files import check_regular


def inpaint(options: Config, shape: Shape) -> Operator:
    """Measure the pixels outside a box, a random subset of pixels, or the bright part of a mask."""
    if options.mask == "box":
        known = operators.box(shape, options.share)
    elif options.mask == "random":
        known = operators.random_pixels(shape, options.share)
    else:
        known = np.broadcast_to(_read_mask(options.mask, shape) > 127, shape)
    if known.all() or not known.any():
        unknown = "nothing" if known.all() else "all"
        raise InputError(
            f"restore.mask = {options.mask!r} leaves {unknown} unknown. Change restore.share = "
            f"{options.share} for 'box' and 'random'; a mask file needs bright (known) and dark "
            "(unknown) pixels."
        )
    return operators.mask(known)


def _read_mask(name: str, shape: Shape) -> np.ndarray:
    """Return the mask image (H, W, 1). Raises InputError if it does not have the images' size."""
    path = expand_home(name, "restore.mask")
    check_regular(path, "restore.mask")
    mask = image_files.to_array(restoration_images.decode(path, 1))
    if mask.shape[:2] != shape[:2]:
        raise InputError(
            f"restore.mask = {name!r} has {mask.shape[1]}x{mask.shape[0]} pixels, but the images "
            f"have {shape[1]}x{shape[0]}. Resize the mask to their size."
        )
    return mask


def colorize(options: Config, shape: Shape) -> Operator:
    """Measure the mean of the color channels."""
    del options
    return operators.channel_mean(shape)


def super_resolution(options: Config, shape: Shape) -> Operator:
    """Measure means of blocks of restore.factor x restore.factor pixels."""
    with advice(f"Change restore.factor = {options.factor}."):
        return operators.block_mean(shape, options.factor)


def deblur(options: Config, shape: Shape) -> Operator:
    """Blur with a Gaussian kernel."""
    with advice(f"Lower restore.blur = {options.blur}."):
        return operators.blur(shape, options.blur)


def motion_deblur(options: Config, shape: Shape) -> Operator:
    """Blur along a straight line."""
    with advice(f"Lower restore.length = {options.length}."):
        return operators.motion_blur(shape, options.length, options.angle)


def compressed_sensing(options: Config, shape: Shape) -> Operator:
    """Measure random projections, restore.share times as many as an image has entries."""
    rows = max(1, round(options.share * int(np.prod(shape))))
    return operators.compressed_sensing(shape, rows)


def fourier(options: Config, shape: Shape) -> Operator:
    """Measure a share of the columns of the Fourier transform."""
    return operators.fourier_mask(operators.frequency_columns(shape, options.share))


TASKS: dict[str, Callable[[Config, Shape], Operator]] = {
    "inpaint": inpaint,
    "colorize": colorize,
    "super_resolution": super_resolution,
    "deblur": deblur,
    "motion_deblur": motion_deblur,
    "compressed_sensing": compressed_sensing,
    "fourier": fourier,
}
"""(config.restore, image shape (H, W, C)) -> Operator, by `config.restore.task`."""

BLUR_TASKS = ("deblur", "motion_deblur")
