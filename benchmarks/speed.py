"""What the benchmarks of speed share: contestants timed in turns, the rate of matrix products, FLOPs and memory.

Images are random bytes, so that no data set is needed.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import sharding
from benchmarks.markdown import header, machine, row
from configs.default import Config
from datasets import Batch
from errors import choose
from experiment import Experiment

PRODUCTS = {  # (dtype, precision): JAX's default precision for float32 is TF32 on NVIDIA's cards, exact on CPUs.
    "float32": (jnp.float32, None),
    "bfloat16": (jnp.bfloat16, None),
    "float32, exact": (jnp.float32, "highest"),
}
Contestants = Mapping[str, Callable[[], object]]
Seconds = dict[str, list[float]]
Row = dict[str, Any]
"""What a table says of a contestant; as JSON has it."""
Columns = Mapping[str, tuple[str, str, float]]
"""Of a table, by title: key in the rows, format, factor."""


# --- what is measured -------------------------------------------------------------------------------------------------


def images(experiment: Experiment, count: int) -> Batch:
    """Random images, and labels if the network is told them, on the devices of the experiment."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, *experiment.image_shape), dtype=np.uint8)
    classes = max(1, experiment.config.data.num_classes)
    labels = rng.integers(0, classes, count, dtype=np.int32) if experiment.labelled else None
    return sharding.shard(experiment.mesh, Batch(pixels, labels))


