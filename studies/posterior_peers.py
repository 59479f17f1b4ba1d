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
import importlib.util
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from api import calibration
from benchmarks import harness
from benchmarks.records import Record, Records
from benchmarks.tables import Columns, table, versions
from controllable.operators import Operator
from errors import NotFiniteError
from score_sde import Calibration, Prior
from sde_lib import Score
from studies import common, posterior_torch
from studies.posterior_torch import CALLS, COVARIANCE, SDE
from tests import gaussian_posterior
from tests.gaussian_posterior import MEAN, SHAPE, SIZE, Errors

OPTIONS = {"records": ".cache/posterior_peers.jsonl", "write": False}
NOISE = 0.2
PROBLEMS = ("mask", "dense")
OWN: dict[str, Sequence[int]] = {
    "dps": (200,),
    "ddrm": (200,),
    "daps": (200,),
    "pigdm": (20, 100),
    "moment_matching": (20, 100),
}
"""Our methods and their numbers of steps."""
SCALES = 0.02, 0.05, 0.1, 0.2, 0.5, 1.0
PEERS = {  # library: (step sizes of its DPS, in its units, and its name of moment matching)
    "azula": (SCALES, "MMPS"),
    "deepinv": ((0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0), "moment matching"),
}
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


Draw = Callable[[int], np.ndarray]
"""seed -> one sample for each measurement, float64 (B, SIZE)."""

# --- samplers -------------------------------------------------------------------------------------


class Own:
    """A method of this code with its number of steps, and the step sizes to choose from, if any."""

    library = "this code"

    def __init__(self, method: str, steps: int) -> None:
        self.method, self.steps = method, steps
        self.scales = SCALES if method == "dps" else ()

    def posterior(self, problem: Problem, y: Array | None, scale: float, counted: bool) -> Any:
        """Return the `Posterior` given measurements y (B, ...), or one for `calibrate`."""
        options = {"dps": {"scale": scale}, "moment_matching": {"iterations": len(problem.a)}}
        chosen: dict[str, Any] = {"method": self.method, **options.get(self.method, {})}
        return _prior(counted).posterior(y, problem.operator, noise=problem.noise, **chosen)

    def prepare(self, problem: Problem, y: Array, scale: float, counted: bool = False) -> Draw:
        """Return the function that draws samples; `counted` ones update `CALLS`."""
        posterior = self.posterior(problem, y, scale, counted)

        def draw(seed: int) -> np.ndarray:
            x = posterior.sample(seed=seed, steps=self.steps, batch_size=len(y))
            return np.asarray(x, np.float64).reshape(-1, SIZE)

        return draw

    def calibrate(self, problem: Problem, scale: float, count: int, samples: int) -> Calibration:
        """Test the spread by `Posterior.calibrate`, with `samples` of each of `count` events."""
        posterior, size = self.posterior(problem, None, scale, False), min(count * samples, 4096)
        return posterior.calibrate(count, samples, steps=self.steps, batch_size=size)


@functools.cache
def _prior(counted: bool) -> Prior:
    score = gaussian_posterior.exact_score(SDE, COVARIANCE)
    return Prior(count_calls(score) if counted else score, SDE, SHAPE)


class Peer(NamedTuple):
    """A method of another library; the attributes and functions are those of `Own`."""

    library: str
    method: str
    steps: int
    scales: tuple[float, ...] = ()

    def prepare(self, problem: Problem, y: Array, scale: float, counted: bool = True) -> Draw:
        """Return the function that draws samples and updates `CALLS`."""
        measured = posterior_torch.Linear(problem.reduce(y), problem.a, problem.noise)
        return posterior_torch.draw(self.library, self.method, self.steps, measured, scale)

    def calibrate(self, problem: Problem, scale: float, count: int, samples: int) -> Calibration:
        """Test the spread on exact draws of the data."""
        return calibrate(self.prepare, problem, scale, count, samples)


Contestant = Own | Peer


def missing(*packages: str) -> list[str]:
    """Return the packages that are not installed."""
    return [name for name in packages if importlib.util.find_spec(name) is None]


def peers() -> list[Peer]:
    """Return the samplers of the packages that are installed; print which are skipped."""
    found = []
    for library, (scales, matching) in PEERS.items():
        if absent := missing("torch", library):
            print(f"{library} is skipped: not installed: {', '.join(absent)}", flush=True)
        else:
            found.append(Peer(library, "DPS", 200, scales))
            found += [Peer(library, each, n) for each in ("PiGDM", matching) for n in (20, 100)]
    return found


def count_calls(score: Score) -> Score:
    """Return a score that counts its evaluations, and those of its gradient, in `CALLS`."""

    def count(name: str) -> None:
        jax.debug.callback(lambda: CALLS.update([name]))

    @jax.custom_vjp
    def counted(x: Array, t: Array) -> Array:
        count("evaluations")
        return score(x, t)

    def forward(x: Array, t: Array) -> tuple[Array, Any]:
        count("evaluations")
        return jax.vjp(score, x, t)

    def backward(pull_back: Any, gradient: Array) -> tuple[Array, Array]:
        count("gradients")
        return pull_back(gradient)

    counted.defvjp(forward, backward)
    return counted


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
    draw = contestant.prepare(problem, problem.y, scale, counted=True)
    draw(0)  # The first call of a sampler may estimate properties of the prior.
    jax.effects_barrier()
    CALLS.clear()
    draw(1)
    jax.effects_barrier()
    return {name: CALLS[name] for name in ("evaluations", "gradients")}


def calibrate(
    prepare: Callable[..., Draw], problem: Problem, scale: float, simulations: int, samples: int
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
        about = {"sampler": f"{each.library}: `{each.method}`", "steps": each.steps}

        def compute(each: Contestant = each, about: Record = about) -> Record:
            scale = choose_scale(each, problem, timed)
            x = each.prepare(problem, problem.repeat(count), scale)(1)
            found = each.calibrate(problem, scale, *simulations)
            counts = count_evaluations(each, problem, scale)
            verdict = f"{found.kind}, {100 * found.coverage(0.9)[0]:.0f} %"
            chosen = {"calibration": verdict, "scale": scale if each.scales else None}
            return about | chosen | counts | problem.errors(x)._asdict()

        settings = [problem.name, problem.noise, *about.values(), count, timed, simulations]
        found = records.cached(common.key(settings, "studies.posterior_peers"), compute)
        draw = each.prepare(problem, problem.repeat(timed), found["scale"] or 1.0)
        draw(2)  # Compiles.
        draws[str(about)] = functools.partial(harness.seconds_of, functools.partial(draw, 2))
        rows.append(found)
    seconds = harness.alternate(draws, rounds).values()
    return [row | {"seconds": statistics.median(each)} for row, each in zip(rows, seconds)]


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
    records, own = (
        Records(options.records),
        [Own(name, n) for name, all in OWN.items() for n in all],
    )
    contestants = [*own, *peers()]
    results = {name: measure(records, make_problem(name), contestants) for name in PROBLEMS}
    lines = section(results)
    print("\n".join(lines))
    if options.write:
        common.write_blocks(common.ROOT / "docs" / "inverse_problems.md", {"peers": lines})


if __name__ == "__main__":
    common.run(main, OPTIONS)
