"""All speed benchmarks on an accelerator within ten minutes, the most important first.

python -m benchmarks.accelerator --out=FOLDER [--seconds=540] [--workers=5] [--tiny]

Writes the tables to FOLDER/results.md. Every measurement runs in a separate process, so that one
that fails, runs out of memory or takes too long does not affect the others. Its result is appended
to FOLDER/results.jsonl at once, from which another call resumes. The cold start is measured first,
with no other process on the machine. Then `--workers` processes at a time compile all programs into
a shared cache, and the remaining measurements run one after another. Only those named peer need
PyTorch and diffusers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from benchmarks import comparison, compile_time, likelihood, parts, sampling, speed, train_step

LARGEST = "configs/ve/ffhq_ncsnpp_continuous.py"
LIMIT = 240.0  # seconds that a measurement may take
MIN_SECONDS = 15.0  # With less time left, no measurement is started.
COMPILING = 0.4  # largest share of the time after the cold start for compilation
BFLOAT16, REMAT = "model.dtype=bfloat16", "training.remat=True"
TINY = (
    "model.nf=32",
    "model.ch_mult=(1,)",
    "model.num_res_blocks=1",
    "model.attn_resolutions=()",
    "data.image_size=8",
)
TABLES = {  # module: (heading, columns)
    "speed": ("Matrix products", {"kind": ("name", "", 1), "TFLOP/s": ("tflops", ".1f", 1)}),
    "compile_time": ("From the start of a process to its first train step", compile_time.COLUMNS),
    "train_step": ("Train steps", train_step.COLUMNS),
    "sampling": ("Sampling", sampling.COLUMNS),
    "likelihood": ("Bits/dim", likelihood.COLUMNS),
}
FUNCTIONS = {"speed": "time_products"}  # by module; `measure` in all others


class Part(NamedTuple):
    """A measurement.

    Attributes:
      name: its key in the results.
      module, arguments: the module of this package, see `function`, and the function's arguments.
      alone: whether it runs before all others and is not compiled in advance.
    """

    name: str
    module: str
    arguments: dict[str, Any]
    alone: bool = False

    @property
    def function(self) -> str:
        """The function to call, for `parts.run`."""
        return f"benchmarks.{self.module}:{FUNCTIONS.get(self.module, 'measure')}"


# --- what is measured ---


def plan(tiny: bool = False) -> list[Part]:
    """Return the measurements in order of importance.

    Tiny ones, for CPUs, are of the same kinds, but fewer.
    """
    if tiny:
        common = {"rounds": 2, "size": 64}
        make = _PartFactory(TINY, common)
        return [
            Part("products", "speed", {"kinds": list(speed.PRODUCTS)} | common, alone=True),
            _start(4),
            make.train_step(4),
            make.part("sampling", 4),
            make.part("likelihood", 4),
        ]
    common = {"rounds": 5}
    make = _PartFactory((), common)
    peers: dict[str, Any] = {"peer": True, "peer_compile": True}
    return [
        Part("products", "speed", {"kinds": list(speed.PRODUCTS)} | common, alone=True),
        _start(128),
        make.train_step(128, BFLOAT16),
        make.train_step(128),
        make.train_step(128, BFLOAT16, **peers),
        make.train_step(512, BFLOAT16),
        make.train_step(1, path=LARGEST),
        make.part("sampling", 128, BFLOAT16),
        make.train_step(128, **peers),
        make.train_step(1024, BFLOAT16),
        make.part("likelihood", 128),
        make.train_step(256, BFLOAT16),
        make.train_step(512),
        make.train_step(128, BFLOAT16, REMAT),
        make.train_step(1024, BFLOAT16, REMAT),
        make.part("sampling", 128),
        make.train_step(256),
        make.train_step(1024),
        make.train_step(1, REMAT, path=LARGEST),
        make.train_step(1, BFLOAT16, path=LARGEST),
        make.part("likelihood", 128, BFLOAT16),
    ]


def _start(batch_size: int) -> Part:
    arguments = {"config": [comparison.FLAGSHIP], "batch_size": batch_size}
    return Part("start", "compile_time", arguments, alone=True)


class _PartFactory(NamedTuple):
    """Makes measurements with these overrides and further arguments."""

    overrides: Sequence[str]
    common: dict[str, Any]

    def part(self, module: str, batch_size: int, *changed: str) -> Part:
        """Return a measurement by `module` of the flagship config, with changed fields."""
        name = " ".join([module, str(batch_size), *changed])
        return Part(name, module, self._arguments(comparison.FLAGSHIP, batch_size, changed))

    def train_step(
        self, batch_size: int, *changed: str, path: str = comparison.FLAGSHIP, **options: bool
    ) -> Part:
        """Return a measurement of train steps; `options` are further arguments."""
        labels = [option.replace("_", " ") for option in options]
        name = " ".join(["train", Path(path).stem, str(batch_size), *changed, *labels])
        return Part(name, "train_step", self._arguments(path, batch_size, changed) | options)

    def _arguments(self, path: str, batch_size: int, changed: Sequence[str]) -> dict[str, Any]:
        overrides = [*self.overrides, *changed]
        return {"config": [path], "overrides": overrides, "batch_size": batch_size} | self.common


# --- running the measurements ---


class Timetable:
    """Runs measurements within `seconds` and stores their results in `records`.

    Tests replace `clock` and `run`.
    """

    def __init__(
        self,
        records: parts.Records,
        folder: Path,
        seconds: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        run: Callable[..., Any] = parts.run,
    ) -> None:
        self.records, self.clock, self.run = records, clock, run
        self.end = clock() + seconds
        self.cache = {
            "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "cache" / "torch"),
        }

    def seconds_left(self) -> float:
        """Return the remaining time."""
        return self.end - self.clock()

    def measure(self, part: Part) -> None:
        """Run a measurement, unless its result exists or there is too little time."""
        if not self.records.is_missing(part.name) or self.seconds_left() < MIN_SECONDS:
            return
        environment = {} if part.alone else dict(self.cache)  # A cold start has an empty cache.
        if part.arguments.get("peer"):
            environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] = "0.45"  # PyTorch needs the rest.
        start = self.clock()
        limit = min(LIMIT, self.seconds_left())
        result = self.run(part.function, part.arguments, environment=environment, seconds=limit)
        record = {
            "module": part.module,
            "batch": part.arguments.get("batch_size"),
            "took": self.clock() - start,
        }
        record |= result if isinstance(result, dict) else {"rows": result}
        self.records.add(part.name, record)
        self._log(part, record.get("error", "done"))

    def compile(self, missing: Sequence[Part], workers: int) -> None:
        """Compile the programs of measurements into the cache, `workers` at a time.

        Failures are not recorded: they occur again when the measurement runs.
        """
        end = self.clock() + COMPILING * self.seconds_left()
        environment = self.cache | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}

        def compile_one(part: Part) -> None:
            limit = end - self.clock()
            if limit <= MIN_SECONDS:
                return
            arguments = part.arguments | {"rounds": 0}
            result = self.run(part.function, arguments, environment=environment, seconds=limit)
            self._log(part, result["error"] if isinstance(result, dict) else "compiled")

        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(compile_one, missing))

    def _log(self, part: Part, outcome: str) -> None:
        print(f"{self.seconds_left():4.0f} s left: {part.name}: {outcome}", flush=True)


def run_all(planned: Sequence[Part], timetable: Timetable, workers: int) -> None:
    """Run the measurements: first those that run alone, then compilation, then the others."""
    for part in planned:
        if part.alone:
            timetable.measure(part)
    missing = [
        part for part in planned if not part.alone and timetable.records.is_missing(part.name)
    ]
    if workers:
        timetable.compile(missing, workers)
    for part in missing:
        timetable.measure(part)


# --- results ---


def page(records: parts.Records, environment: str) -> str:
    """Return the tables of all results, and a list of failures."""
    lines = [f"Measured by `python -m benchmarks.accelerator` on {environment}."]
    for module, (heading, columns) in TABLES.items():
        rows = []
        for record in records.results.values():
            if record["module"] == module:
                rows += [_table_row(row, record["batch"]) for row in record.get("rows", [])]
        lines += ["", f"## {heading}", "", *speed.table(rows, _with_batch(module, columns))]
    failures = [
        f"- {key}: {record['error']}"
        for key, record in records.results.items()
        if "error" in record
    ]
    if failures:
        lines += ["", "## Not measured", "", *failures]
    return "\n".join([*lines, ""])


def _table_row(row: speed.Row, batch: int | None) -> speed.Row:
    """Add the batch size; omit compile times, as most programs were compiled in advance."""
    return row | {"batch": batch, "to_compile": None, "to_lower": None}


def _with_batch(module: str, columns: speed.Columns) -> speed.Columns:
    """Insert a column with the batch size after the first one, except for matrix products."""
    if module == "speed":
        return columns
    first = next(iter(columns))
    return {first: columns[first], "batch": ("batch", "", 1)} | columns


def main() -> None:
    """Measure, and write the tables."""
    given = flags.FLAGS
    folder = Path(given.out).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    records = parts.Records(folder / "results.jsonl")
    timetable = Timetable(records, folder, given.seconds)
    run_all(plan(given.tiny), timetable, 0 if given.tiny else given.workers)
    # In a separate process, as this one must leave the accelerator to the measurements.
    record = parts.run("benchmarks.speed:environment_record", {}, seconds=60)
    path = folder / "results.md"
    path.write_text(page(records, record.get("environment", "an unknown machine")))
    measured = sum("rows" in each for each in records.results.values())
    print(f"{path}: {measured} measurements")


if __name__ == "__main__":
    flags.DEFINE_string("out", "accelerator", "The folder of results.")
    flags.DEFINE_float("seconds", 540, "Total time.")
    flags.DEFINE_integer(
        "workers", 5, "Processes that compile in parallel; 0: each measurement compiles for itself."
    )
    flags.DEFINE_bool(
        "tiny", False, "Few measurements of tiny networks, to test the script on CPUs."
    )
    comparison.run(main)
