"""Seconds from the start of a process to its first train step, with and without compilation cache.

python -m benchmarks.compile_time [--config=...] [--batch_size=8] [--starts=1] [--set=...]

Prints a table. Each start is a new process that imports the modules of `main.py`, builds the
experiment, initializes the state, and compiles and runs a train step on random images. A cold start
has an empty cache folder; the warm start after it uses the folder that it filled.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence

import train_state
from absl import flags

from benchmarks import comparison, parts, speed

STAGES = ("imports", "experiment", "state", "trace", "lower", "compile", "first step")
COLUMNS: speed.Columns = {
    "config": ("name", "", 1),
    "start": ("start", "", 1),
    "to the first step, s": ("total", ".1f", 1),
    **{f"{stage}, s": (stage, ".1f", 1) for stage in STAGES},
    "of the cold start": ("share", ".2f", 1),
}


def first_step(
    *, config: str, overrides: Sequence[str], batch_size: int, since: float
) -> dict[str, float]:
    """Run the first train step of this process; return the seconds of each stage and their sum.

    The process was started at the time `since`. `parts.run` calls this in a new process.
    """
    # main.py imports these, which takes part of the time.
    import evaluation  # noqa: F401
    import training
    from commands import restoration  # noqa: F401

    import jax  # isort: skip

    times = [since, time.time()]
    loaded = comparison.load_config(config, [*overrides, f"training.batch_size={batch_size}"])
    experiment = speed.Experiment(loaded, jax.devices()[:1])
    times.append(time.time())
    optimizer = train_state.make_optimizer(experiment.config.optim)
    state = jax.block_until_ready(training.init_state(experiment, optimizer))
    times.append(time.time())
    batch = speed.images(experiment, batch_size)
    compiled = speed.compile_stages(training.jit_step(experiment, optimizer), state, batch)
    for seconds in compiled.seconds.values():
        times.append(times[-1] + seconds)
    jax.block_until_ready(compiled.call(state, batch))
    times.append(time.time())
    stages = {stage: end - start for stage, start, end in zip(STAGES, times, times[1:])}
    return stages | {"total": times[-1] - since}


def measure(
    *,
    config: Sequence[str],
    overrides: Sequence[str] = (),
    batch_size: int,
    starts: int = 1,
    seconds: float = 600,
) -> list[speed.Row]:
    """Return rows with the medians of `starts` cold and warm starts for each config.

    A start that takes longer than `seconds` fails. Raises InputError for invalid configs.
    """
    rows = []
    for path in config:
        comparison.load_config(path, overrides)  # Raises InputError before the first start.
        cold, warm = [], []
        for _ in range(starts):
            with tempfile.TemporaryDirectory() as folder:
                for results in (cold, warm):
                    results.append(_start(path, overrides, batch_size, folder, seconds))
        rows.append(_row(path, "cold", cold))
        rows.append(_row(path, "warm", warm))
        if "total" in rows[-1] and "total" in rows[-2]:
            rows[-1]["share"] = rows[-1]["total"] / rows[-2]["total"]
    return rows


def _row(path: str, start: str, results: list[parts.Record]) -> speed.Row:
    """Return a row with the medians of the starts that succeeded, or with the first error."""
    row = {"name": comparison.config_name(path), "start": start}
    succeeded = [result for result in results if "error" not in result]
    if not succeeded:
        row["start"] += f": {results[0]['error']}"
        return row
    medians = {key: statistics.median(result[key] for result in succeeded) for key in succeeded[0]}
    return row | medians


def _start(
    path: str, overrides: Sequence[str], batch_size: int, folder: str, seconds: float
) -> parts.Record:
    """Run `first_step` in a new process with this cache folder, configured as in main.py."""
    cache = {
        "JAX_COMPILATION_CACHE_DIR": folder,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    arguments = {
        "config": path,
        "overrides": list(overrides),
        "batch_size": batch_size,
        "since": time.time(),
    }
    function = "benchmarks.compile_time:first_step"
    return parts.run(function, arguments, environment=cache, seconds=seconds)


def main() -> None:
    """Print the table."""
    batch_size = flags.FLAGS.batch_size
    rows = measure(
        config=flags.FLAGS.config,
        overrides=flags.FLAGS["set"].value or (),
        batch_size=batch_size,
        starts=flags.FLAGS.starts,
    )
    print(f"\nStarts of training at batch {batch_size}; on {speed.environment()}.\n")
    print("\n".join(speed.table(rows, COLUMNS)))


if __name__ == "__main__":
    comparison.define_config_flags(batch_size=8)
    flags.DEFINE_integer("starts", 1, "Starts of each kind; tables show medians.", lower_bound=1)
    comparison.run(main)
