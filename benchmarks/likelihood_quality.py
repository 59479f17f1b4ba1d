"""Error of the likelihood against network evaluations and time, compared with the official recipe.

python -m benchmarks.likelihood_quality --workdir=DIR

Writes docs/likelihood.md. DIR is a workdir trained with
configs/vp/digits_ddpmpp_continuous.py and --noconfig.model.ema_ramp.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from jax import Array

import likelihood
from benchmarks.markdown import header, machine, row
from benchmarks.speed import time_in_turn
from configs.vp.digits_ddpmpp_continuous import get_config
from experiment import Experiment
from runs.checkpoints import Checkpoints
from sde_lib import SDE, VESDE, VPSDE, Score, SubVPSDE
from solvers import integrate
from tests import mixture

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "workdir", None, "The workdir of the digits model; without it, only the mixture is measured."
)
flags.DEFINE_string("output", "docs/likelihood.md", "The file to write.")
flags.DEFINE_integer("images", 32, "Images of each problem.")
flags.DEFINE_integer("repeats", 5, "Timed runs of each method, in turn; tables show medians.")

TOLERANCES = (3e-2, 1e-2, 3e-3, 1e-3, 1e-4)
REFERENCE_TOLERANCE = 1e-5  # of the reference solution where log p is unknown
OFFICIAL_TOLERANCE = 1e-5  # rtol and atol of the official code


class Problem(NamedTuple):
    """Images whose likelihood is estimated.

    Attributes:
      name: its name in the table.
      score, sde: the model.
      x: images (B, ...).
      probes: probes (B, k, ...) of the trace estimate.
      logp: the exact log-likelihood (B,), or None if a solution at REFERENCE_TOLERANCE replaces it.
    """

    name: str
    score: Score
    sde: SDE
    x: Array
    probes: Array
    logp: Array | None


class Estimate(NamedTuple):
    """log p in nats, score evaluations, and the solver's own error estimate, if any; each (B,)."""

    logp: Array
    nfe: Array
    error: Array | None = None


# --- problems ---


def mixture_problem(sde: SDE, count: int) -> Problem:
    """Return images of 4x4x1 from ten Gaussians of std 0.1 to 0.3, with the exact trace."""
    data = mixture.make(10, (4, 4, 1))
    x = data.sample(jax.random.key(0), count)
    probes = likelihood.draw_probes(jax.random.split(jax.random.key(1), count), x.shape, "exact")
    name = f"mixture, {type(sde).__name__}"
    return Problem(name, data.score(sde), sde, x, probes, data.logp(sde, x, sde.t_min))


def digits_problem(workdir: str, count: int) -> tuple[Problem, float]:
    """Return held-out digits, dequantized, with one Rademacher probe each.

    Also returns log dx/du, u being the digits' grey levels.
    """
    experiment = Experiment(get_config(), jax.devices()[:1])
    checkpoints = Checkpoints(workdir)
    kept = checkpoints.snapshots()
    params = checkpoints.restore(kept[max(kept)], {"ema": experiment.abstract_params})["ema"]
    pixels = jnp.asarray(experiment.test.pixels[:count])
    x = experiment.scaler.dequantize(pixels, jax.random.uniform(jax.random.key(0), pixels.shape))
    probes = likelihood.draw_probes(jax.random.split(jax.random.key(1), count), x.shape)
    score = experiment.score(params)
    problem = Problem("digits, DDPM++, VPSDE", score, experiment.sde, x, probes, None)
    return problem, experiment.scaler.log_scale


# --- methods ---


