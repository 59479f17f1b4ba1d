"""Speed of the train step in images/s, and its memory, optionally next to PyTorch.

python -m benchmarks.train_step [--config=...] [--batch_size=8] [--variant=model.dropout=0.0 ...]
    [--peer]

Prints a table. A run is `--steps` train steps on one batch of random images that is on the device
already: random flips, noise levels and noise, dropout, the loss and its gradient, clipping, Adam
and the moving average. Reading images is not included. Matrix products (`speed.Product`) are timed
in the same rounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import train_state
from absl import flags

import training
from benchmarks import comparison, peer_runs, speed
from benchmarks.peer import Peer
from configs.default import Config
from datasets import Batch
from experiment import Experiment

COLUMNS = comparison.columns(
    {"before, to lower, s": ("to_lower", ".1f", 1), "device peak, GB": ("device_peak", ".2f", 1e-9)}
)


class TrainStep:
    """A competitor: train steps of a config."""

    def __init__(self, config: Config, steps: int, rivals: Mapping[str, str]) -> None:
        self.experiment = Experiment(config, jax.devices()[:1])
        self.steps, self.rivals = steps, rivals
        self.product = speed.network_product(config)
        self.compiled = compile_step(self.experiment)
        self.flops = steps * model_flops(config, self.compiled.flops)
        self.work = steps * config.training.batch_size
        self.state = None

    def prepare(self) -> None:
        """Put the training state and images on the device."""
        optimizer = train_state.make_optimizer(self.experiment.config.optim)
        self.state = training.init_state(self.experiment, optimizer)
        self.batch = speed.images(self.experiment, self.experiment.config.training.batch_size)

    def __call__(self) -> training.Metrics:
        for _ in range(self.steps):
            self.state, metrics = self.compiled.call(self.state, self.batch)
        return metrics

    @property
    def facts(self) -> speed.Row:
        """Further entries of its row."""
        seconds = self.compiled.seconds
        return {
            "parameters": speed.parameters(self.experiment),
            "memory": self.compiled.peak,
            "to_compile": seconds["compile"],
            "to_lower": seconds["trace"] + seconds["lower"],
            "device_peak": speed.device_peak(jax.devices()[0]),
        }


def lowered_arguments(experiment: Experiment) -> tuple[Any, Any, Batch]:
    """Return the jitted step and the shapes of its arguments; nothing is put on a device."""
    optimizer = train_state.make_optimizer(experiment.config.optim)
    state = jax.eval_shape(lambda: training.init_state(experiment, optimizer))
    count = experiment.config.training.batch_size

    def zeros() -> Batch:
        labels = jnp.zeros(count, jnp.int32) if experiment.labelled else None
        return Batch(jnp.zeros((count, *experiment.image_shape), jnp.uint8), labels)

    return training.jit_step(experiment, optimizer), state, jax.eval_shape(zeros)


def lower(experiment: Experiment) -> jax.stages.Lowered:
    """Lower the train step at training.batch_size."""
    step, *shapes = lowered_arguments(experiment)
    return step.lower(*shapes)


def compile_step(experiment: Experiment) -> speed.Compiled:
    """Compile the train step at training.batch_size."""
    return speed.compile_stages(*lowered_arguments(experiment))


def model_flops(config: Config, counted: float | None) -> float:
    """Return the FLOPs of a step without recomputation, and with all accumulated batches.

    `counted` are those of the compiled step, which include what training.remat recomputes, and one
    of the training.accumulate passes of its loop; None if they are unknown.
    """
    plain = {"remat": False, "accumulate": 1}
    changed = {
        f"training.{name}": value for name, value in plain.items() if config.training[name] != value
    }
    if not changed and counted is not None:
        return counted
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(changed)
    return counted_flops(config)


def counted_flops(config: Config) -> float:
    """Return the FLOPs of a step, counted without compiling it."""
    return speed.count_flops(*lowered_arguments(Experiment(config, jax.devices()[:1])))


def measure(
    *, batch_size: int, steps: int = 0, overrides: Sequence[str] = (), **options: Any
) -> list[speed.Row]:
    """Time the train steps of configs and variants; return a row for each.

    `steps` are the train steps of a run; 0 stands for 1 on CPUs and 10 on other devices. `options`
    are those of `comparison.compare`, which states the errors.
    """
    steps = steps or (1 if jax.default_backend() == "cpu" else 10)

    def make(config: Config, rivals: Mapping[str, str]) -> TrainStep:
        return TrainStep(config, steps, rivals)

    def make_peer(peer: Peer) -> peer_runs.TimedPeer:
        training_peer = peer_runs.Training(peer, batch_size)
        flops = steps * training_peer.flops
        work = steps * batch_size
        return peer_runs.TimedPeer(peer, training_peer.step, calls=steps, work=work, flops=flops)

    overrides = [*overrides, f"training.batch_size={batch_size}"]
    return comparison.compare({"": make}, make_peer, overrides=overrides, **options)


def main() -> None:
    """Print the table."""
    title = "Train steps at batch {batch_size}"
    comparison.show(title, measure, COLUMNS, steps=flags.FLAGS.steps)


if __name__ == "__main__":
    comparison.define_flags(batch_size=8)
    flags.DEFINE_integer("steps", 0, "Train steps of a run; 0: 1 on CPUs, 10 elsewhere.")
    comparison.run(main)
