"""Speed of samplers in network evaluations/s and images/s, optionally next to PyTorch.

python -m benchmarks.sampling [--config=...] [--batch_size=8] [--levels=25]
    [--set=sampling.num_steps=20 ...] [--peer]

Prints a table. A run is `Experiment.sample` on one batch, from image numbers to uint8 images: keys,
prior samples, the loop with its random numbers, and rounding. Two samplers are timed for each
config: its predictor and corrector, on `--levels` noise levels instead of hundreds (time is
proportional to their number), and the few-step solver sampling.solver. The peer draws noise and
updates the images after each evaluation; it is compared by evaluations/s. FLOPs are those of the
evaluations.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from absl import flags
from factory import Samples
from jax import Array

import sharding
from benchmarks import comparison, peer_runs, speed
from benchmarks.peer import Peer
from configs.default import Config
from experiment import Experiment
from models.building import Params


def _columns() -> speed.Columns:
    """Return the table's columns: `rate` is one of evaluations, and images/s follow from it."""
    columns = comparison.columns({"evaluations": ("nfe", ".0f", 1)})
    del columns["images/s"]
    columns["images/s"] = ("images", ".3g", 1)
    columns["evaluations of an image/s"] = ("rate", ".3g", 1)
    return columns


COLUMNS = _columns()


class Sampler:
    """A competitor: the sampler of a config on a batch."""

    def __init__(self, config: Config, batch_size: int, rivals: Mapping[str, str]) -> None:
        self.experiment = Experiment(config, jax.devices()[:1])
        self.rivals, self.product = rivals, speed.network_product(config)
        self.params = self.experiment.init_params()
        self.indices = self.experiment.rows(jax.numpy.arange(batch_size))
        start = time.perf_counter()
        self.nfe = float(jax.block_until_ready(self()).nfe.max())
        self.first = time.perf_counter() - start
        self.work = self.nfe * batch_size
        self.flops = self.nfe * forward_flops(self.experiment, batch_size)

    def prepare(self) -> None:
        """Do nothing: parameters and image numbers are on the device already."""

    def __call__(self) -> Samples:
        return self.experiment.sample(self.params, self.indices)

    @property
    def facts(self) -> speed.Row:
        """Further entries of its row."""
        return {
            "parameters": speed.parameters(self.experiment),
            "nfe": self.nfe,
            "first": self.first,
        }


def forward_flops(experiment: Experiment, batch_size: int) -> float:
    """Return the FLOPs of evaluating the score for a batch."""
    return speed.count_flops(*evaluation(experiment, batch_size))


def evaluation(experiment: Experiment, batch_size: int) -> tuple[Any, ...]:
    """Return the jitted score of a batch and the shapes of its arguments."""

    def score(params: Params, x: Array, t: Array) -> Array:
        return experiment.score(params)(x, t)

    return on_devices(experiment, score), *shapes(experiment, batch_size)


def on_devices(experiment: Experiment, function: Callable[..., Any]) -> Any:
    """Return the jitted function of parameters and a batch, which the devices share."""
    whole, split = sharding.replicated(experiment.mesh), sharding.along_axis(experiment.mesh)
    return jax.jit(function, in_shardings=(whole, split, split))


def shapes(experiment: Experiment, batch_size: int) -> tuple[Any, ...]:
    """Return the shapes of the parameters, and of a batch of states x and times t."""
    x = jax.ShapeDtypeStruct((batch_size, *experiment.image_shape), "float32")
    return experiment.abstract_params, x, jax.ShapeDtypeStruct((batch_size,), "float32")


def measure(
    *, batch_size: int, levels: int = 25, overrides: Sequence[str] = (), **options: Any
) -> list[speed.Row]:
    """Time the samplers of configs and variants; return a row for each.

    `options` are those of `comparison.compare`, which states the errors.
    """

    def make_with_method(method: str) -> comparison.Make:
        def make(config: Config, rivals: Mapping[str, str]) -> Sampler:
            config.sampling.method = method
            return Sampler(config, batch_size, rivals)

        return make

    def make_peer(peer: Peer) -> peer_runs.TimedPeer:
        return peer_runs.time_evaluations(peer_runs.Sampling, peer, batch_size, levels)

    methods = {name: make_with_method(name) for name in ("pc", "solver")}
    overrides = [f"model.num_scales={levels}", *overrides]
    rows = comparison.compare(methods, make_peer, overrides=overrides, **options)
    return [with_image_rate(row) for row in rows]


def with_image_rate(row: speed.Row) -> speed.Row:
    """Add images/s, from evaluations/s, and compilation time, from that of the first run."""
    found = dict(row)
    if "nfe" in row and "rate" in row:
        found["images"] = row["rate"] / row["nfe"]
    if "first" in row and "seconds" in row:
        found["to_compile"] = row["first"] - row["seconds"]
    return found


def main() -> None:
    """Print the table."""
    title = "Sampling at batch {batch_size}, {levels} levels"
    comparison.show(title, measure, COLUMNS, levels=flags.FLAGS.levels)


if __name__ == "__main__":
    comparison.define_flags(batch_size=8)
    flags.DEFINE_integer(
        "levels",
        25,
        "Noise levels of predictor and corrector; VP needs more than 20.",
        lower_bound=2,
    )
    comparison.run(main)
