"""Shared parts of the speed benchmarks: paired timing, matrix products as a unit, FLOPs and memory.

Images are random bytes, so that no data set is needed.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

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

PRODUCTS = {  # kind of matrix product: (dtype, precision)
    "float32": (jnp.float32, None),  # TF32 on NVIDIA's GPUs, exact on CPUs
    "bfloat16": (jnp.bfloat16, None),
    "float32, exact": (jnp.float32, "highest"),
}
Seconds = dict[str, list[float]]
"""Seconds of each round, by competitor."""
Row = dict[str, Any]
"""The results of one competitor, serializable as JSON."""
Columns = dict[str, tuple[str, str, float]]
"""Columns of a table: title -> (key in the rows, format, factor)."""


class Competitor(Protocol):
    """A computation that is timed in turn with others.

    Attributes:
      work: units of work of a run, such as images.
      flops: FLOPs of a run.
      product: the kind of matrix product, see `PRODUCTS`, to whose rate it is compared.
      facts: further entries of its row.
      rivals: names of the competitors to which it is compared, by key of its row.
    """

    work: float
    flops: float
    product: str
    rivals: Mapping[str, str]

    @property
    def facts(self) -> Row: ...

    def __call__(self) -> object: ...


# --- the network and its images ---


def images(experiment: Experiment, count: int) -> Batch:
    """Return random images, with labels for conditional networks, on the experiment's devices."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, *experiment.image_shape), dtype=np.uint8)
    classes = max(1, experiment.config.data.num_classes)
    labels = rng.integers(0, classes, count, dtype=np.int32) if experiment.labelled else None
    return sharding.shard(experiment.mesh, Batch(pixels, labels))


def parameters(experiment: Experiment) -> int:
    """Return the number of parameters of the network."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(experiment.abstract_params))


# --- compilation ---


class Compiled(NamedTuple):
    """A jitted function compiled for its arguments.

    Attributes:
      call: the compiled function.
      seconds: duration of tracing, lowering and compiling.
      flops: FLOPs of one call, counted in the program before optimization. This count is the same
        for every device, whereas that of the optimized program omits library calls. A loop counts
        as one pass. None where XLA cannot count them, as for devices that are not present.
      memory: bytes per device of arguments, results, results that reuse the memory of arguments,
        temporaries (without the workspace of libraries), and the program.
      estimate: the compiler's estimates for the optimized program on one device, by name.
    """

    call: Callable[..., Any]
    seconds: dict[str, float]
    flops: float | None
    memory: dict[str, int]
    estimate: dict[str, float]

    @property
    def peak(self) -> int:
        """The largest number of bytes that a device needs for a call."""
        return sum(self.memory.values()) - 2 * self.memory["in_place"]


def compile_stages(function: Any, *arguments: Any) -> Compiled:
    """Compile a jitted function for arguments, or for their shapes, and time each stage."""
    start = time.perf_counter()
    traced = function.trace(*arguments)
    trace_end = time.perf_counter()
    lowered = traced.lower()
    lower_end = time.perf_counter()
    compiled = lowered.compile()
    compile_end = time.perf_counter()
    seconds = {
        "trace": trace_end - start,
        "lower": lower_end - trace_end,
        "compile": compile_end - lower_end,
    }
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
    """Return the FLOPs of a lowered function, or None for devices that are not present."""
    cost = lowered.cost_analysis()
    return float(cost["flops"]) if cost else None


def local_flops(lowered: jax.stages.Lowered) -> float:
    """Return the FLOPs of a function that was lowered for devices that are present."""
    found = flops(lowered)
    if found is None:
        raise ValueError("XLA cannot count the FLOPs of this function: its devices are absent.")
    return found


def count_flops(function: Any, *arguments: Any) -> float:
    """Return the FLOPs of a jitted function for the shapes of its arguments; nothing is compiled.

    Raises ValueError if its devices are absent.
    """
    return local_flops(function.lower(*arguments))


def device_peak(
    # jaxlib has no stubs, so pyright takes jax.Device for a variable.
    device: jax.Device,  # pyright: ignore[reportInvalidTypeForm]
) -> int | None:
    """Return the largest number of bytes this process has had on the device; None on CPUs."""
    return (device.memory_stats() or {}).get("peak_bytes_in_use")


# --- timing ---


class Product:
    """Square matrices multiplied several times in a row, the unit of speed.

    The defaults of `size` and `count` depend on the backend.
    """

    def __init__(self, kind: str, size: int | None = None, count: int | None = None) -> None:
        dtype, precision = choose(PRODUCTS, kind, "the kind of matrix product")
        default_size, default_count = 8192, 20
        if jax.default_backend() == "cpu":
            default_size, default_count = (2048 if dtype == jnp.float32 else 512), 2
        size, count = size or default_size, count or default_count
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


def time_in_turn(
    functions: Mapping[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> Seconds:
    """Return the seconds of each function in each round.

    In a round the functions run in turn, so that background load affects all of them equally. A
    run ends when its result is ready. A first run of each function is not timed.
    """
    for run in functions.values():
        jax.block_until_ready(run())
    seconds: Seconds = {name: [] for name in functions}
    for _ in range(rounds):
        for name, run in functions.items():
            start = clock()
            jax.block_until_ready(run())
            seconds[name].append(clock() - start)
    return seconds


def speed_ratio(seconds: Seconds, name: str, other: str) -> float:
    """Return the median over the rounds of `other`'s seconds divided by those of `name`."""
    return statistics.median(b / a for a, b in zip(seconds[name], seconds[other]))


