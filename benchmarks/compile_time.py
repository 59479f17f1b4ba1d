"""Seconds from the start of a process to its first finished train step, without and with the compilation cache.

python -m benchmarks.compile_time [--config=...] [--batch_size=8] [--starts=1] [--set=...]

Each start is a new process that imports what `main.py` does, builds the experiment, makes the state, and compiles and
runs a train step on random images. The cold one has an empty cache folder, the warm one the folder that it has left.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence

from absl import flags

import train_state
from benchmarks import contest, parts, speed

STAGES = ("imports", "experiment", "state", "trace", "lower", "compile", "first step")
COLUMNS = {
    "config": ("name", "", 1),
    "start": ("start", "", 1),
    "to the first step, s": ("total", ".1f", 1),
}
COLUMNS |= {f"{stage}, s": (stage, ".1f", 1) for stage in STAGES} | {
    "of the cold start": ("share", ".2f", 1)
}


def first_step(
    *, config: str, set: Sequence[str], batch_size: int, since: float
) -> dict[str, float]:  # noqa: A002
    """Seconds of the stages up to the first finished step of this process, which was started at the time `since`.

    As all of `parts`, it runs in a process of its own.
    """
    import evaluation  # noqa: F401  As main.py does, which takes a while.
    import report  # noqa: F401
    import training
    from modes import restoration  # noqa: F401

    import jax  # isort: skip

    times = [since, time.time()]
    experiment = speed.Experiment(
        contest.load(config, [*set, f"training.batch_size={batch_size}"]), jax.devices()[:1]
    )
    times.append(time.time())
    optimizer = train_state.make_optimizer(experiment.config.optim)
    state = jax.block_until_ready(training.init_state(experiment, optimizer))
    times.append(time.time())
    batch = speed.images(experiment, batch_size)
    compiled = speed.compile_stages(training.jit_step(experiment, optimizer), state, batch)
    times += [times[-1] + sum(list(compiled.seconds.values())[: i + 1]) for i in range(3)]
    jax.block_until_ready(compiled.call(state, batch))
    times.append(time.time())
    return dict(zip(STAGES, (b - a for a, b in zip(times, times[1:])))) | {
        "total": times[-1] - since
    }


def measure(
    *,
    config: Sequence[str],
    set: Sequence[str] = (),  # noqa: A002
    batch_size: int,
    starts: int = 1,
    seconds: float = 600,
) -> list[speed.Row]:
    """Rows about cold and warm starts, the median of `starts` each; a start may take `seconds`. Raises InputError."""
    rows = []
    for path in config:
        contest.load(path, set)  # Raises what is to be raised, here.
        found: dict[str, list[dict]] = {"cold": [], "warm": []}
        for _ in range(starts):
            with tempfile.TemporaryDirectory() as folder:
                for each in found.values():
                    each.append(_start(path, set, batch_size, folder, seconds))
        for start, results in found.items():
            row = {"name": path.removeprefix("configs/").removesuffix(".py"), "start": start}
            good = [each for each in results if "error" not in each]
            if good:
                row |= {key: statistics.median(each[key] for each in good) for key in good[0]}
            else:
                row["start"] += f": {results[0]['error']}"
            if rows and start == "warm" and good and "total" in rows[-1]:
                row["share"] = row["total"] / rows[-1]["total"]
            rows.append(row)
    return rows


def _start(
    path: str, set: Sequence[str], batch_size: int, folder: str, seconds: float
) -> parts.Record:  # noqa: A002
    cache = {
        "JAX_COMPILATION_CACHE_DIR": folder,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }  # As main.py.
    arguments = {"config": path, "set": list(set), "batch_size": batch_size, "since": time.time()}
    return parts.run(
        "benchmarks.compile_time:first_step", arguments, environment=cache, seconds=seconds
    )


def main() -> None:
    """Prints the table."""
    names = "config", "set", "batch_size", "starts"
    options = {name: flags.FLAGS[name].value for name in names}
    rows = measure(**options)
    title = f"Starts of training at batch {options['batch_size']}"
    print("\n".join(["", f"{title}; on {speed.environment()}.", "", *speed.table(rows, COLUMNS)]))


if __name__ == "__main__":
    contest.define_config_flags(batch_size=8)
    flags.DEFINE_integer("starts", 1, "Starts of each kind; the median counts.", lower_bound=1)
    contest.run(main)
