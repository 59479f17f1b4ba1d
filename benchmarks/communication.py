"""What devices send in a training step, against what they compute: python -m benchmarks.communication

The step is compiled for eight simulated devices or, with --topology=v5e:2x4, for TPUs that need not be there; nothing
is run. Bytes are those of the collectives in its HLO, FLOP those that XLA counts before it optimises. For other numbers
of devices n the bytes follow from n by `ring_bytes` and `sharding.shard_largest_axis`, and the FLOP from the number of images a
device. Times are quotients by the rates that the flags state: assumptions, not measurements. Latency is left
out, and so is that sending and computing overlap.

A split state sends as much: its gradients are scattered and its parameters gathered, which is what an all-reduce does.
The CPU backend alone has no reduce-scatter, and sums such gradients whole.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
from absl import app, flags
from jax.sharding import AbstractMesh

import sharding
from benchmarks import speed, topology, train_step
from benchmarks.collectives import collectives, ring_bytes
from benchmarks.markdown import header, row
from experiment import Experiment

DEVICES = (8, 16, 32, 64, 128, 256, 512, 1024)
COMPILED = 8
QUICK = {"xla_backend_optimization_level": 0}  # Which collectives there are does not depend on it.

flags.DEFINE_string("config", "ve.cifar10_ncsnpp_continuous", "A module in configs/.")
flags.DEFINE_string("topology", None, topology.HELP)
flags.DEFINE_integer("per_device", 16, "Images on each device, in the first table.")
flags.DEFINE_integer("total", 1024, "Images on all devices together, in the second one.")
flags.DEFINE_float("link", 50.0, "Assumed: what each device sends, in GB/s.")
flags.DEFINE_float("rate", 100.0, "Assumed: what each device computes, in TFLOP/s.")


class Step(NamedTuple):
    """A training step with one image on each device.

    FLOP an image; the parameters' shapes; bytes of its collectives by kind; what the compiler takes a device to do.
    """

    flop: float
    params: dict
    found: dict[str, int]
    estimate: dict[str, float]


def step(name: str, devices: Sequence[jax.Device], *, split: bool) -> Step:
    """Compiles the training step of a config."""
    config = importlib.import_module(f"configs.{name}").get_config()
    config.training.shard_params = split
    config.training.batch_size = config.eval.batch_size = len(devices)
    experiment = Experiment(config, devices)
    lowered = train_step.lower(experiment)
    compiled = lowered.compile(QUICK if devices[0].platform == "cpu" else None)
    found = {kind: sum(sizes) for kind, sizes in collectives(compiled.as_text()).items()}
    flop = (speed.flops(lowered) or train_step.counted_flops(experiment.config)) / len(devices)
    return Step(flop, experiment.abstract_params, found, compiled.cost_analysis())


def split_bytes(params: dict, devices: int) -> int:
    """Bytes of those parameters that `sharding.shard_largest_axis` splits over so many devices."""
    where = sharding.shard_largest_axis(AbstractMesh((devices,), ("data",)), params)
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(where))
    return sum(
        leaf.size * leaf.dtype.itemsize for leaf, place in pairs if not place.is_fully_replicated
    )


def table(whole: Step, images: dict[int, float], link: float, rate: float) -> list[str]:
    """A row for each number of devices with its images a device; link in byte/s, rate in FLOP/s."""
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(whole.params))
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
        sent = sum(ring_bytes(kind, size, devices) for kind, size in whole.found.items())
        kept = 1 - split_bytes(whole.params, devices) / total * (devices - 1) / devices
        sizes = (
            f"{devices:,}",
            f"{count:g}",
            f"{count * whole.flop / 1e9:,.1f}",
            f"{sent / 1e6:.1f}",
        )
        times = f"{1e3 * count * whole.flop / rate:.2f}", f"{1e3 * sent / link:.2f}"
        lines.append(row(*sizes, *times, f"{100 * kept:.1f} %"))
    return lines


def main(_: list[str]) -> None:
    """Prints the tables of docs/scaling.md."""
    options = flags.FLAGS
    jax.config.update("jax_num_cpu_devices", COMPILED)
    devices = topology.devices(options.topology) if options.topology else jax.devices()[:COMPILED]
    how = (
        topology.described(options.topology)
        if options.topology
        else f"compiled for {jax.default_backend()}"
    )
    whole, split = (step(options.config, devices, split=split) for split in (False, True))
    for kind, each in (("replicated", whole), ("split", split)):
        listed = ", ".join(
            f"{name} of {size / 1e6:.1f} MB" for name, size in sorted(each.found.items())
        )
        print(f"{options.config}, state {kind}, {len(devices)} devices, {how}: {listed}")
        if options.topology:
            flop, moved = each.estimate["flops"] / 1e9, each.estimate["bytes accessed"] / 1e9
            print(
                f"  of one device, with one image, the compiler estimates {flop:.1f} GFLOP and {moved:.1f} GB moved"
            )
    parts = split_bytes(whole.params, len(devices)) / 1e6
    print(f"by the rule: {parts:.1f} MB of the parameters are split over {len(devices)}")
    print(f"{whole.flop / 1e9:.1f} GFLOP an image")
    print(
        f"ASSUMED, not measured: {options.link:g} GB/s sent by a device, {options.rate:g} TFLOP/s computed by it\n"
    )
    rates = options.link * 1e9, options.rate * 1e12
    print(*table(whole, dict.fromkeys(DEVICES, options.per_device), *rates), sep="\n", end="\n\n")
    print(*table(whole, {n: options.total / n for n in DEVICES}, *rates), sep="\n")


if __name__ == "__main__":
    app.run(main)
