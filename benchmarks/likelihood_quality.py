"""Error against network evaluations and time of the likelihood, beside the official recipe; writes docs/likelihood.md.

python -m benchmarks.likelihood_quality --workdir=DIR    (DIR: trained with configs/vp/digits_ddpmpp_continuous.py)
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from jax import Array

import likelihood
from benchmarks.markdown import header, machine, row
from benchmarks.speed import alternate
from checkpoints import Checkpoints
from configs.vp.digits_ddpmpp_continuous import get_config
from experiment import Experiment
from sde_lib import SDE, VESDE, VPSDE, Score, SubVPSDE
from solvers import integrate
from tests import mixture

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "workdir", None, "Where the digits model was trained; without it, only the mixture is measured."
)
flags.DEFINE_string("output", "docs/likelihood.md", "The file to write.")
flags.DEFINE_integer("images", 32, "Images of each problem.")
flags.DEFINE_integer("repeats", 5, "Timed runs of each competitor, in turn; the median counts.")

TOLERANCES = (3e-2, 1e-2, 3e-3, 1e-3, 1e-4)
Estimate = Callable[[Array, Array], tuple[Array, Array]]
"""(x (B, ...), probes (B, k, ...)) -> log p in nats (B,), score evaluations (B,)."""


class Problem(NamedTuple):
    """Images x (B, ...) with probes (B, k, ...); logp (B,) is the truth, or None if only a close solve knows it."""

    name: str
    score: Score
    sde: SDE
    x: Array
    probes: Array
    logp: Array | None


def mixture_problem(sde: SDE, count: int) -> Problem:
    """Ten Gaussians of standard deviations 0.1 to 0.3 in images of 4x4x1, with the exact trace."""
    data = mixture.make(10, (4, 4, 1))
    x = data.sample(jax.random.key(0), count)
    probes = likelihood.draw_probes(jax.random.split(jax.random.key(1), count), x.shape, "exact")
    name = f"mixture, {type(sde).__name__}"
    return Problem(name, data.score(sde), sde, x, probes, data.logp(sde, x, sde.t_min))


def digits_problem(workdir: str, count: int) -> tuple[Problem, float]:
    """Held-out digits, dequantized, with one Rademacher probe; and log dx/du of their grey levels u."""
    experiment = Experiment(get_config(), jax.devices()[:1])
    checkpoints = Checkpoints(workdir)
    kept = checkpoints.snapshots()
    params = checkpoints.restore(kept[max(kept)], {"ema": experiment.abstract_params})["ema"]
    pixels = experiment.test.pixels[:count]
    x = experiment.scaler.dequantize(pixels, jax.random.uniform(jax.random.key(0), pixels.shape))
    probes = likelihood.draw_probes(jax.random.split(jax.random.key(1), count), x.shape)
    problem = Problem(
        "digits, DDPM++, VPSDE", experiment.score(params), experiment.sde, x, probes, None
    )
    return problem, experiment.scaler.log_scale


def official(score: Score, sde: SDE, x: Array, probes: Array) -> tuple[Array, Array]:
    """The official recipe: x over t by RK45 with rtol = atol = 1e-5, and steps that the whole batch shares.

    Its own second pass through the network and its trips to the host, for every evaluation, are spared it.
    """

    def field(t: Array, state: tuple[Array, Array], probes: Array) -> tuple[Array, Array]:
        drift = lambda x: sde.reverse_drift(
            score(x, jnp.broadcast_to(t, x.shape[:1])), x, t[None], probability_flow=True
        )
        dx, tangent = jax.linearize(drift, state[0])
        traces = jax.vmap(lambda v: (v * tangent(v)).reshape(x.shape[0], -1).sum(-1))(
            probes.swapaxes(0, 1)
        )
        return dx, traces.mean(0)

    state = jax.tree.map(lambda leaf: leaf[None], (x, jnp.zeros(x.shape[0])))
    (z, traces), nfe = integrate(
        field, state, sde.t_min, sde.T, args=probes[None], rtol=1e-5, atol=1e-5
    )
    return sde.prior_logp(z[0]) + traces[0], jnp.broadcast_to(nfe, x.shape[:1])


def ours(
    score: Score, sde: SDE, x: Array, probes: Array, tolerance: float
) -> tuple[Array, Array, Array]:
    """log p and evaluations, and the solver's estimate of its error."""
    result = likelihood.log_likelihood(score, sde, x, probes, tolerance=tolerance)
    return result.logp, result.nfe, result.error


def compare(problem: Problem) -> list[str]:
    """Rows of a table: the competitors run in turn, so that other load on the machine meets all of them."""
    score, sde, x, probes, truth = problem[1:]
    runs = {"official": jax.jit(lambda: official(score, sde, x, probes))}
    for tolerance in TOLERANCES:
        runs[f"{tolerance:g}"] = jax.jit(functools.partial(ours, score, sde, x, probes, tolerance))
    if truth is None:
        truth = jax.jit(functools.partial(ours, score, sde, x, probes, 1e-5))()[0]
    results = {name: jax.block_until_ready(run()) for name, run in runs.items()}
    seconds = alternate(runs, FLAGS.repeats)
    bits = math.prod(x.shape[1:]) * math.log(2)
    rows = []
    for name, result in results.items():
        error, nfe = np.asarray(result[0] - truth) / bits, float(result[1].mean())
        own = f"{float(result[2].mean()) / bits:.1e}" if len(result) > 2 else ""
        ratio = np.median(np.array(seconds[name]) / np.array(seconds["official"]))
        speed = f"{len(x) / np.median(seconds[name]):.0f}"
        figures = (
            f"{np.abs(error).mean():.1e}",
            f"{np.abs(error).max():.1e}",
            f"{error.mean():+.1e}",
            own,
        )
        rows.append(row(problem.name, name, f"{nfe:.0f}", *figures, speed, f"{ratio:.2f}"))
        print(rows[-1], flush=True)
    return rows