def time_competitors(
    competitors: Mapping[str, Competitor],
    rounds: int,
    kinds: Iterable[str],
    size: int | None = None,
) -> list[Row]:
    """Time competitors in turn with matrix products of these kinds; return a row for each."""
    products = {product_name(kind): Product(kind, size) for kind in dict.fromkeys(kinds)}
    seconds = time_in_turn({**competitors, **products}, rounds)
    rows = []
    for name, competitor in competitors.items():
        median = statistics.median(seconds[name])
        product = product_name(competitor.product)
        relative_flops = competitor.flops / products[product].flops
        found = {
            "name": name,
            "seconds": median,
            "rate": competitor.work / median,
            "tflops": competitor.flops / median / 1e12,
            "share": relative_flops * speed_ratio(seconds, name, product),
            "of": competitor.product,
        }
        found |= competitor.facts
        for key, rival in competitor.rivals.items():
            relative_work = competitor.work / competitors[rival].work
            found[key] = relative_work * speed_ratio(seconds, name, rival)
        rows.append(found)
    for name, product in products.items():
        rows.append(_product_row(name, product, seconds[name]))
    return rows


def time_products(kinds: Iterable[str], rounds: int, size: int | None = None) -> list[Row]:
    """Time matrix products alone; return a row for each kind."""
    return time_competitors({}, rounds, kinds, size)


def product_name(kind: str) -> str:
    """Return the name of a kind of matrix product in tables."""
    return f"matrix products, {kind}"


def _product_row(name: str, product: Product, seconds: list[float]) -> Row:
    median = statistics.median(seconds)
    return {
        "name": f"{name}, {len(product.a)}",
        "seconds": median,
        "tflops": product.flops / median / 1e12,
    }


def network_product(config: Config) -> str:
    """Return the kind of matrix product to which the network of a config is compared."""
    return config.model.dtype


# --- tables ---


def environment(*packages: str) -> str:
    """Return a line that names the machine, its accelerator, and versions."""
    device, names = jax.devices()[0], ("jax", "flax", *packages)
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    card = "" if device.platform == "cpu" else f"{device.device_kind}, in a machine with "
    return f"{card}{machine()}; {versions}"


def environment_record() -> dict[str, str]:
    """Return `environment` for `parts.run`, which leaves the accelerator to other processes."""
    peers = [name for name in ("torch", "diffusers") if importlib.util.find_spec(name)]
    return {"environment": environment(*peers)}


def table(rows: Iterable[Row], columns: Columns) -> list[str]:
    """Return a Markdown table, without columns that are empty in every row."""
    rows = list(rows)
    filled = {
        title: column
        for title, column in columns.items()
        if any(each.get(column[0]) is not None for each in rows)
    }
    lines = header(*filled)
    for each in rows:
        cells = [_cell(each.get(key), form, scale) for key, form, scale in filled.values()]
        lines.append(row(*cells))
    return lines


def _cell(value: Any, form: str, scale: float) -> str:
    """Format a value, a number if `form` is not empty; None is an empty cell."""
    if value is None:
        return ""
    return format(value * scale, form) if form else str(value)
