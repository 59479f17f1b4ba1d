"""Upper limits of the speed of a program, from its FLOPs and bytes: a roofline. Nothing is run.

python -m benchmarks.memory --topology=v5e:1x1 --set=model.dtype=bfloat16 --config=... \\
    --shape=8x1 --shape=32x1 --results=FILE
python -m benchmarks.roofline --results=FILE

A device computes at most its peak, and moves at most its bandwidth; both can happen at the same
time. A program therefore takes at least the longer of the two times. The bytes are those of the
program that libtpu compiled: with its on-chip memory, and without, which is an upper limit for a
device whose caches hold less.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from absl import flags

from benchmarks import comparison, parts, speed


class Device(NamedTuple):
    """A device as its vendor describes it.

    Attributes:
      peak: bfloat16 FLOP/s without sparsity.
      bandwidth: bytes/s of its memory.
    """

    name: str
    peak: float
    bandwidth: float


DEVICES = (
    Device("TPU v5e", 197e12, 819e9),
    Device("TPU v5p", 459e12, 2765e9),
    Device("H100 SXM", 989e12, 3350e9),
)
COLUMNS = {
    "config": ("name", "", 1),
    "program": ("program", "", 1),
    "images a device": ("batch_size", "", 1),
    "device": ("device", "", 1),
    "ms computing": ("computing", ".1f", 1e3),
    "ms moving": ("moving", ".1f", 1e3),
    "ms moving, no VMEM": ("moving_without", ".1f", 1e3),
    "share of the peak, at most, %": ("share", ".0f", 100),
    "no VMEM, %": ("share_without", ".0f", 100),
    "images/s, at most": ("rate", ",.0f", 1),
}


def limits(found: parts.Record, device: Device) -> speed.Row:
    """Return the times of a program in seconds, and the share of the peak that they allow.

    `found` is a record of `benchmarks.memory` for one device of a TPU topology.
    """
    computing = found["flops"] / device.peak
    moving = found["moved"] / device.bandwidth
    without = found["moved_without"] / device.bandwidth
    return {
        "name": found["name"],
        "program": found.get("program_name"),
        "batch_size": found["batch_size"],
        "device": device.name,
        "computing": computing,
        "moving": moving,
        "moving_without": without,
        "share": computing / max(computing, moving),
        "share_without": computing / max(computing, without),
        "rate": found["batch_size"] / max(computing, moving),
    }


def rows(records: Iterable[parts.Record]) -> list[speed.Row]:
    """Return the limits of all records of `benchmarks.memory` for TPU topologies."""
    counted = [found for found in records if "moved" in found]
    return [limits(found, device) for found in counted for device in DEVICES]


def main() -> None:
    """Print the table."""
    found = rows(parts.Records(flags.FLAGS.results).results.values())
    print("\n".join(speed.table(found, COLUMNS)))


if __name__ == "__main__":
    flags.DEFINE_string("results", ".cache/memory.jsonl", "The file of benchmarks.memory.")
    comparison.run(main)
