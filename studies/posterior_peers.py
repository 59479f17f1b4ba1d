"""Posterior samplers of this code beside those of azula and deepinv, where the posterior is known.

python -m studies.posterior_peers [--write]

Prints the section "Beside other libraries" of docs/inverse_problems.md and, with --write, puts it
into the page. Data are the correlated Gaussian images of `tests.gaussian_posterior`, with the VP
SDE; all samplers get the same exact score. Libraries that are not installed are skipped with a
message; `pip install azula deepinv` installs both.
"""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array

from benchmarks import harness
from benchmarks.records import Record, Records
from benchmarks.tables import Columns, table, versions
from score_sde import Calibration, Prior
from sde_lib import Score
from studies import common, posterior_torch
from studies.posterior_problem import (
    CALLS,
    COVARIANCE,
    NOISE,
    SDE,
    Contestant,
    Draw,
    Problem,
    calibrate,
    choose_scale,
    count_evaluations,
    make_problem,
)
from tests import gaussian_posterior
from tests.gaussian_posterior import SHAPE, SIZE

OPTIONS = {"records": ".cache/posterior_peers.jsonl", "write": False}
PROBLEMS = ("mask", "dense")
OWN: dict[str, tuple[int, ...]] = {
    "dps": (200,),
    "ddrm": (200,),
    "daps": (200,),
    "pigdm": (20, 100),
    "moment_matching": (20, 100),
}
"""Our methods and their numbers of steps."""
SCALES = 0.02, 0.05, 0.1, 0.2, 0.5, 1.0
COLUMNS: Columns = {
    "sampler": ("sampler", "", 1),
    "steps": ("steps", "", 1),
    "step size": ("scale", "g", 1),
    "evaluations": ("evaluations", "", 1),
    "gradients": ("gradients", "", 1),
    "seconds": ("seconds", ".2f", 1),
    "mean": ("mean", ".3f", 1),
    "covariance": ("covariance", ".3f", 1),
    "calibration": ("calibration", "", 1),
}


# --- our samplers ---------------------------------------------------------------------------------


def own_contestants(methods: dict[str, Sequence[int]]) -> list[Contestant]:
    """Return samplers of this code by the names of their methods and their numbers of steps."""
    score = gaussian_posterior.exact_score(SDE, COVARIANCE)
    prior, counted = (Prior(each, SDE, SHAPE) for each in (score, count_calls(score)))
    return [
        Contestant(
            "this code",
            method,
            steps,
            functools.partial(_prepare, prior, method, steps),
            functools.partial(_prepare, counted, method, steps),
            SCALES if method == "dps" else (),
            functools.partial(_calibrate, prior, method, steps),
        )
        for method, counts in methods.items()
        for steps in counts
    ]


def count_calls(score: Score) -> Score:
    """Return a score that counts its evaluations, and those of its gradient, in `CALLS`."""

    @jax.custom_vjp
    def counted(x: Array, t: Array) -> Array:
        jax.debug.callback(functools.partial(CALLS.add, "evaluations"))
        return score(x, t)

    def forward(x: Array, t: Array) -> tuple[Array, Any]:
        jax.debug.callback(functools.partial(CALLS.add, "evaluations"))
        return jax.vjp(score, x, t)

    def backward(pull_back: Any, gradient: Array) -> tuple[Array, Array]:
        jax.debug.callback(functools.partial(CALLS.add, "gradients"))
        return pull_back(gradient)

    counted.defvjp(forward, backward)
    return counted


def _posterior(prior: Prior, method: str, problem: Problem, y: Array | None, scale: float) -> Any:
    options = {"dps": {"scale": scale}, "moment_matching": {"iterations": len(problem.a)}}
    chosen: dict[str, Any] = options.get(method, {})
    return prior.posterior(y, problem.operator, noise=problem.noise, method=method, **chosen)


def _prepare(
    prior: Prior, method: str, steps: int, problem: Problem, y: Array, scale: float
) -> Draw:
    posterior = _posterior(prior, method, problem, y, scale)

    def draw(seed: int) -> np.ndarray:
        x = posterior.sample(seed=seed, steps=steps, batch_size=len(y))
        return np.asarray(x, np.float64).reshape(-1, SIZE)

    return draw


def _calibrate(
    prior: Prior, method: str, steps: int, problem: Problem, scale: float, count: int, samples: int
) -> Calibration:
    posterior = _posterior(prior, method, problem, None, scale)
    size = min(count * samples, 4096)
    return posterior.calibrate(count, samples, steps=steps, batch_size=size)


# --- measurement ----------------------------------------------------------------------------------


def measure(
    records: Records,
    problem: Problem,
    contestants: Sequence[Contestant],
    *,
    count: int = 2000,
    timed: int = 500,
    rounds: int = 3,
    simulations: tuple[int, int] = (300, 31),
) -> list[Record]:
    """Return a row of the table for each contestant; measure what is not in the records.

    Args:
      count: samples for the errors of mean and covariance.
      timed, rounds: samples whose time is measured, and how often, in turn with the others.
      simulations: those of the calibration test, and samples of each.
    """
    rows, draws = [], {}
    for each in contestants:
        arguments = [problem.name, problem.noise, each.name, each.steps, count, timed, simulations]

        def compute(each: Contestant = each) -> Record:
            scale = choose_scale(each, problem, timed)
            x = each.prepare(problem, problem.repeat(count), scale)(1)
            judge = each.calibrate or functools.partial(calibrate, each.prepare)
            found = judge(problem, scale, *simulations)
            counts = count_evaluations(each, problem, scale)
            verdict = f"{found.kind}, {100 * found.coverage(0.9)[0]:.0f} %"
            about = {"sampler": each.name, "steps": each.steps, "calibration": verdict}
            about["scale"] = scale if each.scales else None
            return about | counts | problem.errors(x)._asdict()

        found = common.cached(records, common.key(arguments, "studies.posterior_peers"), compute)
        draw = each.prepare(problem, problem.repeat(timed), found["scale"] or 1.0)
        draw(2)  # Compiles.
        name = f"{each.name} {each.steps}"
        draws[name] = functools.partial(harness.seconds_of, functools.partial(draw, 2))
        rows.append(found)
    seconds = harness.alternate(draws, rounds)
    return [
        found | {"seconds": statistics.median(times)}
        for found, times in zip(rows, seconds.values())
    ]


def section(results: dict[str, list[Record]]) -> list[str]:
    """Return the tables of the section from the rows by the names of problems."""
    command = "python -m studies.posterior_peers --write"
    installed = versions("jax", "torch", "azula", "deepinv")
    lines = [f"{common.provenance(command)} Versions: {installed}.", ""]
    for name, rows in results.items():
        floor = max(row["floor"] for row in rows)
        title = f"`{name}`, noise {NOISE}; the Monte-Carlo error of the mean is {floor:.3f}:"
        lines += [title, "", *table(rows, COLUMNS), ""]
    return lines


def main(options: argparse.Namespace) -> None:
    """Measure what the records lack, and print or write the section."""
    records = Records(Path(options.records))
    contestants = own_contestants(dict(OWN)) + posterior_torch.contestants()
    results = {name: measure(records, make_problem(name), contestants) for name in PROBLEMS}
    lines = section(results)
    print("\n".join(lines))
    if options.write:
        common.write_blocks(common.ROOT / "docs" / "inverse_problems.md", {"peers": lines})


if __name__ == "__main__":
    common.run(main, OPTIONS)
