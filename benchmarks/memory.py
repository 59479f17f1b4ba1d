"""Memory and FLOPs of compiled train steps, and the bytes that they send. Nothing is run.

The numbers are the compiler's, of the local device or, with a topology, of TPUs that need not be
present. On CPUs the workspace of convolutions is not included.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from benchmarks import harness, hlo, programs, tables
from errors import InputError, brief

CARD = 80e9  # bytes
COLUMNS: tables.Columns = {
    "config": ("name", "", 1),
    "size, px": ("image_size", "", 1),
    "parameters, 10^6": ("parameters", ".1f", 1e-6),
    "batch": ("batch_size", "", 1),
    "devices": ("devices", "", 1),
    "arguments, GB a device": ("arguments", ".2f", 1e-9),
    "temporaries, GB": ("temporaries", ".2f", 1e-9),
    "program, GB": ("program", ".2f", 1e-9),
    "in all, GB": ("peak", ".2f", 1e-9),
    f"fits {CARD / 1e9:.0f} GB": ("fits_card", "", 1),
    "GFLOP": ("flops", ".0f", 1e-9),
    **{f"{kind}, MB": (kind, ".1f", 1e-6) for kind in (*hlo.KINDS[:3], hlo.SCATTER)},
    "GFLOP a device, estimated": ("tpu_flops", ".0f", 1e-9),
    "GB moved in all memories, estimated": ("traffic", ".2f", 1e-9),
    "compilation, s": ("compile", ".0f", 1),
    "error": ("error", "", 1),
}


def analyze(config: str, overrides: Sequence[str], devices: int, topology: str) -> tables.Row:
    """Return what the compiler states about a train step; `harness.isolated` calls this.

    It sets the number of CPU devices of this process. FLOPs are those of the whole batch.
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
    compiled = programs.compile_stages(*programs.train_step(experiment))
    found = compiled.memory | {
        "peak": compiled.peak,
        "fits_card": "yes" if compiled.peak < CARD else "no",
        "flops": compiled.flops,
        "compile": compiled.seconds,
        "batch_size": loaded.training.batch_size,
        "image_size": loaded.data.image_size,
        "parameters": programs.parameters(experiment),
    }
    found |= {k: sum(sizes) for k, sizes in hlo.collectives(compiled.call.as_text()).items()}
    if topology:
        estimate = compiled.call.cost_analysis()
        found |= {"tpu_flops": estimate["flops"], "traffic": estimate["bytes accessed"]}
    return found


def measure(path: str, shape: str, options: argparse.Namespace) -> tables.Row:
    """Return the row of a config and a shape, which has an `error` if the compilation failed."""
    try:
        size, devices = map(int, shape.split("x"))
    except ValueError:
        raise InputError(f"--shape={shape} must be batch size x devices, such as 8x1.") from None
    overrides = [*options.set, *([f"training.batch_size={size}"] if size else [])]
    row: tables.Row = {"name": tables.config_name(path), "devices": devices}
    environment = {"JAX_PLATFORMS": "cpu"} if options.topology else {}
    try:
        given = path, overrides, devices, options.topology
        row |= harness.isolated(analyze, *given, environment=environment)
    except RuntimeError as error:  # of XLA, or a process that was killed
        row["error"] = brief(error)
    print(f"  {row}", flush=True)
    return row


def show(options: argparse.Namespace) -> None:
    """Compile the train steps of all configs and shapes; print the table."""
    shapes = options.shape or (["1x1"] if options.topology else ["1x1", "0x8"])
    paths = options.config or programs.all_configs()
    rows = [measure(path, shape, options) for path in paths for shape in shapes]
    compiler = harness.isolated(tables.environment)
    if options.topology:
        target = f"{programs.tpus(options.topology)[0].device_kind} ({options.topology})"
        compiler = f"for {target} by {tables.versions('libtpu')}, not run; {compiler}"
    print(f"\nMemory of compiled train steps; {compiler}.\n")
    print("\n".join(tables.table(rows, COLUMNS)))
