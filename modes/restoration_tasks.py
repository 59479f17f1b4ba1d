"""The tasks and methods of `--mode=restore`.

A task turns `config.restore` into the linear operator A of the measurement y = A x + noise. A
method conditions a sampler on y: as a guided score, a constraint or a predictor
(`controllable.inverse_problems`). A new one is a function and an entry in `TASKS` or `METHODS`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax import Array

from configs.default import Config
from controllable import inverse_problems, operators
from controllable.inverse_problems import Measurement
from controllable.operators import Operator
from errors import InputError, advice
from modes import restoration_images
from modes.restoration_images import Shape
from readers import preprocessing
from readers.files import check_regular
from sampling import Update
from sde_lib import SDE, Score

# --- tasks: (config.restore, image shape (H, W, C)) -> Operator ---


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
    path = Path(name).expanduser()
    check_regular(path, "restore.mask")
    mask = preprocessing.to_array(restoration_images.decode(path, 1))
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
        return operators.convolution(shape, operators.gaussian_kernel(options.blur))


def motion_deblur(options: Config, shape: Shape) -> Operator:
    """Blur along a straight line."""
    with advice(f"Lower restore.length = {options.length}."):
        return operators.convolution(shape, operators.motion_kernel(options.length, options.angle))


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
BLUR_TASKS = ("deblur", "motion_deblur")


# --- methods ---


class Conditioned(NamedTuple):
    """A sampler's inputs, conditioned on a measurement.

    Attributes:
      score: the score, guided by the measurement or not.
      x: the initial state (B, H, W, C).
      sampler_options: further keyword arguments of `Experiment.sampler`.
    """

    score: Score
    x: Array
    sampler_options: dict[str, Any]


def projection(
    options: Config, score: Score, sde: SDE, measurement: Measurement, x: Array
) -> Conditioned:
    """Constrain each state to agree with the measurement."""
    start = inverse_problems.projection_start(measurement, x, official=options.official)
    constraint = inverse_problems.projection(sde, measurement, official=options.official)
    return Conditioned(score, start, {"constraint": constraint})


def dps(options: Config, score: Score, sde: SDE, measurement: Measurement, x: Array) -> Conditioned:
    """Extend the predictor by a gradient step on the residual."""
    del sde

    def exchange(predictor: Update) -> Update:
        return inverse_problems.dps(predictor, measurement, scale=options.scale)

    return Conditioned(score, x, {"exchange": exchange})


def ddrm(
    options: Config, score: Score, sde: SDE, measurement: Measurement, x: Array
) -> Conditioned:
    """Replace the predictor."""
    del sde

    def exchange(predictor: Update) -> Update:
        del predictor
        return inverse_problems.ddrm(measurement, eta=options.eta, eta_b=options.eta_b)

    return Conditioned(score, x, {"exchange": exchange})


def pigdm(
    options: Config, score: Score, sde: SDE, measurement: Measurement, x: Array
) -> Conditioned:
    """Guide the score, assuming data of covariance prior_std^2 I."""
    guided = inverse_problems.pigdm(score, sde, measurement, prior_std=options.prior_std)
    return Conditioned(guided, x, {})


def moment_matching(
    options: Config, score: Score, sde: SDE, measurement: Measurement, x: Array
) -> Conditioned:
    """Guide the score with the covariance of the denoised image."""
    guided = inverse_problems.moment_matching(
        score, sde, measurement, iterations=options.iterations
    )
    return Conditioned(guided, x, {})


class Method(NamedTuple):
    """A method of solving inverse problems.

    Attributes:
      condition: (config.restore, score, SDE, measurement, samples of the prior) -> Conditioned.
      requires_pc: whether the method changes the steps of the predictor-corrector loop, and so
        requires sampling.method = 'pc'. Otherwise it is a guided score, which any sampler accepts.
      allows_corrector: whether it can be combined with a corrector.
    """

    condition: Callable[..., Conditioned]
    requires_pc: bool = False
    allows_corrector: bool = True


# A corrector of the unconditional score would undo the updates of `dps` and `ddrm`.
METHODS = {
    "projection": Method(projection, requires_pc=True),
    "dps": Method(dps, requires_pc=True, allows_corrector=False),
    "ddrm": Method(ddrm, requires_pc=True, allows_corrector=False),
    "pigdm": Method(pigdm),
    "moment_matching": Method(moment_matching),
}