def official(score: Score, sde: SDE, x: Array, probes: Array) -> Estimate:
    """Estimate log p by the official recipe: RK45 in t, with steps shared by the batch.

    It omits two costs of the official code in every evaluation: a second pass through the network,
    and a transfer to the host.
    """

    def field(t: Array, state: tuple[Array, Array], probes: Array) -> tuple[Array, Array]:
        def drift(x: Array) -> Array:
            s = score(x, jnp.broadcast_to(t, x.shape[:1]))
            return sde.reverse_drift(s, x, t[None], probability_flow=True)

        dx, tangent = jax.linearize(drift, state[0])

        def trace(probe: Array) -> Array:
            return (probe * tangent(probe)).reshape(x.shape[0], -1).sum(-1)

        return dx, jax.vmap(trace)(probes.swapaxes(0, 1)).mean(0)

    state = jax.tree.map(lambda leaf: leaf[None], (x, jnp.zeros(x.shape[0])))
    tolerances = {"rtol": OFFICIAL_TOLERANCE, "atol": OFFICIAL_TOLERANCE}
    (z, traces), nfe = integrate(field, state, sde.t_min, sde.T, args=probes[None], **tolerances)
    return Estimate(sde.prior_logp(z[0]) + traces[0], jnp.broadcast_to(nfe, x.shape[:1]))


def own(score: Score, sde: SDE, x: Array, probes: Array, tolerance: float) -> Estimate:
    """Estimate log p with `likelihood.log_likelihood`."""
    result = likelihood.log_likelihood(score, sde, x, probes, tolerance=tolerance)
    return Estimate(result.logp, result.nfe, result.error)


def compare(problem: Problem) -> list[str]:
    """Return a row for each method, timed in turn with the others."""
    score, sde, x, probes = problem.score, problem.sde, problem.x, problem.probes
    runs: dict[str, Callable[[], Estimate]] = {
        "official": jax.jit(functools.partial(official, score, sde, x, probes))
    }
    for tolerance in TOLERANCES:
        runs[f"{tolerance:g}"] = jax.jit(functools.partial(own, score, sde, x, probes, tolerance))
    truth = problem.logp
    if truth is None:
        truth = jax.jit(functools.partial(own, score, sde, x, probes, REFERENCE_TOLERANCE))().logp
    results = {name: jax.block_until_ready(run()) for name, run in runs.items()}
    seconds = time_in_turn(runs, FLAGS.repeats)
    bits = math.prod(x.shape[1:]) * math.log(2)
    rows = []
    for name, result in results.items():
        error = np.asarray(result.logp - truth) / bits
        own_estimate = "" if result.error is None else f"{float(result.error.mean()) / bits:.1e}"
        relative_time = np.median(np.array(seconds[name]) / np.array(seconds["official"]))
        cells = [
            problem.name,
            name,
            f"{float(result.nfe.mean()):.0f}",
            f"{np.abs(error).mean():.1e}",
            f"{np.abs(error).max():.1e}",
            f"{error.mean():+.1e}",
            own_estimate,
            f"{len(x) / np.median(seconds[name]):.0f}",
            f"{relative_time:.2f}",
        ]
        rows.append(row(*cells))
        print(rows[-1], flush=True)
    return rows


# --- sensitivity ---


class BitsPerDim(NamedTuple):
    """bits/dim of each image and probe (B, k), and the mean number of evaluations."""

    values: np.ndarray
    nfe: float


def estimate_bits_per_dim(
    problem: Problem,
    log_scale: float,
    *,
    kind: str = "Rademacher",
    count: int = 1,
    tolerance: float = likelihood.TOLERANCE,
    **sde_fields: float,
) -> BitsPerDim:
    """Estimate bits/dim with `count` probes of a kind; `sde_fields` replace fields of the SDE."""
    x = problem.x
    keys = jax.random.split(jax.random.key(2), len(x))
    probes = likelihood.draw_probes(keys, x.shape, kind, count)
    sde = dataclasses.replace(problem.sde, **sde_fields)
    run = functools.partial(likelihood.log_likelihood, problem.score, sde, tolerance=tolerance)
    result = jax.jit(run)(x, probes)
    values = likelihood.bits_per_dim(result.per_probe, math.prod(x.shape[1:]), log_scale)
    return BitsPerDim(np.asarray(values), float(result.nfe.mean()))


