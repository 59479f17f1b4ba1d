"""Speed of bits/dim in network evaluations/s and images/s, optionally next to PyTorch.

python -m benchmarks.likelihood [--config=...] [--batch_size=8] [--tolerance=0.1] [--peer]

Prints a table. A run is `bits_per_dim_stage.compile_bits_per_dim` on one batch: dequantization, the
adaptive ODE with one probe, which ends when that of the last image does, and the variational bound.
The bound's 32 evaluations have no derivative; they are counted as the number of evaluations with
one that has the same FLOPs. A high tolerance keeps the number of evaluations low; the network is
untrained, so that it differs from that of a trained one. The peer makes ten evaluations, with the
divergence by backpropagation, and no bound; it is compared by evaluations/s.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from jax import Array

from auxiliary import dequantization
from benchmarks import comparison, peer_runs, speed
from benchmarks.peer import Peer
from benchmarks.sampling import (
    COLUMNS,
    forward_flops,
    on_devices,
    shapes,
    with_image_rate,
)
from configs.default import Config
from experiment import Experiment
from likelihood import elbo
from metrics.bits_per_dim_stage import compile_bits_per_dim
from models.building import Params

PEER_EVALUATIONS = 10  # evaluations of the peer in a run
BOUND = 2 * inspect.signature(elbo).parameters["pairs"].default  # evaluations of the bound


class BitsPerDim:
    """A competitor: bits/dim of a batch of random images."""

    def __init__(self, config: Config, batch_size: int, rivals: Mapping[str, str]) -> None:
        self.experiment = Experiment(config, jax.devices()[:1])
        self.rivals, self.product = rivals, speed.network_product(config)
        function = compile_bits_per_dim(
            self.experiment, dequantization.make(self.experiment, "", 0)
        )
        pixels = speed.images(self.experiment, batch_size).pixels
        indices = self.experiment.rows(np.arange(batch_size))
        numbered, key = (pixels, indices), self.experiment.key("bpd")
        self.arguments = self.experiment.init_params(), numbered, key
        self.compiled = speed.compile_stages(function, *self.arguments)
        without_derivative = forward_flops(self.experiment, batch_size)
        with_derivative = divergence_flops(self.experiment, batch_size)
        ode_evaluations = float(self().pop("nfe").max())
        self.nfe = ode_evaluations + BOUND * without_derivative / with_derivative
        self.work, self.flops = self.nfe * batch_size, self.nfe * with_derivative

    def prepare(self) -> None:
        """Do nothing: all arguments are on the device already."""

    def __call__(self) -> dict[str, Array]:
        return self.compiled.call(*self.arguments)

    @property
    def facts(self) -> speed.Row:
        """Further entries of its row."""
        return {
            "parameters": speed.parameters(self.experiment),
            "nfe": self.nfe,
            "memory": self.compiled.peak,
            "to_compile": self.compiled.seconds["compile"],
        }


def divergence_flops(experiment: Experiment, batch_size: int) -> float:
    """Return the FLOPs of evaluating the score and its derivative along one probe for a batch."""
    return speed.count_flops(*divergence(experiment, batch_size))


def divergence(experiment: Experiment, batch_size: int) -> tuple[Any, ...]:
    """Return the jitted score with its derivative along a probe, and its arguments' shapes."""

    def derivative(params: Params, x: Array, t: Array) -> tuple[Array, Array]:
        score = experiment.score(params)
        return jax.jvp(lambda x: score(x, t), (x,), (x,))

    return on_devices(experiment, derivative), *shapes(experiment, batch_size)


def measure(
    *, batch_size: int, tolerance: float = 0.1, overrides: Sequence[str] = (), **options: Any
) -> list[speed.Row]:
    """Time bits/dim of configs and variants; return a row for each.

    `options` are those of `comparison.compare`, which states the errors.
    """

    def make(config: Config, rivals: Mapping[str, str]) -> BitsPerDim:
        return BitsPerDim(config, batch_size, rivals)

    def make_peer(peer: Peer) -> peer_runs.TimedPeer:
        return peer_runs.time_evaluations(peer_runs.Likelihood, peer, batch_size, PEER_EVALUATIONS)

    overrides = [f"eval.bpd_tolerance={tolerance}", *overrides]
    rows = comparison.compare({"": make}, make_peer, overrides=overrides, **options)
    return [with_image_rate(row) for row in rows]


def main() -> None:
    """Print the table."""
    title = "Bits/dim at batch {batch_size}, tolerance {tolerance:g}"
    comparison.show(title, measure, COLUMNS, tolerance=flags.FLAGS.tolerance)


if __name__ == "__main__":
    comparison.define_flags(batch_size=8)
    flags.DEFINE_float(
        "tolerance", 0.1, "Of the adaptive steps: eval.bpd_tolerance.", lower_bound=1e-9
    )
    comparison.run(main)
