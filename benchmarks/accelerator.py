"""All that is to be measured on an accelerator, in one call of ten minutes: what matters most comes first.

python -m benchmarks.accelerator --out=FOLDER [--seconds=540] [--workers=5] [--tiny]

Every part is a process of its own, so that what fails, runs out of memory, or takes too long, loses itself alone. Its
result goes to FOLDER/results.jsonl at once; another call goes on with what is missing. The tables are in results.md.
After the cold start, which has the machine to itself, `--workers` processes at a time compile everything into a shared
cache; only then is measured, one part after another. PyTorch and diffusers are needed for the parts named peer alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from benchmarks import compile_time, contest, likelihood, parts, sampling, speed, train_step

LARGEST = "configs/ve/ffhq_ncsnpp_continuous.py"
LIMIT = 240.0  # seconds of a part
LEAST = 15.0  # seconds without which no part is begun
COMPILING = 0.4  # of the time that is left after the cold start, at most
BFLOAT16, REMAT = "model.dtype=bfloat16", "training.remat=True"
TINY = (
    "model.nf=32",
    "model.ch_mult=(1,)",
    "model.num_res_blocks=1",
    "model.attn_resolutions=()",
    "data.image_size=8",
)
TABLES = {  # By module: the heading, and the columns.
    "speed": ("Matrix products", {"kind": ("name", "", 1), "TFLOP/s": ("tflops", ".1f", 1)}),
    "compile_time": ("From the start of a process to its first train step", compile_time.COLUMNS),
    "train_step": ("Train steps", train_step.COLUMNS),
    "sampling": ("Sampling", sampling.COLUMNS),
    "likelihood": ("Bits/dim", likelihood.COLUMNS),
}


class Part(NamedTuple):
    """A measurement: `module` of this folder has a function `measure`, or `products`, that takes `arguments`.

    `alone`: not to be compiled beforehand, beside others.
    """

    name: str
    module: str
    arguments: dict[str, Any]
    alone: bool = False

    @property
    def function(self) -> str:
        """For `parts.run`."""
        return f"benchmarks.{self.module}:{'products' if self.module == 'speed' else 'measure'}"


def plan(tiny: bool = False) -> list[Part]:
    """The parts in order of importance. Tiny ones, for CPUs, are of the same kinds, but fewer."""
    config, rounds = (
        {"config": [contest.FLAGSHIP], "set": list(TINY) if tiny else []},
        2 if tiny else 5,
    )
    size = {"size": 64} if tiny else {}

    def steps(batch_size: int, *changed: str, path: str = contest.FLAGSHIP, **options: Any) -> Part:
        kinds = [key.replace("_", " ") for key, value in options.items() if value is True]
        name = " ".join(["train", Path(path).stem, str(batch_size), *changed, *kinds])
        given = {
            "config": [path],
            "set": [*config["set"], *changed],
            "batch_size": batch_size,
            "rounds": rounds,
        }
        return Part(name, "train_step", given | size | options)

    def others(module: str, batch_size: int, *changed: str) -> Part:
        given = {
            "config": config["config"],
            "set": [*config["set"], *changed],
            "batch_size": batch_size,
        }
        return Part(
            " ".join([module, str(batch_size), *changed]), module, given | size | {"rounds": rounds}
        )

    batch = 4 if tiny else 128
    products = Part(
        "products", "speed", {"kinds": list(speed.PRODUCTS), "rounds": rounds} | size, alone=True
    )
    start = Part("start", "compile_time", config | {"batch_size": batch}, alone=True)
    if tiny:
        return [
            products,
            start,
            steps(batch),
            others("sampling", batch),
            others("likelihood", batch),
        ]
    return [
        products,
        start,
        steps(batch, BFLOAT16),
        steps(batch),
        steps(batch, BFLOAT16, peer=True, peer_compile=True),
        steps(512, BFLOAT16),
        steps(1, path=LARGEST),
        others("sampling", batch, BFLOAT16),
        steps(batch, peer=True, peer_compile=True),
        steps(1024, BFLOAT16),
        others("likelihood", batch),
        steps(256, BFLOAT16),
        steps(512),
        steps(batch, BFLOAT16, REMAT),
        steps(1024, BFLOAT16, REMAT),
        others("sampling", batch),
        steps(256),
        steps(1024),
        steps(1, REMAT, path=LARGEST),
        steps(1, BFLOAT16, path=LARGEST),
        others("likelihood", batch, BFLOAT16),
    ]


class Timetable:
    """Runs parts within `seconds`, and notes their results in `records`; `clock` and `run` are for tests."""

    def __init__(
        self,
        records: parts.Records,
        folder: Path,
        seconds: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        run: Callable[..., parts.Record] = parts.run,
    ) -> None:
        self.records, self.clock, self.run, self.end = records, clock, run, clock() + seconds
        self.cache = {
            "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "cache" / "torch"),
        }

    def left(self) -> float:
        """Seconds that are left."""
        return self.end - self.clock()

    def measure(self, part: Part) -> None:
        """Runs a part, unless its result is there, or there is no time for it."""
        if not self.records.lacks(part.name) or self.left() < LEAST:
            return
        # PyTorch needs part of the card, too. The cold start must not find what others have left.
        share = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.45"} if part.arguments.get("peer") else {}
        environment = share if part.alone else self.cache | share
        start = self.clock()
        limit = min(LIMIT, self.left())
        result = self.run(part.function, part.arguments, environment=environment, seconds=limit)
        record = result if isinstance(result, dict) else {"rows": result}
        batch = part.arguments.get("batch_size")
        self.records.add(
            part.name,
            {"module": part.module, "batch": batch, "took": self.clock() - start} | record,
        )
        print(f"{self.left():4.0f} s left: {part.name}: {record.get('error', 'done')}", flush=True)

    def compile(self, found: Sequence[Part], workers: int) -> None:
        """Compiles what parts need, several at a time, into the cache. Failures will show when they are measured."""
        end = self.clock() + COMPILING * self.left()
        environment = self.cache | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}

        def one(part: Part) -> None:
            if end - self.clock() > LEAST:
                arguments = part.arguments | {"rounds": 0}
                limit = end - self.clock()
                result = self.run(part.function, arguments, environment=environment, seconds=limit)
                said = result["error"] if isinstance(result, dict) else "compiled"
                print(f"{self.left():4.0f} s left: {part.name}: {said}", flush=True)

        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(one, found))


def go(found: Sequence[Part], timetable: Timetable, workers: int) -> None:
    """Runs the parts: first those that are to be alone, then compilation, then the others."""
    for part in found:
        if part.alone:
            timetable.measure(part)
    missing = [part for part in found if not part.alone and timetable.records.lacks(part.name)]
    if workers:
        timetable.compile(missing, workers)
    for part in missing:
        timetable.measure(part)


def page(records: parts.Records, environment: str) -> str:
    """The tables of all results, and what failed."""
    lines = [f"Measured by `python -m benchmarks.accelerator` on {environment}."]
    for module, (heading, columns) in TABLES.items():
        results = [each for each in records.found.values() if each["module"] == module]
        hidden = dict.fromkeys(
            ("to_compile", "to_lower")
        )  # From the cache, mostly; the starts say what it takes.
        rows = [
            row | {"batch": each["batch"]} | hidden
            for each in results
            for row in each.get("rows", [])
        ]
        batch = {} if module == "speed" else {"batch": ("batch", "", 1)}
        lines += [
            "",
            f"## {heading}",
            "",
            *speed.table(rows, dict([*columns.items()][:1]) | batch | columns),
        ]
    failed = [f"- {key}: {each['error']}" for key, each in records.found.items() if "error" in each]
    return "\n".join([*lines, *(["", "## Not measured", "", *failed] if failed else []), ""])


def main() -> None:
    """Measures, and writes the tables."""
    given = flags.FLAGS
    folder = Path(given.out).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    records = parts.Records(folder / "results.jsonl")
    timetable = Timetable(records, folder, given.seconds)
    go(plan(given.tiny), timetable, 0 if given.tiny else given.workers)
    # A process of its own: this one must not take the accelerator from the parts.
    about = parts.run("benchmarks.speed:about", {}, seconds=60)
    (folder / "results.md").write_text(
        page(records, about.get("environment", "a machine that cannot be named"))
    )
    print(
        f"{folder / 'results.md'}: {sum('rows' in each for each in records.found.values())} parts"
    )


if __name__ == "__main__":
    flags.DEFINE_string("out", "accelerator", "The folder of results.")
    flags.DEFINE_float("seconds", 540, "Time for everything.")
    flags.DEFINE_integer(
        "workers", 5, "Processes that compile at a time; 0: each part compiles for itself."
    )
    flags.DEFINE_bool(
        "tiny", False, "Tiny networks and few parts, for CPUs: whether the script works."
    )
    contest.run(main)