def movements(problem: Problem, log_scale: float) -> list[str]:
    """Rows: how far the mean bits/dim of the digits moves with the probes, the tolerance and t_min."""
    score, x, dims = problem.score, problem.x, math.prod(problem.x.shape[1:])

    def estimate(
        kind: str = "Rademacher", count: int = 1, tolerance: float = likelihood.TOLERANCE, **t_min
    ) -> tuple:
        """bits/dim by probe (B, k), and mean NFE."""
        probes = likelihood.draw_probes(
            jax.random.split(jax.random.key(2), len(x)), x.shape, kind, count
        )
        sde = dataclasses.replace(problem.sde, **t_min)
        run = functools.partial(likelihood.log_likelihood, score, sde, tolerance=tolerance)
        result = jax.jit(run)(x, probes)
        return np.asarray(likelihood.bits_per_dim(result.per_probe, dims, log_scale)), float(
            result.nfe.mean()
        )

    def describe(
        name: str,
        bpd: np.ndarray,
        nfe: float,
        reference: np.ndarray | None = None,
        spread: str = "",
    ) -> str:
        moved = "" if reference is None else mean_and_stderr(bpd.mean(1) - reference.mean(1))
        line = row(name, f"{bpd.mean():.4f}", moved, spread, f"{nfe:.0f}")
        print(line, flush=True)
        return line

    exact, nfe = estimate("exact")
    rows = [describe("exact trace", exact, nfe)]
    for kind in ("Rademacher", "Gaussian"):
        for count in (1, 4, 16):
            bpd, nfe = estimate(kind, count)
            spread = f"{bpd.std(1, ddof=1).mean():.4f}" if count > 1 else ""
            rows.append(describe(f"{count} {kind}", bpd, nfe, exact, spread))
    reference = estimate()[0]
    for changes in (
        *({"tolerance": each} for each in (3e-2, 1e-2, 3e-3, 1e-4, 1e-5)),
        *({"t_min": each} for each in (1e-6, 1e-4, 3e-4, 1e-3, 3e-3)),
    ):
        name = ", ".join(f"{field} {value:g}" for field, value in changes.items())
        rows.append(describe(name, *estimate(**changes), reference))
    return rows


def mean_and_stderr(values: np.ndarray) -> str:
    """Of the values of images."""
    return f"{values.mean():+.4f} +- {values.std(ddof=1) / math.sqrt(len(values)):.4f}"


def main(_: list[str]) -> None:
    """Measures, prints and writes."""
    logging.set_verbosity(logging.WARNING)
    flag = " --workdir=DIR" if FLAGS.workdir else ""
    lines = [
        *TEXT.format(
            command=f"python -m benchmarks.likelihood_quality{flag}",
            machine=machine(),
            n=FLAGS.images,
        ).splitlines(),
        "",
        *header(
            "Problem",
            "tolerance",
            "NFE",
            "error",
            "largest",
            "mean",
            "own estimate",
            "images/s",
            "time",
        ),
    ]
    for sde in (VESDE(), VPSDE(), SubVPSDE()):
        lines += compare(mixture_problem(sde, FLAGS.images))
    if FLAGS.workdir:
        problem, log_scale = digits_problem(FLAGS.workdir, FLAGS.images)
        lines += compare(problem)
        lines += [
            "",
            *MOVEMENTS.splitlines(),
            "",
            *header("", "bits/dim", "moves by", "spread of a probe", "NFE"),
        ]
        lines += movements(problem, log_scale)
    Path(FLAGS.output).write_text("\n".join(lines) + "\n")
    print(f"written: {FLAGS.output}")


TEXT = """# How good and how fast the likelihood is

Written by `{command}`
on {machine}, {n} images a problem.

`official` is the recipe of the official code: x over t, Dormand-Prince 5(4), rtol = atol = 1e-5, steps that the batch
shares. It is spared what else that code does in each evaluation: a second pass through the network for the divergence,
and a trip to the host. The other rows are `likelihood.log_likelihood` at tolerances; `eval.bpd_tolerance` is 1e-3 by
default. The mixture is one of ten Gaussians in images of 4x4x1 whose log p is known, with the exact trace. Errors for
the digits are those of the solver, against a tolerance of 1e-5 and with the same single probe.

Errors are in bits/dim: mean |error| of an image, the largest one, the mean error, and what the solver says of itself.
NFE are evaluations of the score for an image; time is relative to the official recipe, in turns with it.
"""

MOVEMENTS = """## How far the estimate for the digits moves

Against the exact trace, with the probes; against one Rademacher probe, the same one, with tolerance and t_min, whose
defaults are 1e-3 and 1e-5. +- is the standard error of the movement over the images; the spread is the standard
deviation among the probes of an image. All in bits/dim.
"""

if __name__ == "__main__":
    app.run(main)
