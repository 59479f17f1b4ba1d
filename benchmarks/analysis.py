"""Memory, FLOPs, bytes moved and bytes sent by compiled programs. Nothing is run.

Each program is compiled for shapes, in a separate process, and the numbers are the compiler's.
Arguments of a train step are parameters, their average, Adam's two moments and images. The
compiler is that of the local device: on CPUs the workspace of convolutions is not included, and GPU
compilers fuse differently and choose algorithms that need such workspace. With a topology it is the
compiler of TPUs that need not be present; it also states whether the program fits the chip, whose
memory it shares, and which bytes it moves in this memory (`traffic.movements`).

A roofline follows from these bytes: a device computes at most its peak and moves at most its
bandwidth, and a program takes at least the longer of the two times.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

from benchmarks import harness, tables, traffic
from benchmarks.configs import all_configs, config_name, load_config
from benchmarks.records import Record, Records
from configs.default import Config
from errors import InputError, brief
from models import NETWORKS

CARD = 80e9  # bytes
SOURCES = 12  # operations that move the most
COLUMNS: tables.Columns = {
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
    "all-reduce, MB": ("all-reduce", ".1f", 1e-6),
    "all-gather, MB": ("all-gather", ".1f", 1e-6),
    "reduce-scatter, MB": ("reduce-scatter", ".1f", 1e-6),
    "all-reduce-scatter, MB": ("all-reduce-scatter", ".1f", 1e-6),
    "GFLOP a device, estimated": ("tpu_flops", ".0f", 1e-9),
    "GB moved in HBM": ("moved", ".2f", 1e-9),
    "GB moved without VMEM": ("moved_without", ".2f", 1e-9),
    "GB moved in all memories, estimated": ("traffic", ".2f", 1e-9),
    "compilation, s": ("compile", ".0f", 1),
    "error": ("error", "", 1),
}


class Target(NamedTuple):
    """What a program is compiled for.

    Attributes:
      batch_size: None for that of the config.
      devices: their number; simulated on CPUs.
      topology: of TPUs, or None for local devices.
      program: a key of `programs.PROGRAMS`.
    """

    batch_size: int | None
    devices: int
    topology: str | None = None
    program: str = "train_step"


# --- one program ---


def analyze(config: str, overrides: Sequence[str], target: Target) -> Record:
    """Return what the compiler states about a program; `harness.isolated` calls this.

    It sets the number of CPU devices of this process. FLOPs are those of the whole batch, sizes of
    collectives those of their results. Raises InputError for too few devices.
    """
    import jax

    # JAX adds its options as attributes at run time.
    platforms = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
    if platforms in (None, "cpu"):
        jax.config.update("jax_num_cpu_devices", max(1, target.devices))
    from benchmarks import programs
    from benchmarks.collectives import collectives
    from experiment import Experiment

    batch = [] if target.batch_size is None else [f"training.batch_size={target.batch_size}"]
    loaded = load_config(config, [*overrides, *batch])
    available = programs.tpus(target.topology) if target.topology else jax.devices()
    if len(available) < target.devices:
        raise InputError(
            f"--shape needs {target.devices} devices; {len(available)} are available. "
            "JAX_PLATFORMS=cpu simulates any number."
        )
    experiment = Experiment(loaded, available[: target.devices])
    make = programs.PROGRAMS[target.program]
    compiled = programs.compile_stages(*make(experiment))
    text = compiled.call.as_text()
    found = compiled.memory | {
        "peak": compiled.peak,
        "flops": compiled.flops or programs.count_flops(*make(programs.on_device(loaded))),
        "compile": compiled.seconds["compile"],
        "batch_size": loaded.training.batch_size,
        "image_size": loaded.data.image_size,
        "parameters": programs.parameters(experiment),
        **{kind: sum(sizes) for kind, sizes in collectives(text).items()},
    }
    if target.topology:
        estimate = compiled.estimate
        found |= {"tpu_flops": estimate["flops"], "traffic": estimate["bytes accessed"]}
        found |= _moved(text)
    return found


def _moved(text: str) -> Record:
    """Return the bytes that a program for a TPU moves, from its HLO text."""
    movements = traffic.movements(text)
    return {
        "moved": traffic.total(movements),
        "moved_without": traffic.moved_bytes(text, on_chip=False),
        "sources": traffic.by_source(movements)[:SOURCES],
    }


def fits(found: Record, topology: str | None) -> Record:
    """Return whether a program fits into CARD bytes and, for TPUs, into the chip, where known."""
    if "peak" in found:
        result = {"fits_card": "yes" if found["peak"] < CARD else "no"}
        return result | {"fits": "yes"} if topology else result
    if topology and "RESOURCE_EXHAUSTED" in found["error"]:
        return {"fits": "no"}
    return {}


# --- all programs ---


def step_key(config: Config, target: Target) -> str:
    """Return a string of all fields on which the memory of a train step depends.

    The SDE is not among them: it has no arrays.
    """
    network = {"name": config.model.name} | NETWORKS[config.model.name].arguments(config.model)
    shape = [config.data[field] for field in ("image_size", "num_channels", "num_classes")]
    training = [config.training[field] for field in ("remat", "accumulate", "shard_params")]
    size = target.batch_size or config.training.batch_size
    values = [size, target.devices, shape, config.model.dtype, training, network]
    return json.dumps(values, default=list)


def measure(
    records: Records, paths: Sequence[str], overrides: Sequence[str], targets: Sequence[Target]
) -> list[Record]:
    """Return the result of each config and target; compute and add those that `records` lacks.

    Configs that differ only in SDE or data have the same step, which is compiled once. Raises
    InputError for invalid configs.
    """
    rows, same_step = [], {}  # The first key with a step.
    for path in paths:
        loaded, name = load_config(path, overrides), config_name(path)
        for target in targets:
            key = json.dumps([path, *overrides, *target])
            first = same_step.setdefault(step_key(loaded, target), key)
            if records.is_missing(key) and not records.is_missing(first):
                found = records.results[first]
                records.add(key, found | {"name": name, "same": found["name"]})
            elif records.is_missing(key):
                found = _compile(path, overrides, target)
                about: Record = {"name": name, "changed": " ".join(overrides), **target._asdict()}
                about["program_name"] = about.pop("program")
                records.add(key, about | found | fits(found, target.topology))
                print(f"{name}, {target}: {found.get('error', 'done')}", flush=True)
            rows.append(records.results[key])
    return rows


def _compile(path: str, overrides: Sequence[str], target: Target) -> Record:
    """Return the result of `analyze` in a new process, for topologies on a CPU, or its error."""
    environment = {"JAX_PLATFORMS": "cpu"} if target.topology else {}
    try:
        return harness.isolated(analyze, path, overrides, target, environment=environment)
    except InputError:
        raise
    except (RuntimeError, BrokenProcessPool) as error:  # XLA's errors are RuntimeErrors.
        return {"error": brief(error)}


# --- roofline ---


class Device(NamedTuple):
    """A device as its vendor describes it: bfloat16 FLOP/s without sparsity, and bytes/s."""

    name: str
    peak: float
    bandwidth: float


DEVICES = (
    Device("TPU v5e", 197e12, 819e9),
    Device("TPU v5p", 459e12, 2765e9),
    Device("H100 SXM", 989e12, 3350e9),
)
LIMITS: tables.Columns = {
    "config": ("name", "", 1),
    "program": ("program_name", "", 1),
    "images a device": ("batch_size", "", 1),
    "device": ("device", "", 1),
    "ms computing": ("computing", ".1f", 1e3),
    "ms moving": ("moving", ".1f", 1e3),
    "ms moving, no VMEM": ("moving_without", ".1f", 1e3),
    "share of the peak, at most, %": ("share", ".0f", 100),
    "no VMEM, %": ("share_without", ".0f", 100),
    "images/s, at most": ("rate", ",.0f", 1),
}


def limits(found: Record, device: Device) -> Record:
    """Return the times of a program in seconds, and the share of the peak that they allow.

    `found` is a result of `analyze` for one device of a TPU topology.
    """
    computing = found["flops"] / device.peak
    moving, without = (found[key] / device.bandwidth for key in ("moved", "moved_without"))
    return found | {
        "device": device.name,
        "computing": computing,
        "moving": moving,
        "moving_without": without,
        "share": computing / max(computing, moving),
        "share_without": computing / max(computing, without),
        "rate": found["batch_size"] / max(computing, moving),
    }


def roofline(found: Iterable[Record]) -> list[Record]:
    """Return the limits of all results for one device whose moved bytes are known."""
    known = [each for each in found if "moved" in each and each["devices"] == 1]
    return [limits(each, device) for each in known for device in DEVICES]


# --- command line ---


def source_table(found: Record) -> list[str]:
    """Return the table of the operations that move the most in HBM."""
    config = " ".join(filter(None, (found["name"], found.get("changed"))))
    lines = ["", f"Moved in HBM by {config}, batch {found['batch_size']}:", ""]
    lines += tables.header("JAX operation", "GB", "share, %")
    for name, moved in found["sources"]:
        lines.append(tables.row(name, f"{moved / 1e9:.2f}", f"{100 * moved / found['moved']:.0f}"))
    return lines


def show(options: argparse.Namespace) -> None:
    """Measure what is missing; print the tables of all results of these configs and shapes."""
    shapes = options.shape or (["1x1"] if options.topology else ["1x1", "0x8"])
    targets = []
    for text in shapes:
        size, devices = map(int, text.split("x"))
        targets.append(Target(size or None, devices, options.topology, options.program))
    records, paths = Records(options.results), options.config or all_configs()
    found = measure(records, paths, options.set, targets)
    compiler: Any = harness.isolated(tables.environment)
    if options.topology:
        from benchmarks import programs

        compiler = f"{programs.describe(options.topology)}; {compiler}"
    print(f"\nMemory of compiled programs; {compiler}.\n")
    print("\n".join(tables.table(found, COLUMNS)))
    for each in found:
        if each.get("sources"):
            print("\n".join(source_table(each)))
    if rows := roofline(found):
        print("\n".join(["", "Limits of the speed:", "", *tables.table(rows, LIMITS)]))
