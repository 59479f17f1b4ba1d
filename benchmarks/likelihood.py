"""Images/s of bits/dim, and PyTorch beside it.

python -m benchmarks.likelihood [--config=...] [--batch_size=8] [--tolerance=0.1] [--peer]

A run is `bits_per_dim_stage.compile_bits_per_dim` on one batch: dequantization, the adaptive ODE with one probe, which ends
when the last image's does, and the variational bound, which takes 32 evaluations without derivatives; they count as
many evaluations with one as have the same FLOPs. A high tolerance keeps the evaluations few. The network is fresh, so
that they are not those of a trained one. The peer makes ten evaluations with the divergence by a pass back, and no
bound; it is compared by evaluations/s.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax import Array

from auxiliary import dequantization
from benchmarks import contest, speed
from benchmarks import peer as peers
from benchmarks.sampling import COLUMNS, forward_flops, of_evaluations, states
from configs.default import Config
from experiment import Experiment
from likelihood import elbo
from metrics.bits_per_dim_stage import compile_bits_per_dim
from models.building import Params

EVALUATIONS = 10  # of the peer in a run
BOUND = (
    2 * inspect.signature(elbo).parameters["pairs"].default
)  # Evaluations that the variational bound takes.


class BitsPerDim:
    """A contestant: bits/dim of a batch of random images."""

    def __init__(self, config: Config, batch_size: int, rivals: Mapping[str, str] = {}) -> None:  # noqa: B006
        self.experiment = Experiment(config, jax.devices()[:1])
        self.rivals, self.rate = rivals, speed.rate_of(config)
        function = compile_bits_per_dim(
            self.experiment, dequantization.make(self.experiment, "", 0)
        )
        pixels, numbers = (
            speed.images(self.experiment, batch_size).pixels,
            self.experiment.rows(np.arange(batch_size)),
        )
        self.arguments = self.experiment.init_params(), pixels, numbers, jnp.int32(0)
        self.compiled = speed.compile_stages(function, *self.arguments)
        plain, derived = (
            count(self.experiment, batch_size) for count in (forward_flops, divergence_flops)
        )
        self.nfe = float(self().pop("nfe").max()) + BOUND * plain / derived
        self.work, self.flops = self.nfe * batch_size, self.nfe * derived

    def prepare(self) -> None:
        """All is on the device already."""

    def __call__(self) -> dict[str, Array]:
        return self.compiled.call(*self.arguments)

    @property
    def facts(self) -> speed.Row:
        """What its row says besides."""
        found = {
            "parameters": speed.parameters(self.experiment),
            "nfe": self.nfe,
            "memory": self.compiled.peak,
        }
        return found | {"to_compile": self.compiled.seconds["compile"]}


def divergence_flops(experiment: Experiment, batch_size: int) -> float:
    """FLOPs of an evaluation of the score for a batch, with its derivative along one probe."""

    def derivative(params: Params, x: Array, t: Array) -> tuple[Array, Array]:
        score = experiment.score(params)
        return jax.jvp(lambda x: score(x, t), (x,), (x,))

    return speed.flops(
        jax.jit(derivative).lower(experiment.abstract_params, *states(experiment, batch_size))
    )


def measure(
    *, batch_size: int, tolerance: float = 0.1, set: Sequence[str] = (), **options: Any
) -> list[speed.Row]:  # noqa: A002
    """Rows about bits/dim by configs and variants; `options` as of `contest.contest`. Raises InputError."""
    peer = lambda peer: peers.repeated(peers.Likelihood, peer, batch_size, EVALUATIONS)
    ours = lambda config, rivals: BitsPerDim(config, batch_size, rivals)
    rows = contest.contest(
        {"": ours}, peer, set=[f"eval.bpd_tolerance={tolerance}", *set], **options
    )
    return [of_evaluations(each) for each in rows]


if __name__ == "__main__":
    contest.define_flags(batch_size=8)
    flags.DEFINE_float(
        "tolerance", 0.1, "Of the adaptive steps: eval.bpd_tolerance.", lower_bound=1e-9
    )
    title = "Bits/dim at batch {batch_size}, tolerance {tolerance:g}"
    contest.run(lambda: contest.show(title, measure, COLUMNS, tolerance=flags.FLAGS.tolerance))
