"""Images/s of the train step, its share of the rate of matrix products, its memory, and PyTorch beside it.

python -m benchmarks.train_step [--config=...] [--batch_size=8] [--variant=model.dropout=0.0 ...] [--peer]

A run is `--steps` train steps on one batch of random images that is on the device already: random flips, noise levels
and noise, dropout, the loss and its gradient, clipping, Adam and the moving average. Not: reading images. The matrix
products are those of `speed.Product`, timed in the same rounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import flags

import train_state
import training
from benchmarks import contest, speed
from benchmarks import peer as peers
from configs.default import Config
from datasets import Batch
from experiment import Experiment

COLUMNS = contest.columns(
    {"before, to lower, s": ("to_lower", ".1f", 1), "device peak, GB": ("device_peak", ".2f", 1e-9)}
)


class TrainStep:
    """A contestant: the train step of a config."""

    def __init__(self, config: Config, steps: int, rivals: Mapping[str, str] = {}) -> None:  # noqa: B006
        self.experiment = Experiment(config, jax.devices()[:1])
        self.steps, self.rivals, self.rate = steps, rivals, speed.rate_of(config)
        self.compiled = compile_step(self.experiment)
        self.flops, self.work = (
            steps * model_flops(config, self.compiled.flops),
            steps * config.training.batch_size,
        )
        self.state = None

    def prepare(self) -> None:
        """Puts state and images on the device."""
        optimizer = train_state.make_optimizer(self.experiment.config.optim)
        self.state = training.init_state(self.experiment, optimizer)
        self.batch = speed.images(self.experiment, self.experiment.config.training.batch_size)

    def __call__(self) -> training.Metrics:
        for _ in range(self.steps):
            self.state, metrics = self.compiled.call(self.state, self.batch)
        return metrics

    @property
    def facts(self) -> speed.Row:
        """What its row says besides."""
        seconds = self.compiled.seconds
        return {
            "parameters": speed.parameters(self.experiment),
            "memory": self.compiled.peak,
            "to_compile": seconds["compile"],
            "to_lower": seconds["trace"] + seconds["lower"],
            "device_peak": speed.device_peak(jax.devices()[0]),
        }


def lowered_arguments(experiment: Experiment) -> tuple[Any, Any, Batch]:
    """The jitted step with the shapes of its arguments; nothing is put on a device."""
    optimizer = train_state.make_optimizer(experiment.config.optim)
    state = jax.eval_shape(lambda: training.init_state(experiment, optimizer))
    count = experiment.config.training.batch_size
    labels = jax.ShapeDtypeStruct((count,), "int32") if experiment.labelled else None
    batch = Batch(jax.ShapeDtypeStruct((count, *experiment.image_shape), "uint8"), labels)
    return training.jit_step(experiment, optimizer), state, batch


def lower(experiment: Experiment) -> jax.stages.Lowered:
    """The train step at training.batch_size, lowered for shapes."""
    step, *shapes = lowered_arguments(experiment)
    return step.lower(*shapes)


def compile_step(experiment: Experiment) -> speed.Compiled:
    """The train step at training.batch_size, compiled for shapes."""
    return speed.compile_stages(*lowered_arguments(experiment))


def model_flops(config: Config, counted: float) -> float:
    """FLOPs of a step without those that training.remat adds, and with all that training.accumulate loops over."""
    plain = {"remat": False, "accumulate": 1}
    changed = {
        f"training.{name}": value for name, value in plain.items() if config.training[name] != value
    }
    if not changed:
        return counted
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(changed)
    return counted_flops(config)


def counted_flops(config: Config) -> float:
    """FLOPs of a step, counted without compiling it."""
    return speed.flops(lower(Experiment(config, jax.devices()[:1])))


def measure(
    *, batch_size: int, steps: int = 0, set: Sequence[str] = (), **options: Any
) -> list[speed.Row]:  # noqa: A002
    """Rows about the train steps of configs and variants; `options` as of `contest.contest`.

    `steps` are those of a run, 0 for one on CPUs and ten else. Raises InputError.
    """
    steps = steps or (1 if jax.default_backend() == "cpu" else 10)

    def peer(peer: peers.Peer) -> peers.Contestant:
        work = peers.Training(peer, batch_size)
        return peers.Contestant(
            peer, work.step, times=steps, work=steps * batch_size, flops=steps * work.flops
        )

    ours = lambda config, rivals: TrainStep(config, steps, rivals)
    return contest.contest(
        {"": ours}, peer, set=[*set, f"training.batch_size={batch_size}"], **options
    )


if __name__ == "__main__":
    contest.define_flags(batch_size=8)
    flags.DEFINE_integer("steps", 0, "Train steps of a run; 0: one on CPUs, ten else.")
    contest.run(
        lambda: contest.show(
            "Train steps at batch {batch_size}", measure, COLUMNS, steps=flags.FLAGS.steps
        )
    )
