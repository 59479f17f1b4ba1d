"""Training of one config with several seeds, by one compiled step.

The parameters are those that `main.py --mode=train` computes. That program contains the seed as a
constant and is compiled for each one, which takes as long as hundreds of steps of a small network.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import time
from pathlib import Path

import jax
import train_state
from jax import Array
from train_state import TrainState

import sharding
from configs.default import Config
from datasets import Batch
from experiment import Experiment
from runs.checkpoints import SNAPSHOTS, Checkpoints
from training import Metrics, init_state, train_step

SECONDS = 15.0  # between lines of progress


class Seeded(Experiment):
    """An experiment whose random numbers of training follow from a key, not from its config."""

    root: Array

    def key(self, purpose: str) -> Array:
        """Return the root of the random numbers for one purpose."""
        return self.root if purpose == "train" else super().key(purpose)


class Trainer:
    """The compiled training step of all configs that differ only in their seed."""

    def __init__(self, config: Config) -> None:
        """Compile nothing yet. `config` has any of the seeds."""
        experiment = Seeded(config, jax.devices()[:1])
        self.optimizer = train_state.make_optimizer(experiment.config.optim)

        @functools.partial(jax.jit, donate_argnums=0)
        def step(state: TrainState, batch: Batch, root: Array) -> tuple[TrainState, Metrics]:
            seeded = copy.copy(experiment)
            seeded.root = root
            return train_step(state, batch, experiment=seeded, optimizer=self.optimizer)

        self.step = step

    def train(self, config: Config, workdir: Path) -> None:
        """Train the network of a config, and save its snapshots in `workdir`."""
        experiment = Experiment(config, jax.devices()[:1])
        settings, root = experiment.config.training, experiment.key("train")
        state = init_state(experiment, self.optimizer)
        batches = experiment.batches(experiment.train, settings.batch_size).iterate(0)
        began = shown = time.monotonic()
        with contextlib.closing(Checkpoints(workdir, create=True)) as checkpoints:
            for number in range(1, settings.n_iters + 1):
                batch = sharding.shard(experiment.mesh, next(batches), axis=1)
                state, metrics = self.step(state, jax.tree.map(lambda leaf: leaf[0], batch), root)
                if number % settings.snapshot_freq == 0:
                    trees = train_state.to_checkpoint(state)
                    checkpoints.save(
                        SNAPSHOTS,
                        number // settings.snapshot_freq,
                        trees,
                        step=number,
                        config=experiment.config.to_dict(),
                    )
                if time.monotonic() - shown > SECONDS:
                    shown = time.monotonic()
                    loss, rate = float(metrics["loss"]), number / (shown - began)
                    left = (settings.n_iters - number) / rate
                    print(f"  step {number}: loss {loss:.4f}, {left:.0f} s left", flush=True)
