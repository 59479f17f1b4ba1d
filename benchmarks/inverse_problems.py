"""Errors of the methods of `--mode=restore` on Gaussian data and on digits.

python -m benchmarks.inverse_problems --workdir=DIR

Writes docs/inverse_problems.md and .png, except for the section that `benchmarks.posterior_peers`
writes. DIR is a workdir trained with configs/vp/digits_ddpmpp_continuous.py and
--noconfig.model.ema_ramp.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from absl import app, flags, logging
from jax import Array

from api.prior import Prior
from api.trained import TrainedModel
from benchmarks.markdown import header, machine, row, section
from commands import restoration
from commands.restoration import Problem
from configs.vp.digits_ddpmpp_continuous import get_config
from controllable import operators
from controllable.methods import METHODS
from experiment import Experiment
from sde_lib import VESDE, VPSDE, SubVPSDE
from tests import gaussian_posterior

matplotlib.use("agg")
from matplotlib import pyplot as plt  # noqa: E402

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", None, "The workdir of the digits model.", required=True)
flags.DEFINE_string(
    "output", "docs/inverse_problems.md", "The file to write, next to the picture of that name."
)
flags.DEFINE_integer("images", 40, "Held-out digits.")

SDES = {"VE": VESDE(), "VP": VPSDE(), "sub-VP": SubVPSDE()}
# Covariance, operator and noise of the Gaussian problems, see `tests.gaussian_posterior`.
GAUSSIANS = (("correlated", "mask", 0.0), ("correlated", "mask", 0.2), ("correlated", "dense", 0.2))
OPTIONS = {"iterations": 16, "prior_std": gaussian_posterior.STD, "scale": 0.5}
STEPS = {name: 200 if method.requires_pc else 20 for name, method in METHODS.items()}
STEP_COUNTS = (10, 20, 50, 100, 200, 500, 1000)
TASKS: dict[str, dict[str, Any]] = {
    "inpaint, a box of half the sides": {"task": "inpaint"},
    "inpaint, 3 of 4 pixels unknown": {"task": "inpaint", "mask": "random", "share": 0.25},
    "super_resolution by 2, noise 0.05": {"task": "super_resolution", "noise": 0.05},
    "motion_deblur over 4 pixels, noise 0.05": {"task": "motion_deblur", "noise": 0.05},
}

# Of the calibration: events of Gaussian data and of the digits, samples for each, and steps of
# guided scores and of the methods that need many.
CALIBRATED = (300, 40)
CALIBRATION_SAMPLES = 20
CALIBRATION_STEPS = (20, 60)


# --- Gaussian data ---


def gaussian_table() -> list[str]:
    """Return a table of errors of mean and covariance for each method, SDE and problem."""
    titles = [
        f"{sde}: {operator}, noise {noise}" for _, operator, noise in GAUSSIANS for sde in SDES
    ]
    lines = header("method", "steps", *titles)
    for method, steps in STEPS.items():
        cells = []
        for problem in GAUSSIANS:
            for sde in SDES.values():
                errors = gaussian_posterior.measure(sde, *problem, method, steps=steps, **OPTIONS)
                cells.append(f"{errors.mean:.3f} / {errors.covariance:.3f}")
                logging.info("%s %s %s %s", method, problem, type(sde).__name__, errors)
        lines.append(row(f"`{method}`", str(steps), *cells))
    return lines


def plot_gaussian_errors(path: Path) -> None:
    """Plot the error of the posterior mean against the number of steps."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True)
    for axis, name in zip(axes, ("VE", "VP")):
        floor = 0.0
        for method in METHODS:
            problem = SDES[name], *GAUSSIANS[0], method
            errors = [
                gaussian_posterior.measure(*problem, steps=steps, **OPTIONS)
                for steps in STEP_COUNTS
            ]
            axis.loglog(STEP_COUNTS, [each.mean for each in errors], "o-", label=method)
            floor = errors[0].floor  # the same for all methods
        axis.axhline(floor, color="grey", linestyle=":", label="Monte-Carlo error")
        axis.set(title=name, xlabel="steps")
    axes[0].set_ylabel("error of the posterior mean / std of the data")
    axes[1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    figure.savefig(path, dpi=90)


# --- digits ---


def digits_table(workdir: str, count: int) -> list[str]:
    """Return a table for each task: PSNR and SSIM of the methods and of baselines without model."""
    lines = []
    titles = "method", "PSNR of answers", "of their mean", "SSIM of answers", "misfit", "seconds"
    for title, fields in TASKS.items():
        lines += [f"### {title}", "", *header(*titles)]
        baselines = {}
        for method in METHODS:
            fields = fields | {"method": method, "samples": 4}
            result, baselines = measure_digits(workdir, count, fields)
            logging.info("%s %s %s", title, method, result)
            keys = "psnr_answers", "psnr_mean", "ssim_answers", "misfit"
            cells = [f"{result[key]:.3f}" for key in keys]
            lines.append(row(f"`{method}`", *cells, f"{result['seconds']:.1f}"))
        for name, values in baselines.items():
            lines.append(row(name, *(f"{value:.3f}" for value in values), "", ""))
        lines.append("")
    return lines


def measure_digits(
    workdir: str, count: int, fields: dict[str, Any]
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Measure one method, with these fields of config.restore; return its results and `baselines`.

    The results are those of `restoration.measure_quality`, and `seconds` for one reconstruction of
    each image, without compilation.
    """
    config = get_config()
    config.restore.update(count=count, **fields)
    config.sampling.method = "pc" if METHODS[fields["method"]].requires_pc else "solver"
    experiment = Experiment(config, jax.devices()[:1])
    _, ema = experiment.trained(workdir)
    problem = restoration.build_problem(experiment)
    with tempfile.TemporaryDirectory() as folder:
        reconstructions, _ = restoration.solve(experiment, problem, ema, Path(folder), {})
    run = restoration.compile_solver(experiment, problem.operator).whole
    inputs = ema, *experiment.rows((problem.y, np.arange(count)))
    jax.block_until_ready(run(*inputs, 0))  # Compiles.
    start = time.monotonic()
    jax.block_until_ready(run(*inputs, 1))
    seconds = time.monotonic() - start
    result = restoration.measure_quality(experiment, problem, reconstructions)
    return result | {"seconds": seconds}, baselines(experiment, problem)


def baselines(experiment: Experiment, problem: Problem) -> dict[str, list[float]]:
    """Return PSNR, PSNR of the mean (the same) and SSIM of reconstructions without a model.

    They use the measurement and the training images: the pseudo-inverse; the mean training image,
    changed to agree with the measurement; and the training image whose measurement is nearest.
    """
    operator, y = problem.operator, jnp.asarray(problem.y)
    pixels = experiment.train.batch(np.arange(len(experiment.train))).pixels
    train = experiment.scaler.dequantize(jnp.asarray(pixels), jnp.float32(0.5))
    nearest = train[_nearest_rows(_flatten(y), _flatten(operator.forward(train)))]
    mean = jnp.broadcast_to(train.mean(0), nearest.shape)
    coefficients = jnp.where(operator.measured, operator.solution(y), operator.to_basis(mean))
    candidates = {
        "pseudo-inverse": operator.pseudo_inverse(y),
        "mean image": operator.from_basis(coefficients),
        "nearest training image": nearest,
    }
    found = {}
    for name, x in candidates.items():
        quality = restoration.measure_quality(experiment, problem, np.asarray(x)[:, None])
        found[name] = [quality[key] for key in ("psnr_answers", "psnr_mean", "ssim_answers")]
    return found


def _flatten(x: Array) -> Array:
    return x.reshape(len(x), -1)


def _nearest_rows(x: Array, candidates: Array) -> Array:
    """Return the indices (N,) of the rows of `candidates` (M, D) nearest to those of x (N, D)."""
    return ((x[:, None] - candidates[None]) ** 2).sum(-1).argmin(1)


# --- calibration ---


def calibration_table(workdir: str) -> list[str]:
    """Return a table of the verdicts on each method, for Gaussian data and for digits."""
    lines = header("method", "Gaussian data", "90 % intervals", "digits", "90 % intervals")
    experiment = Experiment(get_config(), jax.devices()[:1])
    found, params = experiment.trained(workdir)
    digits = TrainedModel(experiment, params, found.step)
    sde = SDES["VP"]
    covariance = gaussian_posterior.COVARIANCES["correlated"]
    score = gaussian_posterior.exact_score(sde, covariance)
    problems = (
        (Prior(score, sde, gaussian_posterior.SHAPE), gaussian_posterior.OPERATORS["dense"], 0.2),
        (digits, operators.block_mean(digits.event_shape, 2), 0.1),
    )
    for method in METHODS:
        cells = []
        for prior, operator, noise in problems:
            options: dict[str, Any] = {} if prior is digits else {"iterations": 5}
            if method in ("pigdm", "daps"):
                options["prior_std"] = gaussian_posterior.STD
            posterior = prior.posterior(None, operator, noise=noise, method=method, **options)
            result = posterior.calibrate(
                CALIBRATED[prior is digits],
                CALIBRATION_SAMPLES,
                steps=CALIBRATION_STEPS[METHODS[method].requires_pc],
                batch_size=1000,
            )
            logging.info("%s: %s", method, result.verdict)
            share, error = result.coverage(0.9)
            cells += [result.kind, f"{100 * share:.1f} +- {100 * error:.1f} %"]
        lines.append(row(f"`{method}`", *cells))
    return lines


# --- page ---


def main(_: list[str]) -> None:
    """Measure, and write the page and the picture."""
    logging.set_verbosity(logging.INFO)
    jax.config.update("jax_default_matmul_precision", "highest")
    output = Path(FLAGS.output)
    picture = output.with_suffix(".png")
    plot_gaussian_errors(picture)
    text = PAGE.format(
        machine=machine(),
        picture=picture.name,
        gaussian="\n".join(gaussian_table()),
        digits="\n".join(digits_table(FLAGS.workdir, FLAGS.images)),
        calibration="\n".join(calibration_table(FLAGS.workdir)),
        gaussian_count=CALIBRATED[0],
        digits_count=CALIBRATED[1],
        samples=CALIBRATION_SAMPLES,
        guided_steps=CALIBRATION_STEPS[0],
        pc_steps=CALIBRATION_STEPS[1],
        images=FLAGS.images,
        STD=gaussian_posterior.STD,
        SIZE=gaussian_posterior.SIZE,
    )
    peers = section(output.read_text(), "peers") if output.exists() else ""
    output.write_text(f"{text.rstrip()}\n\n{peers}".rstrip() + "\n")


PAGE = """# Choosing a method for inverse problems

Written by `python -m benchmarks.inverse_problems --workdir=DIR --images={images}` on
{machine}. DIR is a workdir trained with
`configs/vp/digits_ddpmpp_continuous.py` and `--noconfig.model.ema_ramp`.

- **`moment_matching`** is exact for Gaussian data, with or without noise in y, in few steps, on
  every SDE and with every sampler. Choose it where the spread of reconstructions matters and the
  network is good: it is the only method that the test below does not call wrong, and the default
  of the Python API. It costs `restore.iterations` + 1 gradients of the network per step. On the
  digits, whose network is small, the PSNR of its reconstructions is lower than that of `dps` and
  `ddrm`.
- **`pigdm`** costs one gradient per step and works with every sampler. It is exact for uncorrelated
  data of standard deviation `restore.prior_std`, so that this value matters.
- **`projection`** is the paper's method. It costs nothing and is biased: unmeasured pixels depend
  on the measurement only through x_t, and more steps do not help (see the picture).
- **`dps`** has the best PSNR in three of the four problems of digits, in 250 steps. Its step size
  `restore.scale` must be tuned to each measurement (with the 5 sums below it diverges), and it
  fits the noise in y: misfits are too small.
- **`ddrm`** (the default) is within 1.6 dB of `dps`, and better for motion blur, with one
  evaluation per step and no gradient. The spread of its reconstructions is too small. Without
  noise their mean becomes exact with many steps.
- **`daps`** draws a new event at each noise level, and accepts any differentiable measurement in
  Python. It costs `restore.flow_steps` evaluations per step. Many steps make its mean exact.

`projection`, `dps`, `ddrm` and `daps` change the steps of `sampling.method = "pc"`, 200 (Gaussian
data) and 250 (digits) of them here. `moment_matching` and `pigdm` work with every sampler, here 20
steps of DEIS (Gaussian data) and of the default solver (digits; `--config.sampling.method=solver`).
For images, their denoised mean is clipped to the range of images; without this, guidance by a
network diverges at high noise. In noiseless problems the last step sets the measured part of the
reconstruction to y.

## Gaussian data

Images of {SIZE} correlated pixels (the correlation of neighbors is 0.61, the standard deviation
{STD}), whose posterior is known. Each cell states two errors: that of the mean of 2,000
reconstructions, in standard deviations of the data, and that of their covariance, relative to the
norm of the data's. `mask` hides the 4 central pixels, `dense` measures 5 random sums.

{gaussian}

![Error of the posterior mean against steps]({picture})

## Is the spread right?

`calibrate` ([Python API](python.md)) draws x of the model, measures it, and compares x with samples
given the measurement: {gaussian_count} events of Gaussian data (`dense`, noise 0.2) and
{digits_count} digits of the trained model (means of 2x2 pixels, noise 0.05 for images in [0, 1]),
with {samples} samples each. It calls a right method wrong with a probability of at most 1 %. Guided
scores take {guided_steps} steps of the default solver, the others {pc_steps} of `pc`.

{calibration}

## Digits

{images} held-out images with 4 reconstructions ("answers") each. PSNR is in dB. Misfit is |y - A x|
per entry for images in [0, 1]; noise adds as much as its standard deviation. Seconds are those for
one reconstruction of each image, without compilation.

{digits}"""


if __name__ == "__main__":
    app.run(main)
