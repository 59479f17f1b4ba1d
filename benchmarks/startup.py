"""Seconds from the start of a process to its first train step, with and without compilation cache.

A start imports the modules of `main.py`, builds the experiment, initializes the state, and compiles
and runs a train step on random images. A cold start has an empty cache folder; the warm start after
it uses the folder that it filled.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence

from benchmarks import harness, tables

STAGES = ("imports", "experiment", "state", "trace", "lower", "compile", "first step")
COLUMNS: tables.Columns = {
    "config": ("name", "", 1),
    "start": ("start", "", 1),
    "to the first step, s": ("total", ".1f", 1),
    **{f"{stage}, s": (stage, ".1f", 1) for stage in STAGES},
    "of the cold start": ("share", ".2f", 1),
}


def first_step(config: str, overrides: Sequence[str], since: float) -> tables.Row:
    """Run the first train step of this process, which was started at the time `since`.

    Returns the seconds of each stage and their sum; `harness.isolated` calls this.
    """
    # main.py imports these, which takes part of the time.
    import evaluation  # noqa: F401
    import training
    from benchmarks import programs
    from commands import restoration  # noqa: F401

    import jax  # isort: skip

    times = [since, time.time()]
    experiment = programs.make_experiment(config, overrides)
    times.append(time.time())
    job = training.score_job(experiment)
    state = jax.block_until_ready(job.initial_state())
    times.append(time.time())
    batch = programs.images(experiment)
    compiled = programs.compile_stages(training.jit_step(job), state, batch)
    for seconds in compiled.seconds.values():
        times.append(times[-1] + seconds)
    jax.block_until_ready(compiled.call(state, batch))
    times.append(time.time())
    stages = {stage: end - start for stage, start, end in zip(STAGES, times, times[1:])}
    return stages | {"total": times[-1] - since}


def measure(path: str, overrides: Sequence[str]) -> list[tables.Row]:
    """Return the rows of a cold and a warm start of a config."""
    rows: list[tables.Row] = []
    with tempfile.TemporaryDirectory() as folder:
        cache = {
            "JAX_COMPILATION_CACHE_DIR": folder,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        for start in ("cold", "warm"):
            given = path, overrides, time.time()
            found = harness.isolated(first_step, *given, environment=cache)
            rows.append({"name": tables.config_name(path), "start": start, **found})
    rows[1]["share"] = rows[1]["total"] / rows[0]["total"]
    return rows


def show(options: argparse.Namespace) -> None:
    overrides = [*options.set, f"training.batch_size={options.batch_size}"]
    rows = [row for path in options.config for row in measure(path, overrides)]
    print(f"\nStarts of training at batch {options.batch_size}; on {tables.machine()}.\n")
    print("\n".join(tables.table(rows, COLUMNS)))
