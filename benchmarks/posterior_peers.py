"""Posterior samplers of this code beside those of azula and deepinv, where the posterior is known.

python -m benchmarks.posterior_peers --write

Writes the section "Beside other libraries" of docs/inverse_problems.md. All samplers get the same
exact score of Gaussian data (`benchmarks.posterior_problem`). Libraries that are not installed are
skipped with a message; `pip install azula deepinv` installs both.
"""

from __future__ import annotations

import functools
import importlib.metadata
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags
from jax import Array

from api.calibration import Calibration
from api.prior import Prior
from benchmarks import markdown, parts, posterior_torch, speed
from benchmarks.posterior_problem import (
    CALLS,
    COVARIANCE,
    SDE,
    Contestant,
    Draw,
    Problem,
    calibrate,
    choose_scale,
    count_evaluations,
    make_problem,
)
from sde_lib import Score
from tests import gaussian_posterior
from tests.gaussian_posterior import SHAPE, SIZE

FLAGS = flags.FLAGS
flags.DEFINE_bool("write", False, "Write the section; otherwise it is printed.")
flags.DEFINE_string("page", "docs/inverse_problems.md", "The page that has the section.")
flags.DEFINE_string(
    "records", ".cache/posterior_peers.jsonl", "Results; a later run resumes from them."
)
flags.DEFINE_list("problems", ["mask", "dense"], "Operators of tests/gaussian_posterior.py.")
flags.DEFINE_string("machine", None, "The machine to name on the page, instead of this one.")

NOISE = 0.2
STEPS = {"dps": (200,), "ddrm": (200,), "daps": (200,), "pigdm": (20, 100)}
STEPS |= {"moment_matching": (20, 100)}
SCALES = 0.02, 0.05, 0.1, 0.2, 0.5, 1.0
OURS = "this code"


# --- our samplers ---


def own_contestants(steps: dict[str, Sequence[int]]) -> list[Contestant]:
    """Return samplers of this code by the names of their methods and their numbers of steps."""
    score = gaussian_posterior.exact_score(SDE, COVARIANCE)
    prior, counted = (Prior(each, SDE, SHAPE) for each in (score, count_calls(score)))

    def build(method: str, steps: int) -> Contestant:
        prepare, prepare_counted = (
            functools.partial(_prepare, each, method, steps) for each in (prior, counted)
        )
        verdict = functools.partial(_calibrate, prior, method, steps)
        scales = SCALES if method == "dps" else ()
        return Contestant(OURS, method, steps, prepare, prepare_counted, verdict, scales)

    return [build(method, count) for method, counts in steps.items() for count in counts]


def count_calls(score: Score) -> Score:
    """Return a score that counts its evaluations, and those of its gradient, in `CALLS`."""

    def add(name: str) -> None:
        setattr(CALLS, name, getattr(CALLS, name) + 1)

    @jax.custom_vjp
    def counted(x: Array, t: Array) -> Array:
        jax.debug.callback(functools.partial(add, "evaluations"))
        return score(x, t)

    def forward(x: Array, t: Array) -> tuple[Array, Any]:
        jax.debug.callback(functools.partial(add, "evaluations"))
        return jax.vjp(score, x, t)

    def backward(pull_back: Any, gradient: Array) -> tuple[Array, Array]:
        jax.debug.callback(functools.partial(add, "gradients"))
        return pull_back(gradient)

    counted.defvjp(forward, backward)
    return counted


def _options(method: str, problem: Problem, scale: float) -> dict[str, Any]:
    options = {"dps": {"scale": scale}, "moment_matching": {"iterations": len(problem.a)}}
    return options.get(method, {})


def _prepare(
    prior: Prior, method: str, steps: int, problem: Problem, y: Array, scale: float
) -> Draw:
    options = _options(method, problem, scale)
    posterior = prior.posterior(y, problem.operator, noise=problem.noise, method=method, **options)

    def draw(seed: int) -> np.ndarray:
        x = posterior.sample(seed=seed, steps=steps, batch_size=len(y))
        return np.asarray(x, np.float64).reshape(-1, SIZE)

    return draw


def _calibrate(
    prior: Prior,
    method: str,
    steps: int,
    problem: Problem,
    scale: float,
    simulations: int,
    samples: int,
) -> Calibration:
    options = _options(method, problem, scale)
    posterior = prior.posterior(
        None, problem.operator, noise=problem.noise, method=method, **options
    )
    return posterior.calibrate(
        simulations, samples, steps=steps, batch_size=min(simulations * samples, 4096)
    )


# --- measurement ---


