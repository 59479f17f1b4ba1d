"""Speed of one evaluation of the score in images/s, and its memory, optionally next to PyTorch.

python -m benchmarks.forward [--config=...] [--batch_size=8] [--peer]

Prints a table. A run is one evaluation on a batch of random states, which is on the device already,
without a gradient. Matrix products (`speed.Product`) are timed in the same rounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from benchmarks import comparison, peer_runs, speed
from benchmarks.peer import Peer
from benchmarks.sampling import evaluation
from configs.default import Config
from experiment import Experiment

COLUMNS = comparison.columns({})


class Forward:
    """A competitor: an evaluation of the score for a batch."""

    def __init__(self, config: Config, batch_size: int, rivals: Mapping[str, str]) -> None:
        self.experiment = Experiment(config, jax.devices()[:1])
        self.rivals, self.product = rivals, speed.network_product(config)
        function, *arguments = evaluation(self.experiment, batch_size)
        self.compiled = speed.compile_stages(function, *arguments)
        self.flops = self.compiled.flops
        self.work = batch_size

    def prepare(self) -> None:
        """Put the parameters and a batch on the device."""
        x = jax.random.normal(jax.random.key(0), (self.work, *self.experiment.image_shape))
        self.arguments = self.experiment.init_params(), x, jnp.full(self.work, 0.5)

    def __call__(self) -> Array:
        return self.compiled.call(*self.arguments)

    @property
    def facts(self) -> speed.Row:
        """Further entries of its row."""
        return {
            "parameters": speed.parameters(self.experiment),
            "memory": self.compiled.peak,
            "to_compile": self.compiled.seconds["compile"],
        }


def measure(*, batch_size: int, overrides: Sequence[str] = (), **options: Any) -> list[speed.Row]:
    """Time the scores of configs and variants; return a row for each.

    `options` are those of `comparison.compare`, which states the errors.
    """

    def make(config: Config, rivals: Mapping[str, str]) -> Forward:
        return Forward(config, batch_size, rivals)

    def make_peer(peer: Peer) -> peer_runs.TimedPeer:
        return peer_runs.time_evaluations(peer_runs.Sampling, peer, batch_size, 1)

    return comparison.compare({"": make}, make_peer, overrides=overrides, **options)


def main() -> None:
    """Print the table."""
    comparison.show("Evaluations of the score at batch {batch_size}", measure, COLUMNS)


if __name__ == "__main__":
    comparison.define_flags(batch_size=8)
    comparison.run(main)