def parameters(experiment: Experiment) -> int:
    """The number of parameters of the network."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(experiment.abstract_params))


class Compiled(NamedTuple):
    """A jitted function, compiled for its arguments, and what that tells.

    Attributes:
      call: the function. seconds: what tracing, lowering and compiling took.
      flops: of one call, as they stand in the program before it is optimized. That is the same on every device; the
        optimized program's count lacks what its libraries do. A loop counts as one pass. None where XLA cannot count
        them, as for devices that are not there.
      memory: bytes on a device: arguments, results, those results that take the place of arguments, temporaries,
        without the working space of libraries, and the program.
      estimate: what the compiler takes the optimized program to do on a device, by name.
    """

    call: Callable[..., Any]
    seconds: dict[str, float]
    flops: float | None
    memory: dict[str, int]
    estimate: dict[str, float]

    @property
    def peak(self) -> int:
        """Bytes that a device needs for a call, at most."""
        return sum(self.memory.values()) - 2 * self.memory["in_place"]


def compile_stages(function: Any, *arguments: Any) -> Compiled:
    """Compiles a jitted function for these arguments, or for others of their shapes."""
    times = [time.perf_counter()]
    traced = function.trace(*arguments)
    times.append(time.perf_counter())
    lowered = traced.lower()
    times.append(time.perf_counter())
    compiled = lowered.compile()
    times.append(time.perf_counter())
    seconds = {name: b - a for name, a, b in zip(("trace", "lower", "compile"), times, times[1:])}
    sizes = compiled.memory_analysis()
    memory = {
        "arguments": sizes.argument_size_in_bytes,
        "results": sizes.output_size_in_bytes,
        "in_place": sizes.alias_size_in_bytes,
        "temporaries": sizes.temp_size_in_bytes,
        "program": sizes.generated_code_size_in_bytes,
    }
    return Compiled(compiled, seconds, flops(lowered), memory, compiled.cost_analysis() or {})


def flops(lowered: jax.stages.Lowered) -> float | None:
    """FLOPs of a lowered function; None for devices that are not there, for which XLA cannot count them."""
    cost = lowered.cost_analysis()
    return float(cost["flops"]) if cost else None


def device_peak(device: jax.Device) -> int | None:
    """The most bytes that this process has had on the device so far; None where that is not known, as on CPUs."""
    return (device.memory_stats() or {}).get("peak_bytes_in_use")


# --- rates ------------------------------------------------------------------------------------------------------------


class Product:
    """A contestant: square matrices multiplied several times over."""

    def __init__(self, kind: str, size: int | None = None, count: int | None = None) -> None:
        dtype, precision = choose(PRODUCTS, kind, "the kind of matrix product")
        on_cpu = jax.default_backend() == "cpu"
        size = size or ((2048 if dtype == jnp.float32 else 512) if on_cpu else 8192)
        count = count or (2 if on_cpu else 20)
        keys = jax.random.split(jax.random.key(0))
        self.a, self.b = (
            jax.random.normal(key, (size, size), dtype) / math.sqrt(size) for key in keys
        )
        self.flops = 2.0 * count * size**3

        @jax.jit
        def run(a: Array, b: Array) -> Array:
            for _ in range(count):
                a = jnp.matmul(a, b, precision=precision)
            return a

        self.run = run

    def __call__(self) -> Array:
        return self.run(self.a, self.b)


def alternate(
    contestants: Contestants, rounds: int, clock: Callable[[], float] = time.perf_counter
) -> Seconds:
    """Seconds of every contestant in every round. They run in turn, so that other load on the machine meets all.

    What they return is waited for. A first run of each is not counted.
    """
    for run in contestants.values():
        jax.block_until_ready(run())
    seconds: Seconds = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            start = clock()
            jax.block_until_ready(run())
            seconds[name].append(clock() - start)
    return seconds


def faster(seconds: Seconds, name: str, other: str) -> float:
    """How many times as fast `name` was as `other`, per unit of work each does in a run: the median over the rounds."""
    return statistics.median(theirs / ours for ours, theirs in zip(seconds[name], seconds[other]))


def compete(
    contestants: dict[str, Any], rounds: int, kinds: Iterable[str], size: int | None = None
) -> list[Row]:
    """Rows about contestants, timed in turns with matrix products of these kinds.

    A contestant has `work` (images a run, say), `flops` a run, `rate` (which kind of product it is held against),
    `facts` for its row, and `rivals`: by key of its row, names of contestants that it is compared with.
    """
    found = {f"matrix products, {kind}": Product(kind, size) for kind in dict.fromkeys(kinds)}
    seconds = alternate(contestants | found, rounds)
    rows = []
    for name, each in contestants.items():
        median, product = statistics.median(seconds[name]), f"matrix products, {each.rate}"
        share = each.flops / found[product].flops * faster(seconds, name, product)
        rows.append(
            {
                "name": name,
                "seconds": median,
                "rate": each.work / median,
                "tflops": each.flops / median / 1e12,
            }
        )
        rows[-1] |= {"share": share, "of": each.rate} | each.facts
        for key, rival in each.rivals.items():
            rows[-1][key] = each.work / contestants[rival].work * faster(seconds, name, rival)
    return rows + [_product_row(name, found[name], seconds[name]) for name in found]


def products(kinds: Iterable[str], rounds: int, size: int | None = None) -> list[Row]:
    """Rows about matrix products alone."""
    return compete({}, rounds, kinds, size)


def _product_row(name: str, product: Product, seconds: list[float]) -> Row:
    median = statistics.median(seconds)
    return {
        "name": f"{name}, {len(product.a)}",
        "seconds": median,
        "tflops": product.flops / median / 1e12,
    }


def rate_of(config: Config) -> str:
    """The kind of matrix product that the network of a config is held against."""
    return config.model.dtype


# --- tables -----------------------------------------------------------------------------------------------------------


def environment(*packages: str) -> str:
    """A line on the machine, its accelerator, and versions."""
    device, names = jax.devices()[0], ("jax", "flax", *packages)
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    card = "" if device.platform == "cpu" else f"{device.device_kind}, in a machine with "
    return f"{card}{machine()}; {versions}"


def about() -> dict[str, str]:
    """`environment` for whoever must not touch the accelerator himself."""
    known = [name for name in ("torch", "diffusers") if importlib.util.find_spec(name)]
    return {"environment": environment(*known)}


def cell(value: object, form: str = "", scale: float = 1.0) -> str:
    """A number, scaled, in a table; empty for None."""
    return "" if value is None else format(value * scale if form else value, form)


def table(rows: Iterable[Row], columns: Columns) -> list[str]:
    """A Markdown table, without the columns that no row fills."""
    rows = list(rows)
    columns = {
        title: each
        for title, each in columns.items()
        if any(row.get(each[0]) is not None for row in rows)
    }
    cells = lambda each: [cell(each.get(key), form, scale) for key, form, scale in columns.values()]
    return [*header(*columns), *(row(*cells(each)) for each in rows)]