def measure(
    records: parts.Records,
    problem: Problem,
    contestants: list[Contestant],
    *,
    count: int = 2000,
    timed: int = 500,
    rounds: int = 3,
    simulations: int = 300,
    samples: int = 31,
) -> list[dict[str, Any]]:
    """Return the results of each contestant as a row of a table; measure those not in the records.

    Args:
      count: samples for the errors of mean and covariance.
      timed, rounds: samples whose time is measured, and how often, in turn with the others.
      simulations, samples: those of the calibration test, see `Posterior.calibrate`.
    """
    keys = [f"{problem.name}: {each.name}" for each in contestants]
    for key, each in zip(keys, contestants):
        if records.is_missing(key):
            scale = choose_scale(each, problem, timed)
            found = measure_quality(each, problem, scale, count, simulations, samples)
            records.add(key, found)
            print(records.results[key], flush=True)
    seconds_key = f"{problem.name}: seconds of {', '.join(each.name for each in contestants)}"
    if records.is_missing(seconds_key):
        draws = {}
        for key, each in zip(keys, contestants):
            scale = records.results[key]["scale"]
            draw = each.prepare(problem, problem.repeat(timed), scale or 1.0)
            draws[each.name] = functools.partial(draw, 2)
        records.add(seconds_key, dict(speed.time_in_turn(draws, rounds)))
    seconds = records.results[seconds_key]
    return [
        records.results[key] | {"seconds": statistics.median(seconds[each.name])}
        for key, each in zip(keys, contestants)
    ]


def measure_quality(
    contestant: Contestant,
    problem: Problem,
    scale: float,
    count: int,
    simulations: int,
    samples: int,
) -> dict[str, Any]:
    """Return the errors, the evaluations and the calibration of a contestant, see `measure`."""
    errors = problem.errors(contestant.prepare(problem, problem.repeat(count), scale)(1))
    verdict = contestant.calibrate or functools.partial(calibrate, contestant.prepare)
    found = verdict(problem, scale, simulations, samples)
    return {
        "library": contestant.library,
        "method": contestant.method,
        "steps": contestant.steps,
        "scale": scale if contestant.scales else None,
        **count_evaluations(contestant, problem, scale),
        **errors._asdict(),
        "kind": found.kind,
        "coverage_90": found.coverage(0.9)[0],
    }


# --- page ---


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Return a table of the rows of one problem."""
    titles = "sampler", "steps", "step size", "evaluations", "gradients", "seconds"
    lines = markdown.header(*titles, "mean", "covariance", "calibration")
    for row in rows:
        scale = "" if row["scale"] is None else f"{row['scale']:g}"
        lines.append(
            markdown.row(
                f"{row['library']}: `{row['method']}`",
                str(row["steps"]),
                scale,
                str(row["evaluations"]),
                str(row["gradients"]),
                f"{row['seconds']:.2f}",
                f"{row['mean']:.3f}",
                f"{row['covariance']:.3f}",
                f"{row['kind']}, {100 * row['coverage_90']:.0f} %",
            )
        )
    return lines


def section(results: dict[str, list[dict[str, Any]]], machine: str) -> str:
    """Return the section from the rows by the names of problems."""
    tables = []
    for name, rows in results.items():
        floor = max(row["floor"] for row in rows)
        title = f"`{name}`, noise {NOISE}; the Monte-Carlo error of the mean is {floor:.3f}:"
        tables += [title, "", *table(rows), ""]
    names = "jax", "torch", "azula", "deepinv"
    installed = [name for name in names if not posterior_torch.missing(name)]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in installed)
    return PAGE.format(machine=machine, versions=versions, tables="\n".join(tables).rstrip())


PAGE = """## Beside other libraries

Written by `python -m benchmarks.posterior_peers --write` with
{versions},
on {machine}.

All samplers get the exact score of the Gaussian data above and the VP SDE with the same alpha(t)
and std(t), in one process on the CPU. Evaluations are those of the score for one sample, and
gradients are vector-Jacobian products of the score; both are counted. Seconds are the median of 3
runs for 500 samples, in turn with the other samplers. JAX compiles its samplers before; PyTorch
runs eagerly on one thread. The score costs almost nothing here, so that seconds compare the
overhead of the samplers; with a network, compare evaluations and gradients. The errors of mean and
covariance are those of the tables above, for 2,000 samples. Calibration is the verdict of
`Posterior.calibrate` (`api/calibration.py`) from 300 simulations with 31 samples, and how
often 90 % intervals contain the truth. For other libraries the images are exact draws of the data;
for this code, draws of the same sampler.

- The step size of each DPS has the smallest error of the mean among 6 or 7 values, on this
  measurement. It has other units in each library. azula divides the gradient by the residual norm
  of the whole batch, so that its samples depend on the batch size; the step size here is its zeta
  divided by the square root of the batch size.
- The guided samplers of this code take DEIS steps with its default noise levels. Those of azula and
  deepinv take DDIM steps at even times, so that rows with few steps compare solvers, too. Each DPS
  takes ancestral steps at nearly even times.
- `pigdm` has the standard deviation of the data, which this code estimates from samples. deepinv
  assumes 1, and azula neglects the noise in y.
- Moment matching makes as many iterations of conjugate gradients as y has entries, 12 and 5. Those
  of deepinv also end at its relative tolerance.
- deepinv's denoised means are not clipped, and its states are float64, its default.

{tables}
"""


def main(_: list[str]) -> None:
    """Measure what the records lack, and write or print the section."""
    records = parts.Records(Path(FLAGS.records))
    contestants = own_contestants(dict(STEPS)) + posterior_torch.contestants()
    results = {
        name: measure(records, make_problem(name, NOISE), contestants) for name in FLAGS.problems
    }
    text = section(results, FLAGS.machine or markdown.machine())
    if not FLAGS.write:
        print(text)
        return
    page = Path(FLAGS.page)
    page.write_text(markdown.set_section(page.read_text(), "peers", text))


if __name__ == "__main__":
    app.run(main)
