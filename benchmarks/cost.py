"""Memory and device-hours that each experiment is expected to take. Nothing is run or measured.

python -m benchmarks.cost [--results=FILE] [--utilisation=0.3] [--config=...] [--write]

The train step of every config is compiled for batches of 1 and 8 images (`benchmarks.memory`, from
whose file of results a second run resumes); memory and FLOPs at other batches follow as straight
lines. FLOPs are XLA's count of the program before optimization, of the score for samples. Hours
assume that a device computes a share `--utilisation` of its peak. `--write` puts the table into
docs/accelerators.md; rows of other configs stay if they were computed in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import factory
import jax
import jax.numpy as jnp
from absl import flags

from benchmarks import comparison, markdown, memory, parts, sampling, speed
from configs.default import Config
from experiment import Experiment

PAGE = parts.ROOT / "docs" / "accelerators.md"
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
COLUMNS = {
    "config": ("name", "", 1),
    "steps": ("steps", ",", 1),
    "batch": ("batch", "", 1),
    "GB at this batch": ("memory", ".1f", 1e-9),
    f"devices of {memory.CARD / 1e9:.0f} GB": ("devices", "", 1),
    "training, EFLOP": ("flops", ",.2f", 1e-18),
    **{f"hours, {each.name}": (each.name, ",.1f", 1) for each in DEVICES},
    "evaluations a sample": ("nfe", ",", 1),
    f"hours for samples, {DEVICES[1].name}": ("sampling", ",.1f", 1),
}


def at_batch(small: float, large: float, batch: float) -> float:
    """Return a value at a batch size, on the line through the values at SMALL and LARGE."""
    return small + (large - small) / (LARGE - SMALL) * (batch - SMALL)


def devices_needed(small: speed.Row, large: speed.Row, batch: int) -> int | None:
    """Return the smallest number of devices that share a batch evenly and on which it fits.

    Each device has `memory.CARD` bytes. None if one image does not fit.
    """
    for count in range(1, batch + 1):
        needed = at_batch(small["peak"], large["peak"], batch / count)
        if batch % count == 0 and needed < memory.CARD:
            return count
    return None


def hours(flops: float, device: Device, utilisation: float) -> float:
    """Return the hours that one device takes for `flops` at this share of its peak."""
    return flops / (utilisation * device.peak) / HOUR


def evaluations(config: Config) -> int:
    """Return the network evaluations of a sample, by running the sampler with a simple score."""
    sde = factory.make_sde(config)
    sampler = factory.make_sampler(config, sde)
    keys = jax.random.split(jax.random.key(0), 1)
    run = jax.jit(lambda x: sampler(keys, lambda x, t: -x, x).nfe)
    return int(run(jnp.zeros((1, 2, 2, 1)))[0])


def expected(
    config: Config, small: speed.Row, large: speed.Row, samples: speed.Row, utilisation: float
) -> speed.Row:
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


def count_samples(records: parts.Records, paths: Sequence[str]) -> dict[str, speed.Row]:
    """Return forward FLOPs and evaluations of each config; add those that `records` lacks."""
    found, same_network = {}, {}
    for path in paths:
        config, key = comparison.load_config(path), f"{path} sample"
        network = memory.step_key(config, 1)
        if records.is_missing(key):
            forward = same_network.get(network) or sampling.forward_flops(
                Experiment(config, jax.devices()[:1]), 1
            )
            records.add(key, {"forward": forward, "nfe": evaluations(config)})
        found[path] = records.results[key]
        same_network[network] = found[path]["forward"]
    return found


def rows(records: parts.Records, paths: Sequence[str], utilisation: float) -> list[speed.Row]:
    """Return a row for each config, of results that are compiled where `records` lacks them."""
    steps = memory.measure(records, paths, shapes=[(SMALL, 1), (LARGE, 1)])
    samples = count_samples(records, paths)
    found = []
    for path, small, large in zip(paths, steps[::2], steps[1::2]):
        config = comparison.load_config(path)
        row = expected(config, small, large, samples[path], utilisation)
        found.append({"name": comparison.config_name(path)} | row)
    return found


def page(text: str, found: Sequence[speed.Row], utilisation: float) -> str:
    """Return the page with a table of these rows and of previous ones of other configs."""
    about = (
        f"Computed, not measured, by `python -m benchmarks.cost --utilisation={utilisation:g} "
        f"--write` (jax {jax.__version__})."
    )
    header, rule, *lines = speed.table(found, COLUMNS)
    previous = markdown.section(text, "cost")
    if about in previous:
        lines = [line for line in previous.splitlines() if line.startswith("| ")][2:] + lines
    by_name = {line.split("|")[1].strip(): line for line in lines}
    table = [header, rule, *(by_name[name] for name in sorted(by_name))]
    return markdown.set_section(text, "cost", "\n".join([about, "", *table]))


def main() -> None:
    """Compute what is missing, and print the table or write it to the page."""
    given = flags.FLAGS
    paths = given.config or memory.all_configs()
    found = rows(parts.Records(given.results), paths, given.utilisation)
    print("\n".join(speed.table(found, COLUMNS)))
    if given.write:
        PAGE.write_text(page(PAGE.read_text(), found, given.utilisation))


if __name__ == "__main__":
    flags.DEFINE_multi_string("config", [], "Config files; by default all of configs/.")
    flags.DEFINE_string(
        "results", str(Path(".cache") / "cost.jsonl"), "The file of results, one per line."
    )
    flags.DEFINE_float("utilisation", 0.3, "The share of the peak that a device computes.")
    flags.DEFINE_bool("write", False, "Write the table to docs/accelerators.md.")
    comparison.run(main)
