"""Experiments of config files, and their train step, compiled for shapes.

Devices need not be present: libtpu compiles for TPUs anywhere.
"""

from __future__ import annotations

import importlib.util
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import sharding
import training
from commands import command_line
from configs.default import Config
from configs.validation import validated
from datasets import Batch
from errors import InputError, brief
from experiment import Experiment
from loading import read_config_file

ROOT = Path(__file__).parents[1]
# Without these, libtpu queries the network for minutes for the local TPU's type, and only one
# process at a time can load it.
LIBTPU_VARIABLES = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "true"}


def load_config(path: str, overrides: Sequence[str] = ()) -> Config:
    """Return the valid config of a file with changed fields, such as 'model.dropout=0.0'."""
    return validated(command_line.change(read_config_file(path), overrides), num_devices=1)


def all_configs() -> list[str]:
    """Return the paths of the experiments in configs/."""
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("configs/*/**/[!_]*.py"))


def make_experiment(config: str, overrides: Sequence[str] = ()) -> Experiment:
    """Return the experiment of a config file with changed fields, on one device."""
    return Experiment(load_config(config, overrides), jax.devices()[:1])


def train_step(experiment: Experiment) -> tuple[Any, ...]:
    """Return the jitted train step and the shapes of its arguments, at training.batch_size."""
    job, shape = training.score_job(experiment), batch_shape(experiment)
    labels = jax.ShapeDtypeStruct(shape[:1], "int32") if experiment.labelled else None
    batch = Batch(jax.ShapeDtypeStruct(shape, "uint8"), labels)  # pyright: ignore
    return training.jit_step(job), job.abstract_state(), batch


def parameters(experiment: Experiment) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(experiment.abstract_params))


def batch_shape(experiment: Experiment) -> tuple[int, ...]:
    """Return the shape of a batch of training.batch_size images."""
    return experiment.config.training.batch_size, *experiment.image_shape


def images(experiment: Experiment) -> Batch:
    """Return random images, with labels for conditional networks, on the experiment's devices."""
    rng, shape = np.random.default_rng(0), batch_shape(experiment)
    pixels = rng.integers(0, 256, shape, dtype=np.uint8)
    classes = max(1, experiment.config.data.num_classes)
    labels = rng.integers(0, classes, shape[0], dtype=np.int32) if experiment.labelled else None
    return sharding.shard(experiment.mesh, Batch(pixels, labels))


class Compiled(NamedTuple):
    """A jitted function compiled for its arguments.

    Attributes:
      call, seconds: the compiled function, and the duration of compiling.
      flops: FLOPs of a call before optimization, the same for every device; a loop counts once;
        None for devices that are not present.
      memory: bytes per device of arguments, results, results that reuse the memory of arguments,
        temporaries (without the workspace of libraries), and the program.
    """

    call: Any
    seconds: float
    flops: float | None
    memory: dict[str, int]

    @property
    def peak(self) -> int:
        """The largest number of bytes that a device needs for a call."""
        return sum(self.memory.values()) - 2 * self.memory["in_place"]


def compile_stages(function: Any, *arguments: Any) -> Compiled:
    """Compile a jitted function for arguments, or for their shapes."""
    lowered, start = function.lower(*arguments), time.perf_counter()
    compiled = lowered.compile()
    seconds, sizes = time.perf_counter() - start, compiled.memory_analysis()
    memory = {
        "arguments": sizes.argument_size_in_bytes,
        "results": sizes.output_size_in_bytes,
        "in_place": sizes.alias_size_in_bytes,
        "temporaries": sizes.temp_size_in_bytes,
        "program": sizes.generated_code_size_in_bytes,
    }
    cost = lowered.cost_analysis()
    return Compiled(compiled, seconds, float(cost["flops"]) if cost else None, memory)


def tpus(topology: str) -> list[Any]:
    """Return the devices of a topology such as "v5e:2x4", as targets of compilation.

    Raises InputError if libtpu is not installed or does not support the topology.
    """
    from jax.experimental import topologies

    if importlib.util.find_spec("libtpu") is None:
        raise InputError(f"--topology={topology} needs TPU's compiler: pip install libtpu.")
    for variable, value in LIBTPU_VARIABLES.items():
        os.environ.setdefault(variable, value)
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError) as error:
        raise InputError(
            f"--topology={topology} is unknown to libtpu; a valid one is v5e:2x4: {brief(error)}"
        ) from error
