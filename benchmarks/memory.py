"""Memory of the compiled train step of every config: a table; results go to a file, so that a second run goes on.

python -m benchmarks.memory [--results=FILE] [--config=...] [--shape=1x1 --shape=0x8 ...] [--set=training.remat=True]
    [--topology=v5p:1x1x1]

Nothing is run, and no parameter is made: the step is compiled for shapes, in a process of its own for each row, and the
numbers are the compiler's (`memory_analysis`). Configs that differ but in SDE or data have the same step. Arguments are
parameters, their average, Adam's two moments and images. All are those of the device at hand. On a CPU the working
space of convolutions is not among them; GPU's compilers fuse otherwise, and choose algorithms that need such space.
With --topology they are those of TPUs that need not be there, whose compiler also says whether the step fits the chip;
the program lies in its memory, too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from benchmarks import contest, parts, speed
from benchmarks import topology as topologies
from configs.default import Config
from errors import InputError
from models import NETWORKS

DEVICES = 8
CARD = 80e9  # bytes
COLUMNS = {
    "config": ("name", "", 1),
    "has the step of": ("same", "", 1),
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
    "GB moved, estimated": ("traffic", ".2f", 1e-9),
    "compilation, s": ("compile", ".0f", 1),
    "error": ("error", "", 1),
}


def of_step(
    *,
    config: str,
    set: Sequence[str] = (),  # noqa: A002
    batch_size: int | None,
    devices: int,
    topology: str | None = None,
) -> speed.Row:
    """Memory of a train step on `devices` devices; batch_size None is the config's. In a process of its own.

    The devices are those at hand or, if it is given, of a TPU topology. FLOPs are those of the whole batch; those that
    TPU's compiler counts in the optimized program, and the bytes, are its estimates for a device. Raises InputError.
    """
    import jax

    if jax.config.jax_platforms in (None, "cpu"):
        jax.config.update("jax_num_cpu_devices", max(1, devices))
    from benchmarks import train_step

    batch = [] if batch_size is None else [f"training.batch_size={batch_size}"]
    loaded = contest.load(config, [*set, *batch])
    here = topologies.devices(topology) if topology else jax.devices()
    if len(here) < devices:
        raise InputError(
            f"--shape asks for {devices} devices, here are {len(here)}; JAX_PLATFORMS=cpu has all."
        )
    experiment = speed.Experiment(loaded, here[:devices])
    compiled = train_step.compile_step(experiment)
    estimate = {
        "tpu_flops": compiled.estimate["flops"],
        "traffic": compiled.estimate["bytes accessed"],
    }
    return compiled.memory | {
        "peak": compiled.peak,
        "flops": compiled.flops or train_step.counted_flops(loaded),
        "compile": compiled.seconds["compile"],
        "batch_size": loaded.training.batch_size,
        "image_size": loaded.data.image_size,
        "parameters": speed.parameters(experiment),
        **(estimate if topology else {}),
    }


def all_configs() -> list[str]:
    """The paths of the experiments in configs/."""
    root = parts.ROOT
    found = sorted(str(path.relative_to(root)) for path in (root / "configs").rglob("*.py"))
    return [path for path in found if path.count("/") > 1 and not path.endswith("__init__.py")]


def step_of(config: Config, batch_size: int | None) -> str:
    """What the memory of a train step depends on; SDEs take none."""
    network = {"name": config.model.name} | NETWORKS[config.model.name].arguments(config.model)
    shape = [config.data[field] for field in ("image_size", "num_channels", "num_classes")]
    ways = [
        config.model.dtype,
        *(config.training[field] for field in ("remat", "accumulate", "shard_params")),
    ]
    return json.dumps(
        [batch_size or config.training.batch_size, shape, ways, network], default=list
    )


def measure(
    records: parts.Records,
    config: Sequence[str],
    set: Sequence[str] = (),  # noqa: A002
    *,
    shapes: Sequence[tuple[int | None, int]] = ((1, 1), (None, DEVICES)),
    topology: str | None = None,
    seconds: float = 3600,
) -> list[parts.Record]:
    """Results for each config at each (batch size or None for its own, devices); those that `records` lacks are found.

    Raises InputError for bad configs.
    """
    rows, alike = [], {}
    for path in config:
        loaded = contest.load(path, set)
        for batch_size, devices in shapes:
            where = {"devices": devices} | ({"topology": topology} if topology else {})
            arguments = {"config": path, "set": list(set), "batch_size": batch_size} | where
            key = " ".join(
                [
                    path,
                    *set,
                    f"batch={batch_size or 'own'}",
                    *(f"{k}={v}" for k, v in where.items()),
                ]
            )
            name = path.removeprefix("configs/").removesuffix(".py")
            first = alike.setdefault((step_of(loaded, batch_size), devices), key)
            if records.lacks(key) and not records.lacks(first):
                found = records.found[first]
                records.add(key, found | {"name": name, "same": found["name"]})
            elif records.lacks(key):
                about = {"name": name, "changed": " ".join(set), "batch_size": batch_size} | where
                environment = {"JAX_PLATFORMS": "cpu"} if topology else {}
                found = parts.run(
                    "benchmarks.memory:of_step", arguments, environment=environment, seconds=seconds
                )
                records.add(key, about | found | fits(found, topology))
                print(
                    f"{key}: {found.get('error') or format(found['peak'] / 1e9, '.2f') + ' GB'}",
                    flush=True,
                )
            rows.append(records.found[key])
    return rows


def fits(found: speed.Row, topology: str | None) -> speed.Row:
    """Whether a step fits into CARD and, as TPU's compiler says, into the chip; nothing where that is not known."""
    if "peak" in found:
        return {"fits_card": "yes" if found["peak"] < CARD else "no"} | (
            {"fits": "yes"} if topology else {}
        )
    return {"fits": "no"} if topology and "RESOURCE_EXHAUSTED" in found["error"] else {}


def main() -> None:
    """Measures what is missing, and prints the table of all that the file holds."""
    given = flags.FLAGS
    every = len(topologies.devices(given.topology)) if given.topology else 0
    shapes = [f"{every}x{every}"] if given.topology else ["1x1", f"0x{DEVICES}"]
    shapes = [
        tuple(int(number) or None for number in each.split("x")) for each in given.shape or shapes
    ]
    paths = given.config or all_configs()
    records = parts.Records(given.results)
    measure(records, paths, given.set, shapes=shapes, topology=given.topology)
    rows = list(records.found.values())
    fitting = [each for each in rows if each.get("fits_card") == "yes"]
    how = (
        f"by the compiler, {topologies.described(given.topology)}"
        if given.topology
        else "by the compiler"
    )
    lines = [f"Memory of train steps, {how}; on {speed.environment()}."]
    lines.append(f"{len(fitting)} of {len(rows)} fit in {CARD / 1e9:.0f} GB a device.")
    print("\n".join(["", *lines, "", *speed.table(rows, COLUMNS)]))


if __name__ == "__main__":
    flags.DEFINE_multi_string("config", [], "Config files; all of configs/ if none is given.")
    flags.DEFINE_multi_string("set", [], "A field for all, as in --set=training.remat=True.")
    flags.DEFINE_string(
        "results", str(Path(".cache") / "memory.jsonl"), "The file of results, one in a line."
    )
    flags.DEFINE_multi_string(
        "shape",
        None,
        f"Batch size (0: the config's) x devices; by default 1x1 and 0x{DEVICES}, or an image for each of --topology.",
    )
    flags.DEFINE_string("topology", None, topologies.HELP)
    contest.run(main)
