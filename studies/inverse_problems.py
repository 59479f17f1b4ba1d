"""Errors and calibration of the methods for inverse problems, on Gaussian data and on digits.

python -m studies.inverse_problems --folder=DIR [--images=24] [--write]

Prints the tables of docs/inverse_problems.md, except for those of `studies.posteriors`, and
with --write puts them into the page. The network is trained in DIR.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from benchmarks import harness
from benchmarks.tables import header, row
from controllable import methods
from controllable.operators import Operator
from score_sde import Prior, TrainedModel, operators
from studies import common
from studies.common import SDES
from studies.distances import held_out, nearest
from tests import gaussian_posterior

OPTIONS = {"folder": "", "images": 24, "write": False}
# Covariance, operator and noise of the Gaussian problems, see `tests.gaussian_posterior`.
GAUSSIANS = (("correlated", "mask", 0.0), ("correlated", "mask", 0.2), ("correlated", "dense", 0.2))
METHOD_OPTIONS: dict[str, dict[str, Any]] = {
    "moment_matching": {"iterations": 16},
    "pigdm": {"prior_std": gaussian_posterior.STD},
    "daps": {"prior_std": gaussian_posterior.STD},
    "dps": {"scale": 0.5},
}
METHODS = {name: method for name, method in methods.METHODS.items() if method.condition}
STEPS = {name: 200 if method.requires_pc else 20 for name, method in METHODS.items()}
SAMPLES = 4  # reconstructions of each digit
QUALITY = "{:.3f} / {:.3f} / {:.3f} / {}"  # PSNR of samples and of their mean, SSIM, seconds
CALIBRATED = (300, 40)  # simulations of Gaussian data and of digits
CALIBRATION_SAMPLES = 20
CALIBRATION_STEPS = (20, 60)  # of guided scores, and of methods that need 'pc'


def gaussian_errors(
    sde: str, problem: tuple[str, str, float], method: str, steps: int, **options: Any
) -> gaussian_posterior.Errors:
    options = METHOD_OPTIONS.get(method, {}) | options
    return gaussian_posterior.measure(SDES[sde], *problem, method, steps=steps, **options)


def gaussian_table() -> list[str]:
    """Return a table of errors of mean and covariance for each method, SDE and problem."""
    problems = [(sde, problem) for problem in GAUSSIANS for sde in SDES]
    titles = [f"{sde}: {operator}, noise {noise}" for sde, (_, operator, noise) in problems]
    lines = header("method", "steps", *titles)
    for method, steps in STEPS.items():
        found = [gaussian_errors(*each, method, steps, count=2000) for each in problems]
        cells = [f"{each.mean:.3f} / {each.covariance:.3f}" for each in found]
        lines.append(row(f"`{method}`", str(steps), *cells))
        print(lines[-1], flush=True)
    return lines


def tasks(shape: tuple[int, ...]) -> dict[str, tuple[Operator, float]]:
    """Return operators and noise, the latter for images in [0, 1], by the name of the problem."""
    pixels = operators.random_pixels(shape, 0.25)
    return {
        "inpaint, a box of half the sides": (operators.mask(operators.box(shape, 0.5)), 0.0),
        "inpaint, 3 of 4 pixels unknown": (operators.mask(pixels), 0.0),
        "super_resolution by 2, noise 0.05": (operators.block_mean(shape, 2), 0.05),
        "motion_deblur over 4 pixels, noise 0.05": (operators.motion_blur(shape, 4.0), 0.05),
    }


def digits_table(model: TrainedModel, count: int) -> list[str]:
    """Return QUALITY of the methods, and of the nearest training images, for each task."""
    truth, cells = model.from_images(held_out(model, count)), {}
    noise = jax.random.normal(jax.random.key(0), truth.shape)
    train = np.asarray(model.from_images(np.asarray(common.images(model, "train").pixels)))
    problems = tasks(model.event_shape)
    for operator, std in problems.values():
        y = operator.observe(truth, noise, 2 * std)  # The range of the model is [-1, 1].
        for method in METHODS:
            posterior = model.posterior(y, operator, noise=2 * std, method=method)
            draw = functools.partial(posterior.sample, batch_size=count)
            found = quality(np.asarray(draw(SAMPLES, 1)), truth)
            seconds = harness.seconds_of(lambda draw=draw: np.asarray(draw(1, 2)))
            cells.setdefault(f"`{method}`", []).append(QUALITY.format(*found, f"{seconds:.1f}"))
        found = quality(nearest(train, operator, y)[None], truth)
        cells.setdefault("nearest training image", []).append(QUALITY.format(*found, "-"))
    return [*header("method", *problems), *(row(name, *each) for name, each in cells.items())]


def quality(x: Array | np.ndarray, truth: Array) -> tuple[float, float, float]:
    """Return PSNR of reconstructions x (S, N, ...) in [-1, 1], that of their mean, and SSIM."""
    import dm_pix

    def unit(x: Array | np.ndarray) -> Array:
        return (jnp.clip(jnp.asarray(x), -1, 1) + 1) / 2

    each, mean, target = unit(x), unit(np.mean(x, 0)), unit(truth)
    pair = jnp.tile(target, (len(each), 1, 1, 1)), each.reshape(-1, *truth.shape[1:])
    window = min(11, *truth.shape[1:3])
    ssim = dm_pix.ssim(*pair, filter_size=window)  # Its convolutions are exact.
    found = dm_pix.psnr(*pair), dm_pix.psnr(target, mean), ssim
    psnr, of_mean, similarity = (float(np.mean(each)) for each in found)
    return psnr, of_mean, similarity


def calibration_table(model: TrainedModel) -> list[str]:
    """Return a table of the verdicts on each method, for Gaussian data and for digits."""
    lines = header("method", "Gaussian data", "90 % intervals", "digits", "90 % intervals")
    sde, shape = SDES["VP"], gaussian_posterior.SHAPE
    score = gaussian_posterior.exact_score(sde, gaussian_posterior.COVARIANCES["correlated"])
    problems = (
        (Prior(score, sde, shape), gaussian_posterior.OPERATORS["dense"], 0.2, {"iterations": 5}),
        (model, operators.block_mean(model.event_shape, 2), 0.1, {}),
    )
    for method in METHODS:
        cells, steps = [], CALIBRATION_STEPS[METHODS[method].requires_pc]
        for (prior, operator, noise, own), count in zip(problems, CALIBRATED):
            std = {"prior_std": gaussian_posterior.STD}
            own_options = {"moment_matching": own, "pigdm": std, "daps": std}
            options: dict[str, Any] = own_options.get(method, {})
            posterior = prior.posterior(None, operator, noise=noise, method=method, **options)
            found = posterior.calibrate(count, CALIBRATION_SAMPLES, steps=steps, batch_size=1000)
            share, error = found.coverage(0.9)
            cells += [found.kind, f"{100 * share:.1f} +- {100 * error:.1f} %"]
        lines.append(row(f"`{method}`", *cells))
        print(lines[-1], flush=True)
    return lines


def main(options: argparse.Namespace) -> dict[str, list[str]]:
    jax.config.update("jax_default_matmul_precision", "highest")
    model = common.digits_network("vp.digits_ddpmpp_continuous", Path(options.folder))
    return {
        "gaussian": gaussian_table(),
        "calibration": calibration_table(model),
        "digits": digits_table(model, options.images),
    }


if __name__ == "__main__":
    common.run(main, OPTIONS, "inverse_problems.md")
