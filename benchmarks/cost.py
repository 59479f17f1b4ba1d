"""Memory and device-hours that each experiment is expected to take. Nothing is run or measured.

The train step of every config is compiled for batches of 1 and 8 images (`analysis`); memory and
FLOPs at other batches follow as straight lines. FLOPs are XLA's count of the program before
optimization, of the score for samples. Hours assume that a device computes a share of its peak.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import analysis, programs, tables
from benchmarks.configs import ROOT, all_configs, config_name, load_config
from benchmarks.records import Record, Records
from configs.default import Config
from configs.parts import make_sampler, make_sde

PAGE = ROOT / "docs" / "accelerators.md"
SMALL, LARGE = 1, 8  # batches that are compiled
HOUR = 3600.0  # seconds


class Device(NamedTuple):
    """A device with its peak in FLOP/s, as the vendor states it without sparsity."""

    name: str
    peak: float


DEVICES = (
    Device("A100, TF32", 156e12),
    Device("H100, TF32", 495e12),
    Device("H100, bfloat16", 989e12),
    Device("TPU v5p, bfloat16", 459e12),
)
COLUMNS: tables.Columns = {
    "config": ("name", "", 1),
    "steps": ("steps", ",", 1),
    "batch": ("batch", "", 1),
    "GB at this batch": ("memory", ".1f", 1e-9),
    f"devices of {analysis.CARD / 1e9:.0f} GB": ("devices", "", 1),
    "training, EFLOP": ("flops", ",.2f", 1e-18),
    **{f"hours, {each.name}": (each.name, ",.1f", 1) for each in DEVICES},
    "evaluations a sample": ("nfe", ",", 1),
    f"hours for samples, {DEVICES[1].name}": ("sampling", ",.1f", 1),
}


def at_batch(small: float, large: float, batch: float) -> float:
    """Return a value at a batch size, on the line through the values at SMALL and LARGE."""
    return small + (large - small) / (LARGE - SMALL) * (batch - SMALL)


def devices_needed(small: Record, large: Record, batch: int) -> int | None:
    """Return the smallest number of devices that share a batch evenly and on which it fits.

    Each device has `analysis.CARD` bytes. None if one image does not fit.
    """
    for count in range(1, batch + 1):
        needed = at_batch(small["peak"], large["peak"], batch / count)
        if batch % count == 0 and needed < analysis.CARD:
            return count
    return None


def hours(flops: float, device: Device, utilisation: float) -> float:
    """Return the hours that one device takes for `flops` at this share of its peak."""
    return flops / (utilisation * device.peak) / HOUR


def evaluations(config: Config) -> int:
    """Return the network evaluations of a sample, by running the sampler with a simple score."""
    sampler = make_sampler(config, make_sde(config))
    keys = jax.random.split(jax.random.key(0), 1)
    run = jax.jit(lambda x: sampler(keys, lambda x, t: -x, x).nfe)
    return int(run(jnp.zeros((1, 2, 2, 1)))[0])


def expected(
    config: Config, small: Record, large: Record, samples: Record, utilisation: float
) -> Record:
    """Return the row of a config.

    `small` and `large` are its train steps at SMALL and LARGE images, with peak (bytes) and flops;
    `samples` has the forward FLOPs of an image and the evaluations of a sample (nfe).
    """
    batch, steps = config.training.batch_size, config.training.n_iters
    flops = steps * at_batch(small["flops"], large["flops"], batch)
    sampled = config.eval.num_samples * samples["nfe"] * samples["forward"]
    return {
        "steps": steps,
        "batch": batch,
        "memory": at_batch(small["peak"], large["peak"], batch),
        "devices": devices_needed(small, large, batch),
        "flops": flops,
        **{device.name: hours(flops, device, utilisation) for device in DEVICES},
        "nfe": samples["nfe"],
        "sampling": hours(sampled, DEVICES[1], utilisation),
    }


def of_samples(records: Records, path: str) -> Record:
    """Return forward FLOPs of an image and evaluations of a sample; add them if missing."""
    key = f"{path} sample"
    if records.is_missing(key):
        experiment = programs.make_experiment(path, ["training.batch_size=1"])
        forward = programs.count_flops(*programs.score(experiment))
        records.add(key, {"forward": forward, "nfe": evaluations(experiment.config)})
    return records.results[key]


def show(options: argparse.Namespace) -> None:
    """Compute what is missing, and print the table or write it to docs/accelerators.md."""
    records, paths, rows = Records(options.results), options.config or all_configs(), []
    targets = [analysis.Target(size, 1) for size in (SMALL, LARGE)]
    for path in paths:
        small, large = analysis.measure(records, [path], [], targets)
        samples, config = of_samples(records, path), load_config(path)
        row = expected(config, small, large, samples, options.utilisation)
        rows.append({"name": config_name(path)} | row)
    lines = tables.table(rows, COLUMNS)
    print("\n".join(lines))
    if options.write:
        about = (
            f"Computed, not measured, by `python -m benchmarks cost "
            f"--utilisation={options.utilisation:g} --write` (jax {jax.__version__})."
        )
        PAGE.write_text(tables.set_block(PAGE.read_text(), "cost", "\n".join([about, "", *lines])))
