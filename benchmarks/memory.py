"""Memory, FLOPs, bytes moved and bytes sent by compiled programs. Nothing is run.

Each program is compiled for shapes, in a separate process, and the numbers are the compiler's.
Arguments of a train step are parameters, their average, Adam's two moments and images. The
compiler is that of the local device: on CPUs the workspace of convolutions is not included, and GPU
compilers fuse differently and choose algorithms that need such workspace. With a topology it is the
compiler of TPUs that need not be present; it also states whether the program fits the chip, whose
memory it shares, and which bytes it moves in this memory (`hlo.moved_bytes`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from benchmarks import harness, hlo, programs, tables
from benchmarks.records import Record, Records
from errors import InputError, brief, choose

CARD = 80e9  # bytes
COLUMNS: tables.Columns = {
    "config": ("name", "", 1),
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
    f"fits {CARD / 1e9:.0f} GB": ("fits_card", "", 1),
    "GFLOP": ("flops", ".0f", 1e-9),
    **{f"{kind}, MB": (kind, ".1f", 1e-6) for kind in (*hlo.KINDS[:3], hlo.SCATTER)},
    "GFLOP a device, estimated": ("tpu_flops", ".0f", 1e-9),
    "GB moved in HBM": ("moved", ".2f", 1e-9),
    "GB moved without VMEM": ("moved_without", ".2f", 1e-9),
    "GB moved in all memories, estimated": ("traffic", ".2f", 1e-9),
    "compilation, s": ("compile", ".0f", 1),
    "error": ("error", "", 1),
}


def analyze(
    config: str, overrides: Sequence[str], devices: int, topology: str | None, program: str
) -> Record:
    """Return what the compiler states about a program; `harness.isolated` calls this.

    It sets the number of CPU devices of this process. FLOPs are those of the whole batch, sizes of
    collectives those of their results.
    """
    import jax

    # JAX adds its options as attributes at run time.
    platforms = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
    if platforms in (None, "cpu"):
        jax.config.update("jax_num_cpu_devices", max(1, devices))
    loaded = programs.load_config(config, overrides)
    available = programs.tpus(topology) if topology else jax.devices()
    if len(available) < devices:
        raise InputError(
            f"--shape needs {devices} devices; {len(available)} are available. "
            "JAX_PLATFORMS=cpu simulates any number."
        )
    experiment = programs.Experiment(loaded, available[:devices])
    make = choose(programs.PROGRAMS, program, "--program")
    compiled = programs.compile_stages(*make(experiment))
    text = compiled.call.as_text()
    found = compiled.memory | {
        "peak": compiled.peak,
        "fits_card": "yes" if compiled.peak < CARD else "no",
        "flops": compiled.flops or programs.count_flops(*make(programs.on_device(loaded))),
        "compile": compiled.seconds["compile"],
        "batch_size": loaded.training.batch_size,
        "image_size": loaded.data.image_size,
        "parameters": programs.parameters(experiment),
        **{kind: sum(sizes) for kind, sizes in hlo.collectives(text).items()},
    }
    if topology:
        estimate = compiled.call.cost_analysis()
        found |= {"tpu_flops": estimate["flops"], "traffic": estimate["bytes accessed"]}
        found["moved"] = hlo.moved_bytes(text)
        found["moved_without"] = hlo.moved_bytes(text, on_chip=False)
    return found


def measure(records: Records, path: str, shape: str, options: argparse.Namespace) -> Record:
    """Return the row of a config and a shape; it is computed unless `records` have it.

    A failed compilation has an `error`, and is tried again in the next run.
    """
    try:
        size, devices = map(int, shape.split("x"))
    except ValueError:
        raise InputError(f"--shape={shape} must be batch size x devices, such as 8x1.") from None
    overrides = [*options.set, *([f"training.batch_size={size}"] if size else [])]
    about: Record = {"name": tables.config_name(path), "changed": " ".join(options.set)}
    about |= {"devices": devices, "topology": options.topology, "program_name": options.program}
    arguments = path, overrides, devices, options.topology, options.program

    def compute() -> Record:
        environment = {"JAX_PLATFORMS": "cpu"} if options.topology else {}
        try:
            return about | harness.isolated(analyze, *arguments, environment=environment)
        except RuntimeError as error:  # of XLA, or a process that was killed
            return about | {"error": brief(error)}

    return records.cached(json.dumps(arguments), compute)


def show(options: argparse.Namespace) -> None:
    """Measure what is missing; print the table of all results of these configs and shapes."""
    shapes = options.shape or (["1x1"] if options.topology else ["1x1", "0x8"])
    records, paths = Records(options.results), options.config or programs.all_configs()
    found = [measure(records, path, shape, options) for path in paths for shape in shapes]
    compiler: Any = harness.isolated(tables.environment)
    if options.topology:
        target = f"{programs.tpus(options.topology)[0].device_kind} ({options.topology})"
        library = tables.versions("libtpu")
        compiler = f"compiled ahead of time for {target} by {library}, not run; {compiler}"
    print(f"\nMemory of compiled programs; {compiler}.\n")
    print("\n".join(tables.table(found, COLUMNS)))
