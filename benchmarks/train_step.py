"""Images/s of the train step, its share of the rate of matrix products, its memory, and PyTorch beside it.

python -m benchmarks.train_step [--config=...] [--batch_size=8] [--variant=model.dropout=0.0 ...] [--peer]

A run is `--steps` train steps on one batch of random images that is on the device already: random flips, noise levels
and noise, dropout, the loss and its gradient, clipping, Adam and the moving average. Not: reading images. The matrix
products are those of `speed.Product`, timed in the same rounds.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import jax
from absl import flags

import training
from benchmarks import peer as peers
from benchmarks import speed
from datasets import Batch
from experiment import Config, Experiment

COLUMNS = speed.columns("images", trace_and_lower__s=("to_lower", ".1f", 1))


class TrainStep:
    """A contestant: the train step of a config."""

    def __init__(self, config: Config, steps: int, rivals: Mapping[str, str] = {}) -> None:  # noqa: B006
        self.experiment = Experiment(config, jax.devices()[:1])
        self.steps, self.rivals, self.rate = steps, rivals, speed.rate_of(config)
        self.compiled = compile_step(self.experiment)
        self.flops, self.work = steps * model_flops(config, self.compiled.flops), steps * config.training.batch_size
        self.state = None

    def prepare(self) -> None:
        """Puts state and images on the device."""
        optimizer = training.make_optimizer(self.experiment.config.optim)
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
    optimizer = training.make_optimizer(experiment.config.optim)
    state = jax.eval_shape(lambda: training.init_state(experiment, optimizer))
    count = experiment.config.training.batch_size
    labels = jax.ShapeDtypeStruct((count,), "int32") if experiment.labelled else None
    batch = Batch(jax.ShapeDtypeStruct((count, *experiment.image_shape), "uint8"), labels)
    return training.jit_step(experiment, optimizer), state, batch


def compile_step(experiment: Experiment) -> speed.Compiled:
    """The train step at training.batch_size, compiled for shapes."""
    return speed.compile_stages(*lowered_arguments(experiment))


def model_flops(config: Config, counted: float) -> float:
    """FLOPs of a step without those that training.remat adds, and with all that training.accumulate loops over."""
    plain = {"remat": False, "accumulate": 1}
    changed = {f"training.{name}": value for name, value in plain.items() if config.training.get(name, value) != value}
    if not changed:
        return counted
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(changed)
    step, *shapes = lowered_arguments(Experiment(config, jax.devices()[:1]))
    return speed.flops(step.trace(*shapes).lower())


def measure(
    *,
    config: list[str],
    set: list[str] = [],  # noqa: A002, B006
    variant: list[str] = [""],  # noqa: B006
    batch_size: int,
    rounds: int,
    peer: bool = False,
    peer_compile: bool = False,
    steps: int = 0,
    size: int | None = None,
) -> list[speed.Row]:
    """Rows about the train steps of configs and variants, as the flags say; with 0 rounds nothing is run, but compiled.

    `size` is that of the matrices, `steps` a run's, 0 for one on CPUs and ten else. Raises InputError.
    """
    steps = steps or (1 if jax.default_backend() == "cpu" else 10)
    contestants: dict[str, Any] = {}
    for name, each in speed.variants(config, [*set, f"training.batch_size={batch_size}"], variant).items():
        rivals = {}
        for key, (title, compiled) in peers.rivals(each, peer, peer_compile).items():
            rivals[key] = f"{title}, of {name}"
            contestants[rivals[key]] = peer_contestant(each, compiled, steps)
        contestants[name] = TrainStep(each, steps, rivals)
    ours = [each for each in contestants.values() if isinstance(each, TrainStep)]
    if not rounds:
        return [{"name": name, **each.facts} for name, each in contestants.items()]
    for each in ours:
        each.prepare()
    return speed.compete(contestants, rounds, [each.rate for each in ours], size)


def peer_contestant(config: Config, compiled: bool, steps: int) -> peers.Contestant:
    """The train step of the peer."""
    peer, count = peers.Peer(config, compiled=compiled), config.training.batch_size
    work = peers.Training(peer, count)
    return peers.Contestant(peer, work.step, steps, steps * count, steps * work.flops)


def share_the_card() -> None:
    """Leaves PyTorch half of the GPU's memory, unless the environment says what JAX is to take."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.45")


def main() -> None:
    """Prints the table."""
    options = speed.arguments()
    with_peer = options["peer"] or options["peer_compile"]
    if with_peer:
        share_the_card()
    rows = measure(**options, steps=flags.FLAGS.steps)
    print(
        f"\nTrain steps at batch {options['batch_size']} on {speed.environment(*['torch', 'diffusers'] * with_peer)}\n"
    )
    print("\n".join(speed.table(rows, COLUMNS)))


if __name__ == "__main__":
    speed.define_flags(batch_size=8)
    flags.DEFINE_integer("steps", 0, "Train steps of a run; 0: one on CPUs, ten else.")
    speed.run(main)
