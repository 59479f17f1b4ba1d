"""Posteriors that `ss.train` learns from simulations, beside those of sbi and reference posteriors.

python -m studies.inference [--records=.cache/inference.jsonl] [--seeds=3] [--write]

Prints the table of docs/simulations.md and, with --write, puts it into the page. Everything has
its default settings, the same for all tasks of `studies.inference_tasks`. Results are kept in the
records, so that a run resumes. `pip install sbi` installs the other library; without it, only its
recorded results are shown.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import itertools
import math
import time
import warnings

import jax.numpy as jnp
import numpy as np

import score_sde as ss
from benchmarks.records import Record, Records
from benchmarks.tables import header, row, versions
from studies import common
from studies.inference_tasks import TASKS, Estimator, Task, accept, c2st, sbi_estimator

OPTIONS = {"records": ".cache/inference.jsonl", "seeds": 3, "write": False}
SIMULATIONS, OBSERVATIONS, SAMPLES = 2000, 5, 1000
METHODS = FLOOR, OWN, NPSE, NPE = "reference", "`ss.train`", "NPSE", "NPE"
Results = dict[tuple[str, str], list[Record]]
"""One record for each seed, by the names of the task and the method."""

# --- measurement ----------------------------------------------------------------------------------


def own_estimator(theta: np.ndarray, x: np.ndarray, seed: int) -> Estimator:
    """Train a network with the defaults of `ss.train`; return its posterior."""
    model, seeds = ss.train(theta, condition=x, seed=seed), iter(range(10_000))

    def draw(x: np.ndarray, n: int) -> np.ndarray:
        return np.asarray(model.sample(n, seed=next(seeds), condition=x))

    return draw, lambda theta, x: np.asarray(model.log_prob(jnp.asarray(theta), condition=x))


def fit(method: str, task: Task, seed: int) -> Estimator:
    """Return the posterior that a method learns from SIMULATIONS; that of FLOOR is exact."""
    if method == FLOOR:
        rng = np.random.default_rng((seed, 1))
        return lambda x, n: task.reference(rng, x, n), lambda theta, x: np.full(1, np.nan)
    pairs = task.draw(np.random.default_rng(seed), SIMULATIONS)
    return (
        own_estimator(*pairs, seed) if method == OWN else sbi_estimator(method, task, pairs, seed)
    )


def measure(name: str, method: str, seed: int) -> Record:
    """Return C2ST and log p of the true parameters for each observation, and CPU seconds.

    Draws outside of the prior are rejected, and densities divided by the share of the others.
    """
    task, start = TASKS[name], time.process_time()
    draw, log_prob = fit(method, task, seed)
    seconds, found = time.process_time() - start, []
    for number in range(OBSERVATIONS):
        rng = np.random.default_rng((number, 2))
        theta, (x,) = task.draw(rng, 1)
        samples, share = accept(functools.partial(draw, x), task.supports, SAMPLES)
        logp = float(log_prob(theta, x)[0]) - math.log(share)
        found.append((c2st(task.reference(rng, x, SAMPLES), samples), logp))
    scores, logs = zip(*found)
    about = {"task": name, "method": method, "seed": seed, "seconds": seconds}
    return about | {"c2st": scores, "log_prob": logs}


def measure_all(records: Records, seeds: int) -> Results:
    """Return the results of all tasks and methods; measure what is not in the records.

    Methods of sbi are skipped if it is not installed, unless their results are recorded.
    """
    found: Results = {(name, method): [] for name in TASKS for method in METHODS}
    for seed, (name, method) in itertools.product(range(seeds), found):
        module = "studies.inference" if method == OWN else "studies.inference_tasks"
        key = common.key([name, method, seed, SIMULATIONS, OBSERVATIONS, SAMPLES], module)
        is_missing = records.is_missing(key) and importlib.util.find_spec("sbi") is None
        if method in (NPSE, NPE) and is_missing:
            print(f"{method} is skipped: sbi is not installed.", flush=True)
            continue
        compute = functools.partial(measure, name, method, seed)
        found[name, method].append(records.cached(key, compute))
    return {each: results for each, results in found.items() if results}


# --- tables ---------------------------------------------------------------------------------------


def over_seeds(found: list[Record], name: str) -> str:
    """Return the mean over seeds and observations, with its standard error."""
    return str(common.combine([common.mean(each[name]) for each in found]))


def table(results: Results) -> list[str]:
    """Return a row for each task and method."""
    lines = header("task", "method", "C2ST", "log p of the parameters", "CPU seconds")
    for (name, method), found in results.items():
        seconds = np.mean([each["seconds"] for each in found])
        costs = [over_seeds(found, "log_prob"), f"{seconds:.0f}"]
        costs = ["", ""] if method == FLOOR else costs
        lines.append(row(name, method, over_seeds(found, "c2st"), *costs))
    return lines


def main(options: argparse.Namespace) -> dict[str, list[str]]:
    warnings.simplefilter("ignore")
    results = measure_all(Records(options.records), options.seeds)
    return {"tasks": [f"Versions: {versions('jax', 'torch', 'sbi')}.", "", *table(results)]}


if __name__ == "__main__":
    common.run(main, OPTIONS, "simulations.md")