def sensitivity(problem: Problem, log_scale: float) -> list[str]:
    """Return rows with the change of mean bits/dim with the probes, the tolerance and t_min."""
    estimate = functools.partial(estimate_bits_per_dim, problem, log_scale)
    rows = []

    def add_row(name: str, bpd: BitsPerDim, reference: BitsPerDim | None, std: str = "") -> None:
        change = ""
        if reference is not None:
            change = mean_and_stderr(bpd.values.mean(1) - reference.values.mean(1))
        rows.append(row(name, f"{bpd.values.mean():.4f}", change, std, f"{bpd.nfe:.0f}"))
        print(rows[-1], flush=True)

    exact = estimate(kind="exact")
    add_row("exact trace", exact, None)
    for kind in ("Rademacher", "Gaussian"):
        for count in (1, 4, 16):
            bpd = estimate(kind=kind, count=count)
            std = f"{bpd.values.std(1, ddof=1).mean():.4f}" if count > 1 else ""
            add_row(f"{count} {kind}", bpd, exact, std)
    default = estimate()
    changes: list[tuple[str, float]] = []
    changes += [("tolerance", value) for value in (3e-2, 1e-2, 3e-3, 1e-4, 1e-5)]
    changes += [("t_min", value) for value in (1e-6, 1e-4, 3e-4, 1e-3, 3e-3)]
    for field, value in changes:
        arguments: dict[str, Any] = {field: value}
        add_row(f"{field} {value:g}", estimate(**arguments), default)
    return rows


def mean_and_stderr(values: np.ndarray) -> str:
    """Format the mean and standard error of values (N,)."""
    return f"{values.mean():+.4f} +- {values.std(ddof=1) / math.sqrt(len(values)):.4f}"


# --- page ---


def main(_: list[str]) -> None:
    """Measure, print and write the page."""
    logging.set_verbosity(logging.WARNING)
    flag = " --workdir=DIR" if FLAGS.workdir else ""
    command = f"python -m benchmarks.likelihood_quality{flag}"
    lines = TEXT.format(command=command, machine=machine(), n=FLAGS.images).splitlines()
    figures = ("NFE", "error", "largest", "mean", "own estimate", "images/s", "time")
    lines += ["", *header("Problem", "tolerance", *figures)]
    for sde in (VESDE(), VPSDE(), SubVPSDE()):
        lines += compare(mixture_problem(sde, FLAGS.images))
    if FLAGS.workdir:
        problem, log_scale = digits_problem(FLAGS.workdir, FLAGS.images)
        lines += compare(problem)
        lines += ["", *SENSITIVITY.splitlines(), ""]
        lines += header("", "bits/dim", "moves by", "spread of a probe", "NFE")
        lines += sensitivity(problem, log_scale)
    Path(FLAGS.output).write_text("\n".join(lines) + "\n")
    print(f"written: {FLAGS.output}")


TEXT = """# Accuracy and speed of the likelihood

`python main.py --workdir=DIR --mode=eval --config.eval.enable_bpd` computes bits/dim. This page
states how exact they are at each tolerance of the solver, and what an evaluation costs.

Written by `{command}`
on {machine}, {n} images for each problem. DIR was trained with
`configs/vp/digits_ddpmpp_continuous.py` and `--noconfig.model.ema_ramp`.

`official` is the recipe of the official code: Dormand-Prince 5(4) in t, rtol = atol = 1e-5, with
steps shared by the batch. Two costs of that code in each evaluation are omitted: a second pass
through the network for the divergence, and a transfer to the host. The other rows are
`likelihood.log_likelihood` at several tolerances; the default of `eval.bpd_tolerance` is 1e-3. The
mixture consists of ten Gaussians in images of 4x4x1, with known log p and the exact trace. Errors
for the digits are those of the solver, against a tolerance of 1e-5 with the same single probe.

Errors are in bits/dim: the mean |error| of an image, the largest one, the mean error, and the
solver's own estimate. NFE are evaluations of the score per image. Time is relative to the official
recipe, which ran in turn with the others.
"""

SENSITIVITY = """## Sensitivity of the estimate for the digits

Rows with probes are compared with the exact trace; rows with a tolerance or t_min are compared with
one Rademacher probe, the same one, at the defaults 1e-3 and 1e-5. +- is the standard error of the
difference over the images. The spread is the standard deviation among the probes of an image. All
values are in bits/dim.
"""

if __name__ == "__main__":
    app.run(main)
