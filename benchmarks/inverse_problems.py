"""Errors of the methods of --mode=restore on Gaussian data and on digits; writes docs/inverse_problems.md and .png.

python -m benchmarks.inverse_problems --workdir=DIR    (DIR: trained with configs/vp/digits_ddpmpp_continuous.py)
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

from benchmarks.markdown import header, machine, row
from configs.vp.digits_ddpmpp_continuous import get_config
from experiment import Experiment
from modes import restoration
from modes.restoration import METHODS, Problem
from sde_lib import VESDE, VPSDE, SubVPSDE
from tests import gaussian_posterior

matplotlib.use("agg")
from matplotlib import pyplot as plt  # noqa: E402

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", None, "Where the digits model was trained.", required=True)
flags.DEFINE_string(
    "output", "docs/inverse_problems.md", "The file to write; the picture goes beside it."
)
flags.DEFINE_integer("images", 40, "Held-out digits.")

SDES = {"VE": VESDE(), "VP": VPSDE(), "sub-VP": SubVPSDE()}
GAUSSIANS = (("correlated", "mask", 0.0), ("correlated", "mask", 0.2), ("correlated", "dense", 0.2))
OPTIONS = {"iterations": 16, "prior_std": gaussian_posterior.STD, "scale": 0.5}
STEPS = {name: 200 if method.of_the_steps else 20 for name, method in METHODS.items()}
GRIDS = (10, 20, 50, 100, 200, 500, 1000)
TASKS: dict[str, dict[str, Any]] = {
    "inpaint, a box of half the sides": {"task": "inpaint"},
    "inpaint, 3 of 4 pixels unknown": {"task": "inpaint", "mask": "random", "share": 0.25},
    "super_resolution by 2, noise 0.05": {"task": "super_resolution", "noise": 0.05},
    "motion_deblur over 4 pixels, noise 0.05": {"task": "motion_deblur", "noise": 0.05},
}


def gaussian_table() -> list[str]:
    """Errors of mean and covariance for each method, SDE and problem."""
    problems = [f"{name}, noise {noise}" for _, name, noise in GAUSSIANS]
    lines = header(
        "method", "steps", *(f"{sde}: {problem}" for problem in problems for sde in SDES)
    )
    for method in METHODS:
        cells = []
        for kind, name, noise in GAUSSIANS:
            for sde in SDES.values():
                errors = gaussian_posterior.measure(
                    sde, kind, name, noise, method, steps=STEPS[method], **OPTIONS
                )
                cells.append(f"{errors.mean:.3f} / {errors.covariance:.3f}")
                logging.info("%s %s %s %s", method, name, type(sde).__name__, errors)
        lines.append(row(f"`{method}`", str(STEPS[method]), *cells))
    return lines


def draw_gaussian(path: Path) -> None:
    """Error of the posterior's mean against the number of steps."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True)
    for axis, name in zip(axes, ("VE", "VP")):
        for method in METHODS:
            problem = SDES[name], *GAUSSIANS[0], method
            errors = [
                gaussian_posterior.measure(*problem, steps=steps, **OPTIONS) for steps in GRIDS
            ]
            axis.loglog(GRIDS, [each.mean for each in errors], "o-", label=method)
        axis.axhline(errors[0].floor, color="grey", linestyle=":", label="Monte-Carlo error")
        axis.set(title=name, xlabel="steps")
    axes[0].set_ylabel("error of the posterior mean / std of the data")
    axes[1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def digits_table(workdir: str, count: int) -> list[str]:
    """PSNR and SSIM of the methods and of what needs no model, for each task."""
    lines = []
    for title, fields in TASKS.items():
        lines += [f"### {title}", ""]
        lines += header(
            "method", "PSNR of answers", "of their mean", "SSIM of answers", "misfit", "seconds"
        )
        for method in METHODS:
            result = digits(workdir, count, {"method": method, "samples": 4, **fields})
            logging.info("%s %s %s", title, method, result)
            keys = ("psnr_answers", "psnr_mean", "ssim_answers", "misfit", "seconds")
            lines.append(
                row(
                    f"`{method}`",
                    *(f"{result[key]:.{1 if key == 'seconds' else 3}f}" for key in keys),
                )
            )
        for name in ("pseudo-inverse", "mean image", "nearest training image"):
            lines.append(row(name, *(f"{value:.3f}" for value in result[name]), "", ""))
        lines.append("")
    return lines


def digits(workdir: str, count: int, fields: dict[str, Any]) -> dict[str, Any]:
    """What `restoration.judge` says of one method, seconds of its second answer on, and the baselines."""
    config = get_config()
    config.restore.update(count=count, **fields)
    config.sampling.method = "pc" if METHODS[fields["method"]].of_the_steps else "solver"
    experiment = Experiment(config, jax.devices()[:1])
    _, ema = experiment.trained(workdir)
    problem = restoration.pose(experiment)
    with tempfile.TemporaryDirectory() as folder:
        answers, _ = restoration.answer(experiment, problem, ema, Path(folder))
        run = restoration.compile_answers(experiment, problem.operator)
        inputs = ema, *experiment.rows((problem.y, np.arange(count)))
        jax.block_until_ready(run(*inputs, 0))
        start = time.monotonic()
        jax.block_until_ready(run(*inputs, 1))
    result = restoration.judge(experiment, problem, answers) | {"seconds": time.monotonic() - start}
    return result | baselines(experiment, problem)


def baselines(experiment: Experiment, problem: Problem) -> dict[str, list[float]]:
    """PSNR twice (one answer is their mean) and SSIM of what the measurement and training images alone give."""
    operator, y = problem.operator, jnp.asarray(problem.y)
    pixels = jnp.asarray(experiment.train.pixels[np.arange(len(experiment.train))])
    train = experiment.scaler.dequantize(pixels, 0.5)
    flat = lambda a: a.reshape(len(a), -1)
    seen, asked = flat(operator.forward(train)), flat(y)
    nearest = train[((asked[:, None] - seen[None]) ** 2).sum(-1).argmin(1)]
    fill = lambda x: operator.from_basis(
        jnp.where(operator.measured, operator.solution(y), operator.to_basis(x))
    )
    mean = jnp.broadcast_to(train.mean(0), nearest.shape)
    candidates = {"pseudo-inverse": operator.pseudo_inverse(y), "mean image": fill(mean)}
    candidates["nearest training image"] = nearest
    judged = {
        name: restoration.judge(experiment, problem, np.asarray(x)[:, None])
        for name, x in candidates.items()
    }
    return {
        name: [each["psnr_answers"], each["psnr_mean"], each["ssim_answers"]]
        for name, each in judged.items()
    }


def main(_: list[str]) -> None:
    """Measures, and writes the page."""
    logging.set_verbosity(logging.INFO)
    jax.config.update("jax_default_matmul_precision", "highest")
    output = Path(FLAGS.output)
    draw_gaussian(output.with_suffix(".png"))
    text = PAGE.format(
        machine=machine(),
        picture=output.with_suffix(".png").name,
        gaussian="\n".join(gaussian_table()),
        digits="\n".join(digits_table(FLAGS.workdir, FLAGS.images)),
        images=FLAGS.images,
        **{name: gaussian_posterior.__dict__[name] for name in ("STD", "SIZE")},
    )
    output.write_text(text)


PAGE = """# Which method answers my inverse problem?

Made by `python -m benchmarks.inverse_problems --workdir=DIR` on {machine}; DIR holds the model of
`configs/vp/digits_ddpmpp_continuous.py`.

- **`moment_matching`** is exact for Gaussian data, with noise in y or without, in few steps, on every SDE and with
  every sampler: the choice where the spread of answers matters and the network is good. It costs
  `restore.iterations` + 1 gradients of the network a step; on the digits, whose network is small, its answers are less
  near the truth than those of others.
- **`pigdm`** costs one gradient a step, and takes any sampler, too. It is exact for data without correlations, so
  `restore.prior_std` matters.
- **`projection`** is the paper's, costs nothing, and is biased: what is not measured does not learn in time what is,
  and more steps do not help (see the picture).
- **`dps`** has the best PSNR on the digits, in 250 steps; but its step size, `restore.scale`, is right for no
  measurement in particular (the 5 sums below make it diverge), and it fits the noise in y: misfits are too small.
- **`ddrm`** (the default) comes near that for one evaluation a step and no gradient. Its answers spread too little;
  without noise their mean becomes right with many steps.

The last three work on the steps of `sampling.method = "pc"`, 200 and 250 of them here; the first two take any sampler,
DEIS with 20 steps here (`--config.sampling.method=solver`). For images, the denoised mean of the first two is clipped
to the range of images: otherwise guidance by a network runs away at high noise. In noiseless problems, what is measured
of the answer is set to y in the end. DAPS was not built: `moment_matching` is exact where it can be checked.

## Gaussian data

Images of {SIZE} correlated pixels (neighbours correlate by 0.61, standard deviation {STD}), whose posterior is known.
In each cell: the error of the mean of 2,000 answers in standard deviations of the data, and that of their covariance
relative to the norm of the data's. `mask` hides the 4 pixels in the middle, `dense` is 5 random sums.

{gaussian}

![Error of the posterior mean against steps]({picture})

## Digits

{images} held-out images, 4 answers to each. PSNR in dB; misfit is |y - A x| per entry for images from 0 to 1, which the
noise makes as large as itself; seconds for one answer to each image, without compilation.

{digits}"""


if __name__ == "__main__":
    app.run(main)
