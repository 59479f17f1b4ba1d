"""Communication of a training step between devices, compared with its computation.

python -m benchmarks.communication [--config=...] [--topology=v5e:2x4]

Prints the tables of docs/scaling.md. The step is compiled for eight simulated devices or, with
--topology, for TPUs that need not be present; nothing is run. Bytes are those of the collectives in
its HLO, FLOP those that XLA counts before it optimizes the program. For other numbers of devices,
bytes follow from `ring_bytes` and `sharding.shard_largest_axis`, and FLOP from the number of images
per device. Times divide these by the rates given by flags; the rates are assumptions, not
measurements. Latency and the overlap of communication with computation are ignored.

A sharded state needs as much communication as a replicated one: its gradients are scattered and its
parameters gathered, which together is an all-reduce. Only the CPU backend has no reduce-scatter and
reduces such gradients completely.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from absl import app, flags
from jax.sharding import AbstractMesh

import sharding
from benchmarks import speed, topology, train_step
from benchmarks.collectives import collectives, ring_bytes
from benchmarks.markdown import header, row
from experiment import Experiment

DEVICES: tuple[int, ...] = (8, 16, 32, 64, 128, 256, 512, 1024)
COMPILED = 8  # simulated devices
# Does not change which collectives there are.
QUICK: dict[str, Any] = {"xla_backend_optimization_level": 0}

flags.DEFINE_string("config", "ve.cifar10_ncsnpp_continuous", "A module in configs/.")
flags.DEFINE_string("topology", None, topology.HELP)
flags.DEFINE_integer("per_device", 16, "Images on each device, in the first table.")
flags.DEFINE_integer("total", 1024, "Images on all devices together, in the second table.")
flags.DEFINE_float("link", 50.0, "Assumed: GB/s that each device sends.")
flags.DEFINE_float("rate", 100.0, "Assumed: TFLOP/s that each device computes.")


class Step(NamedTuple):
    """A training step with one image on each device.

    Attributes:
      flop: FLOP per image.
      params: shapes of the parameters.
      sent: bytes of its collectives, by kind.
      estimate: the compiler's estimates for one device.
    """

    flop: float
    params: dict
    sent: dict[str, int]
    estimate: dict[str, float]


def compile_step(
    name: str,
    # jaxlib has no stubs, so pyright takes jax.Device for a variable.
    devices: Sequence[jax.Device],  # pyright: ignore[reportInvalidTypeForm]
    *,
    sharded: bool,
) -> Step:
    """Compile the training step of a config."""
    config = importlib.import_module(f"configs.{name}").get_config()
    config.training.shard_params = sharded
    config.training.batch_size = config.eval.batch_size = len(devices)
    experiment = Experiment(config, devices)
    lowered = train_step.lower(experiment)
    compiled = lowered.compile(QUICK if devices[0].platform == "cpu" else None)
    text = compiled.as_text()
    if text is None:
        raise ValueError(f"The compiler does not return the HLO of the step for {devices[0]}.")
    sent = {kind: sum(sizes) for kind, sizes in collectives(text).items()}
    flop = (speed.flops(lowered) or train_step.counted_flops(experiment.config)) / len(devices)
    return Step(flop, experiment.abstract_params, sent, compiled.cost_analysis() or {})


def sharded_bytes(params: dict, devices: int) -> int:
    """Return the bytes of parameters that `sharding.shard_largest_axis` shards."""
    mesh = AbstractMesh((devices,), ("data",))
    shardings = jax.tree.leaves(sharding.shard_largest_axis(mesh, params))
    return sum(
        leaf.size * leaf.dtype.itemsize
        for leaf, placement in zip(jax.tree.leaves(params), shardings)
        if not placement.is_fully_replicated
    )


def table(step: Step, images: dict[int, float], link: float, rate: float) -> list[str]:
    """Return a table with a row for each number of devices.

    Args:
      images: images per device, by number of devices.
      link, rate: byte/s and FLOP/s of a device.
    """
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(step.params))
    lines = header(
        "devices",
        "images a device",
        "GFLOP",
        "MB sent",
        "ms computing",
        "ms sending",
        "state kept if split",
    )
    for devices, count in images.items():
        sent = sum(ring_bytes(kind, size, devices) for kind, size in step.sent.items())
        removed = sharded_bytes(step.params, devices) / total * (devices - 1) / devices
        flop = count * step.flop
        lines.append(
            row(
                f"{devices:,}",
                f"{count:g}",
                f"{flop / 1e9:,.1f}",
                f"{sent / 1e6:.1f}",
                f"{1e3 * flop / rate:.2f}",
                f"{1e3 * sent / link:.2f}",
                f"{100 * (1 - removed):.1f} %",
            )
        )
    return lines


def main(_: list[str]) -> None:
    """Print the collectives of the step and the tables."""
    options = flags.FLAGS
    jax.config.update("jax_num_cpu_devices", COMPILED)
    if options.topology:
        devices = topology.devices(options.topology)
        target = topology.describe(options.topology)
    else:
        devices = jax.devices()[:COMPILED]
        target = f"compiled for {jax.default_backend()}"
    replicated = compile_step(options.config, devices, sharded=False)
    sharded = compile_step(options.config, devices, sharded=True)
    for kind, step in (("replicated", replicated), ("split", sharded)):
        sizes = (f"{name} of {size / 1e6:.1f} MB" for name, size in sorted(step.sent.items()))
        head = f"{options.config}, state {kind}, {len(devices)} devices, {target}"
        print(f"{head}: {', '.join(sizes)}")
        if options.topology:
            flop, moved = step.estimate["flops"] / 1e9, step.estimate["bytes accessed"] / 1e9
            print(
                "  for one device and one image, the compiler estimates "
                f"{flop:.1f} GFLOP and {moved:.1f} GB moved"
            )
    megabytes = sharded_bytes(replicated.params, len(devices)) / 1e6
    print(f"by the rule: {megabytes:.1f} MB of the parameters are split over {len(devices)}")
    print(f"{replicated.flop / 1e9:.1f} GFLOP an image")
    print(
        f"ASSUMED, not measured: a device sends {options.link:g} GB/s and computes "
        f"{options.rate:g} TFLOP/s\n"
    )
    rates = options.link * 1e9, options.rate * 1e12
    per_device = {n: float(options.per_device) for n in DEVICES}
    print(*table(replicated, per_device, *rates), sep="\n", end="\n\n")
    print(*table(replicated, {n: float(options.total) / n for n in DEVICES}, *rates), sep="\n")


if __name__ == "__main__":
    app.run(main)
