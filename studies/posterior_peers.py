"""Posterior samplers of this code beside those of azula and deepinv, where the posterior is known.

python -m studies.posterior_peers [--write]

Prints the section "Beside other libraries" of docs/inverse_problems.md and, with --write, puts it
into the page. Data are the correlated Gaussian images of `tests.gaussian_posterior`, with the VP
SDE; all samplers get the same exact score. Libraries that are not installed are skipped with a
message; `pip install azula deepinv` installs both.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax import Array

from api import calibration
from api.calibration import Calibration
from api.prior import Prior
from benchmarks import harness
from benchmarks.records import Record, Records
from benchmarks.tables import Columns, table, versions
from controllable.operators import Operator
from errors import NotFiniteError
from sde_lib import VPSDE, Score
from studies import common
from tests import gaussian_posterior
from tests.gaussian_posterior import MEAN, SHAPE, SIZE, Errors

FLAGS = flags.FLAGS
flags.DEFINE_bool("write", False, "Write the section; otherwise it is printed.")
flags.DEFINE_string("records", ".cache/posterior_peers.jsonl", "Results, to resume from.")

SDE = VPSDE()
COVARIANCE = gaussian_posterior.COVARIANCES["correlated"]
PROBLEMS = ("mask", "dense")
NOISE = 0.2
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


class Problem(NamedTuple):
    """A linear measurement with noise of standard deviation `noise`.

    Attributes:
      y: one measurement (1, ...).
      u, a: U (M, K) and A (K, SIZE) of full rank with y = U A x, see `gaussian_posterior.matrix`.
    """

    name: str
    operator: Operator
    noise: float
    y: Array
    u: np.ndarray
    a: np.ndarray

    def repeat(self, count: int) -> Array:
        """Return the measurement `count` times (count, ...)."""
        return jnp.repeat(self.y, count, 0)

    def reduce(self, y: Array) -> np.ndarray:
        """Return the measurements y (B, ...) as A x + noise, without the factor U; (B, K)."""
        return np.asarray(y, np.float64).reshape(len(y), -1) @ self.u

    def errors(self, x: np.ndarray) -> Errors:
        """Return the errors of samples x (N, SIZE) given `y`."""
        return gaussian_posterior.errors(x, COVARIANCE, self.operator, self.y, self.noise)


def make_problem(name: str, noise: float = NOISE) -> Problem:
    """Return the problem with this operator of `gaussian_posterior.OPERATORS`."""
    operator = gaussian_posterior.OPERATORS[name]
    y = gaussian_posterior.observe(COVARIANCE, operator, noise)
    return Problem(name, operator, noise, y, *gaussian_posterior.matrix(operator))


class Calls:
    """How often a score, and the gradient of a function of it, were evaluated."""

    evaluations = 0
    gradients = 0

    def add(self, name: str) -> None:
        """Count one."""
        setattr(self, name, getattr(self, name) + 1)


CALLS = Calls()
Draw = Callable[[int], np.ndarray]
"""seed -> one sample for each measurement, float64 (B, SIZE)."""
Prepare = Callable[[Problem, Array, float], Draw]
"""(problem, y (B, ...), step size) -> Draw."""


class Contestant(NamedTuple):
    """A sampler of one library.

    Attributes:
      library, method, steps: its name and the number of its steps.
      prepare: makes its samples.
      prepare_counted: the same, for a sampler that updates `CALLS`.
      scales: the step sizes to choose from; empty for a method without a step size.
      calibrate: (problem, step size, simulations, samples) -> Calibration; None for `calibrate`
        of this module.
    """

    library: str
    method: str
    steps: int
    prepare: Prepare
    prepare_counted: Prepare
    scales: tuple[float, ...] = ()
    calibrate: Callable[[Problem, float, int, int], Calibration] | None = None

    @property
    def name(self) -> str:
        """Its name in tables."""
        return f"{self.library}: `{self.method}`"


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


def choose_scale(contestant: Contestant, problem: Problem, count: int) -> float:
    """Return the step size with the smallest error of the mean of `count` samples."""
    found = {}
    for scale in contestant.scales:
        try:
            x = contestant.prepare(problem, problem.repeat(count), scale)(0)
            error = problem.errors(x).mean
        except NotFiniteError:
            error = math.nan
        found[scale] = error if math.isfinite(error) else math.inf
    return min(found, key=lambda scale: found[scale], default=1.0)


def count_evaluations(contestant: Contestant, problem: Problem, scale: float) -> dict[str, int]:
    """Return the evaluations of the score, and of its gradient, that one sample needs."""
    draw = contestant.prepare_counted(problem, problem.y, scale)
    draw(0)  # The first call of a sampler may estimate properties of the prior.
    jax.effects_barrier()
    before = CALLS.evaluations, CALLS.gradients
    draw(1)
    jax.effects_barrier()
    return {
        "evaluations": CALLS.evaluations - before[0],
        "gradients": CALLS.gradients - before[1],
    }


def calibrate(
    prepare: Prepare, problem: Problem, scale: float, simulations: int, samples: int
) -> Calibration:
    """Test the spread of a sampler with the statistics of `api.calibration`.

    The images are exact draws of the data. Raises ValueError if a sample is not finite.
    """
    rng = np.random.default_rng(0)
    x, references = rng.multivariate_normal(MEAN, COVARIANCE, (2, simulations))
    noise = jnp.asarray(rng.normal(size=(simulations, *SHAPE)), jnp.float32)
    images = jnp.asarray(x, jnp.float32).reshape(-1, *SHAPE)
    y = problem.operator.observe(images, noise, problem.noise)
    drawn = prepare(problem, jnp.repeat(y, samples, 0), scale)(0)
    if not np.isfinite(drawn).all():
        raise ValueError("The samples are not finite.")
    drawn = drawn.reshape(simulations, samples, SIZE)
    vectors, names = calibration.directions(SHAPE)
    reduced = problem.reduce(y)[:, None]

    def statistics(x: np.ndarray) -> np.ndarray:
        logp = -0.5 * np.square((reduced - x @ problem.a.T) / problem.noise).sum(-1, keepdims=True)
        distance = np.linalg.norm(x - references[:, None], axis=-1, keepdims=True)
        return np.concatenate([x @ vectors.T, logp, distance], -1)

    truth = statistics(x[:, None])[:, 0]
    values = calibration.ranks(truth, statistics(drawn), rng.random(truth.shape))
    return calibration.judge(values, [*names, calibration.LOG_PROB, calibration.DISTANCE])


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

        found = common.cached(records, common.key(arguments, __name__), compute)
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


def main(_: list[str]) -> None:
    """Measure what the records lack, and print or write the section."""
    from studies import posterior_torch

    records = Records(Path(FLAGS.records))
    contestants = own_contestants(dict(OWN)) + posterior_torch.contestants()
    results = {name: measure(records, make_problem(name), contestants) for name in PROBLEMS}
    lines = section(results)
    print("\n".join(lines))
    if FLAGS.write:
        common.write_blocks(common.ROOT / "docs" / "inverse_problems.md", {"peers": lines})


if __name__ == "__main__":
    app.run(main)
