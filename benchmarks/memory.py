"""Memory of the compiled train step of every config, and the bytes that it moves.

python -m benchmarks.memory [--results=FILE] [--config=...] [--shape=1x1 --shape=0x8 ...]
    [--set=training.remat=True] [--topology=v5p:1x1x1] [--program=train_step]

Prints a table; results are also written to a file, from which a second run resumes. Nothing is run
and no parameters are made: each step is compiled for shapes, in a separate process, and the numbers
are the compiler's (`memory_analysis`). Configs that differ only in SDE or data have the same step.
Arguments are parameters, their average, Adam's two moments and images. The compiler is that of the
local device: on CPUs the workspace of convolutions is not included, and GPU compilers fuse
differently and choose algorithms that need such workspace. With --topology it is the compiler of
TPUs that need not be present; it also states whether the step fits the chip, whose memory the
program shares, and which bytes the step moves in this memory (`traffic.movements`), in all and by
JAX operation. --program selects an evaluation of the score, or of the score with its derivative
along a probe, as likelihoods need it, in place of the step.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from benchmarks import comparison, markdown, parts, speed
from benchmarks import topology as topologies
from configs.default import Config
from errors import InputError
from models import NETWORKS

DEVICES = 8
CARD = 80e9  # bytes
SOURCES = 12  # operations that move the most
COLUMNS = {
    "config": ("name", "", 1),
    "has the step of": ("same", "", 1),
    "program": ("program_name", "", 1),
    "changed": ("changed", "", 1),
    "size, px": ("image_size", "", 1),
    "parameters, 10^6": ("parameters", ".1f", 1e-6),
    "batch": ("batch_size", "", 1),
    "devices": ("devices", "", 1),
    "topology": ("topology", "", 1),
    "arguments, GB a device": ("arguments", ".2f", 1e-9),
    "temporaries, GB": ("temporaries", ".2f", 1e-9),
    "program, GB": ("program", ".2f", 1e-9),
    "in all, GB": ("peak", ".2f", 1e-9),
    "fits the chip": ("fits", "", 1),
    f"fits {CARD / 1e9:.0f} GB": ("fits_card", "", 1),
    "GFLOP": ("flops", ".0f", 1e-9),
    "GFLOP a device, estimated": ("tpu_flops", ".0f", 1e-9),
    "GB moved in HBM": ("moved", ".2f", 1e-9),
    "GB moved without VMEM": ("moved_without", ".2f", 1e-9),
    "GB moved in all memories, estimated": ("traffic", ".2f", 1e-9),
    "compilation, s": ("compile", ".0f", 1),
    "error": ("error", "", 1),
}
PROGRAMS = ("train_step", "score", "derivative")
Shape = tuple[int | None, int]
"""(batch size, or None for the config's; devices)."""


# --- one step ---


def analyze_step(
    *,
    config: str,
    overrides: Sequence[str] = (),
    batch_size: int | None,
    devices: int,
    topology: str | None = None,
    program: str = PROGRAMS[0],
) -> speed.Row:
    """Return the memory of a train step, or another program of PROGRAMS, on `devices` devices.

    batch_size None stands for the config's. The devices are local ones or, if given, those of a TPU
    topology. FLOPs are those of the whole batch. TPU's compiler also estimates FLOPs and bytes of
    the optimized program per device. `parts.run` calls this in a new process, as it sets the number
    of CPU devices. Raises InputError for too few devices.
    """
    import jax

    # JAX adds its options as attributes at run time.
    platforms = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
    if platforms in (None, "cpu"):
        jax.config.update("jax_num_cpu_devices", max(1, devices))
    from benchmarks import traffic

    batch = [] if batch_size is None else [f"training.batch_size={batch_size}"]
    loaded = comparison.load_config(config, [*overrides, *batch])
    available = topologies.devices(topology) if topology else jax.devices()
    if len(available) < devices:
        raise InputError(
            f"--shape needs {devices} devices; {len(available)} are available. "
            "JAX_PLATFORMS=cpu simulates any number."
        )
    experiment = speed.Experiment(loaded, available[:devices])
    compiled = speed.compile_stages(*lowerable(experiment, program))
    local = speed.Experiment(loaded, jax.devices()[:1])
    found = compiled.memory | {
        "peak": compiled.peak,
        "flops": compiled.flops or speed.count_flops(*lowerable(local, program)),
        "compile": compiled.seconds["compile"],
        "batch_size": loaded.training.batch_size,
        "image_size": loaded.data.image_size,
        "parameters": speed.parameters(experiment),
    }
    if topology:
        found["tpu_flops"] = compiled.estimate["flops"]
        found["traffic"] = compiled.estimate["bytes accessed"]
        text = compiled.call.as_text()
        movements = traffic.movements(text)
        found["moved"] = traffic.total(movements)
        found["moved_without"] = traffic.moved_bytes(text, on_chip=False)
        found["sources"] = traffic.by_source(movements)[:SOURCES]
    return found


def lowerable(experiment: speed.Experiment, program: str) -> tuple[Any, ...]:
    """Return the jitted program of PROGRAMS for training.batch_size images, and its arguments."""
    from benchmarks import likelihood, sampling, train_step

    batch_size = experiment.config.training.batch_size
    makers = {
        "train_step": lambda: train_step.lowered_arguments(experiment),
        "score": lambda: sampling.evaluation(experiment, batch_size),
        "derivative": lambda: likelihood.divergence(experiment, batch_size),
    }
    return makers[program]()


def fits(found: speed.Row, topology: str | None) -> speed.Row:
    """Return whether a step fits into CARD bytes and, for TPUs, into the chip, where known."""
    if "peak" in found:
        result = {"fits_card": "yes" if found["peak"] < CARD else "no"}
        return result | {"fits": "yes"} if topology else result
    if topology and "RESOURCE_EXHAUSTED" in found["error"]:
        return {"fits": "no"}
    return {}


# --- all steps ---


def all_configs() -> list[str]:
    """Return the paths of the experiments in configs/."""
    root = parts.ROOT
    found = sorted(str(path.relative_to(root)) for path in (root / "configs").rglob("*.py"))
    return [path for path in found if path.count("/") > 1 and not path.endswith("__init__.py")]


def step_key(config: Config, batch_size: int | None) -> str:
    """Return a string of all fields on which the memory of a train step depends.

    The SDE is not among them: it has no arrays.
    """
    network = {"name": config.model.name} | NETWORKS[config.model.name].arguments(config.model)
    shape = [config.data[field] for field in ("image_size", "num_channels", "num_classes")]
    training = [config.training[field] for field in ("remat", "accumulate", "shard_params")]
    batch_size = batch_size or config.training.batch_size
    return json.dumps([batch_size, shape, config.model.dtype, training, network], default=list)


def measure(
    records: parts.Records,
    config: Sequence[str],
    overrides: Sequence[str] = (),
    *,
    shapes: Sequence[Shape] = ((1, 1), (None, DEVICES)),
    topology: str | None = None,
    program: str = PROGRAMS[0],
    seconds: float = 3600,
) -> list[parts.Record]:
    """Return results for each config and shape; compute and add those that `records` lacks.

    A compilation that takes longer than `seconds` fails. Raises InputError for invalid configs.
    """
    rows = []
    same_step: dict[tuple[str, int], str] = {}  # the first key with a step, by step and devices
    for path in config:
        loaded = comparison.load_config(path, overrides)
        name = comparison.config_name(path)
        for batch_size, devices in shapes:
            target = {"devices": devices} | ({"topology": topology} if topology else {})
            target |= {"program": program} if program != PROGRAMS[0] else {}
            key = _record_key(path, overrides, batch_size, target)
            first = same_step.setdefault((step_key(loaded, batch_size), devices), key)
            if records.is_missing(key) and not records.is_missing(first):
                found = records.results[first]
                records.add(key, found | {"name": name, "same": found["name"]})
            elif records.is_missing(key):
                arguments = {"config": path, "overrides": list(overrides)} | target
                arguments["batch_size"] = batch_size
                found = _compile(arguments, topology, seconds)
                about = {"name": name, "changed": " ".join(overrides), "batch_size": batch_size}
                if program != PROGRAMS[0]:
                    about["program_name"] = program
                records.add(key, about | target | found | fits(found, topology))
                outcome = found.get("error") or f"{found['peak'] / 1e9:.2f} GB"
                print(f"{key}: {outcome}", flush=True)
            rows.append(records.results[key])
    return rows


def _record_key(
    path: str, overrides: Sequence[str], batch_size: int | None, target: parts.Record
) -> str:
    settings = [f"{name}={value}" for name, value in target.items()]
    return " ".join([path, *overrides, f"batch={batch_size or 'own'}", *settings])


def _compile(arguments: parts.Record, topology: str | None, seconds: float) -> parts.Record:
    """Run `analyze_step` in a new process; for TPU topologies on a CPU."""
    environment = {"JAX_PLATFORMS": "cpu"} if topology else {}
    function = "benchmarks.memory:analyze_step"
    return parts.run(function, arguments, environment=environment, seconds=seconds)


# --- command line ---


def source_table(row: parts.Record) -> list[str]:
    """Return the table of the operations that move the most in HBM; [] where they are not known."""
    if not row.get("sources"):
        return []
    config = " ".join(filter(None, (row["name"], row.get("changed"))))
    lines = ["", f"Moved in HBM by {config}, batch {row['batch_size']}:", ""]
    lines += markdown.header("JAX operation", "GB", "share, %")
    for name, moved in row["sources"]:
        share = f"{100 * moved / row['moved']:.0f}"
        lines.append(markdown.row(name, f"{moved / 1e9:.2f}", share))
    return lines


def _shapes(topology: str | None, texts: Sequence[str] | None) -> list[Shape]:
    """Parse --shape; by default 1x1 and 0x8, or one image per device of the topology."""
    if not texts and topology:
        count = len(topologies.devices(topology))
        return [(count, count)]
    if not texts:
        return [(1, 1), (None, DEVICES)]
    shapes = []
    for text in texts:
        batch_size, devices = text.split("x")
        shapes.append((int(batch_size) or None, int(devices)))
    return shapes


def main() -> None:
    """Measure what is missing, and print the table of all results in the file."""
    given = flags.FLAGS
    topology = given.topology
    records = parts.Records(given.results)
    shapes = _shapes(topology, given.shape)
    measure(
        records,
        given.config or all_configs(),
        given["set"].value or (),
        shapes=shapes,
        topology=topology,
        program=given.program,
    )
    rows = list(records.results.values())
    fitting = [row for row in rows if row.get("fits_card") == "yes"]
    compiler = "by the compiler"
    if topology:
        compiler += f", {topologies.describe(topology)}"
    print(f"\nMemory of train steps, {compiler}; on {speed.environment()}.")
    print(f"{len(fitting)} of {len(rows)} fit in {CARD / 1e9:.0f} GB a device.\n")
    print("\n".join(speed.table(rows, COLUMNS)))
    for line in (line for row in rows for line in source_table(row)):
        print(line)


if __name__ == "__main__":
    flags.DEFINE_multi_string("config", [], "Config files; by default all of configs/.")
    flags.DEFINE_multi_string("set", [], "A field for all configs: --set=training.remat=True.")
    flags.DEFINE_string(
        "results", str(Path(".cache") / "memory.jsonl"), "The file of results, one per line."
    )
    flags.DEFINE_multi_string(
        "shape",
        None,
        f"Batch size (0: the config's) x devices; by default 1x1 and 0x{DEVICES}, or one image for "
        "each device of --topology.",
    )
    flags.DEFINE_string("topology", None, topologies.HELP)
    flags.DEFINE_enum("program", PROGRAMS[0], PROGRAMS, "What is compiled.")
    comparison.run(main)
