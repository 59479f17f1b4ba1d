"""Images/s and network evaluations/s of samplers, and PyTorch beside them.

python -m benchmarks.sampling [--config=...] [--batch_size=8] [--levels=25] [--set=sampling.num_steps=20 ...] [--peer]

A run is `Experiment.sample` on one batch, from image numbers to images in bytes: keys, the prior, the loop with its
random numbers, and rounding. Two samplers of each config: predictor and corrector as it says, on `--levels` noise
levels in place of hundreds (time is proportional to them), and the few-step solver sampling.solver. The peer draws
noise and updates the images after each evaluation; it is compared by evaluations/s. FLOPs are those of evaluations.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import flags

from benchmarks import contest, speed
from benchmarks import peer as peers
from configs.default import Config
from experiment import Experiment
from factory import Samples

COLUMNS = {
    title: column
    for title, column in contest.columns({"evaluations": ("nfe", ".0f", 1)}).items()
    if title != "images/s"
} | {"images/s": ("images", ".3g", 1), "evaluations of an image/s": ("rate", ".3g", 1)}


class Sampler:
    """A contestant: the sampler of a config on a batch."""

    def __init__(self, config: Config, batch_size: int, rivals: Mapping[str, str] = {}) -> None:  # noqa: B006
        self.experiment = Experiment(config, jax.devices()[:1])
        self.rivals, self.rate = rivals, speed.rate_of(config)
        self.params = self.experiment.init_params()
        self.indices = self.experiment.rows(jax.numpy.arange(batch_size))
        start = time.perf_counter()
        self.nfe = float(jax.block_until_ready(self()).nfe.max())
        self.first = time.perf_counter() - start
        self.work = self.nfe * batch_size
        self.flops = self.nfe * forward_flops(self.experiment, batch_size)

    def prepare(self) -> None:
        """All is on the device already."""

    def __call__(self) -> Samples:
        return self.experiment.sample(self.params, self.indices)

    @property
    def facts(self) -> speed.Row:
        """What its row says besides."""
        return {
            "parameters": speed.parameters(self.experiment),
            "nfe": self.nfe,
            "first": self.first,
        }


def forward_flops(experiment: Experiment, batch_size: int) -> float:
    """FLOPs of an evaluation of the score for a batch."""
    score = jax.jit(lambda params, x, t: experiment.score(params)(x, t))
    return speed.flops(score.lower(experiment.abstract_params, *states(experiment, batch_size)))


def states(
    experiment: Experiment, batch_size: int
) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """The shapes of x and t."""
    x = jax.ShapeDtypeStruct((batch_size, *experiment.image_shape), "float32")
    return x, jax.ShapeDtypeStruct((batch_size,), "float32")


def measure(
    *, batch_size: int, levels: int = 25, set: Sequence[str] = (), **options: Any
) -> list[speed.Row]:  # noqa: A002
    """Rows about the samplers of configs and variants; `options` as of `contest.contest`. Raises InputError."""

    def sampler(method: str) -> contest.Make:
        def make(config: Config, rivals: Mapping[str, str]) -> Sampler:
            config.sampling.method = method
            return Sampler(config, batch_size, rivals)

        return make

    peer = lambda peer: peers.repeated(peers.Sampling, peer, batch_size, levels)
    methods = {name: sampler(name) for name in ("pc", "solver")}
    rows = contest.contest(methods, peer, set=[f"model.num_scales={levels}", *set], **options)
    return [of_evaluations(each) for each in rows]


def of_evaluations(each: speed.Row) -> speed.Row:
    """The row with what follows from the number of evaluations, and from the seconds of the first run."""
    found = {"images": each["rate"] / each["nfe"]} if "nfe" in each and "rate" in each else {}
    if "first" in each and "seconds" in each:
        found["to_compile"] = each["first"] - each["seconds"]
    return each | found


if __name__ == "__main__":
    contest.define_flags(batch_size=8)
    flags.DEFINE_integer(
        "levels",
        25,
        "Noise levels of predictor and corrector; those of VP need more than 20.",
        lower_bound=2,
    )
    title = "Sampling at batch {batch_size}, {levels} levels"
    contest.run(lambda: contest.show(title, measure, COLUMNS, levels=flags.FLAGS.levels))
