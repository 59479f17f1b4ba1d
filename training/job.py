"""What the training loop trains: a network with its loss, data and settings.

`scores.py` describes the score network of an experiment, and `classifier.py` the classifier that
guides samples. Both are trained by the same step and the same loop.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax
from jax import Array
from jax.typing import ArrayLike

from configs.default import Config
from datasets import Batch
from experiment import Experiment
from losses import Part
from models.building import Params
from training import state
from training.state import TrainState

FREQUENCIES = ("log_freq", "eval_freq", "snapshot_freq", "snapshot_freq_for_preemption")


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """What is trained. Times, noise and labels of a batch are drawn by `part`, before the loss.

    Attributes:
      experiment: the devices, data and SDE.
      settings: fields as those of config.training: batch_size, n_iters, n_jitted_steps, accumulate,
        on_nonfinite and FREQUENCIES.
      loss: (params, part of a batch) -> the losses of its images (B,).
      part: (key, batch) -> images, times, noise and classes of a training step.
      held_out: (params, batch, key) -> the losses and times (B,) of held-out images; compiled.
      init: () -> initial parameters.
      abstract_params: their shapes.
      optimizer: the optimizer.
      rate: the learning rate after a number of updates.
      average: the decay of the moving average in the update after a number of updates.
      stds: the widths of further averages.
      labelled: whether the loss uses labels.
      seed: the purpose of its random numbers, see `experiment.PURPOSES`.
      note: a step -> a sentence about the moving average, or ''.
      samples: the parameters -> a picture of samples for the log, or None.
    """

    experiment: Experiment
    settings: Config
    loss: Callable[[Params, Part], Array]
    part: Callable[[Array, Batch], Part]
    held_out: Callable[[Params, Batch, Array], tuple[Array, Array]]
    init: Callable[[], Params]
    abstract_params: Params
    optimizer: optax.GradientTransformation
    rate: Callable[[int], Any]
    average: Callable[[Array], ArrayLike] = lambda _: 0.0
    stds: tuple[float, ...] = ()
    labelled: bool = False
    seed: str = "train"
    note: Callable[[int], str] = lambda _: ""
    samples: Callable[[Params], Any] | None = None

    def initial_state(self) -> TrainState:
        """Return the state before the first step, on the devices."""
        made = state.create(self.init(), self.optimizer, len(self.stds))
        return jax.device_put(made, self.shardings())

    def shardings(self) -> TrainState:
        """Return the shardings of a state."""
        return self.experiment.state_shardings(self.abstract_state())

    def abstract_state(self, *, averages: bool = True) -> TrainState:
        """Return the shapes of a state, with or without the further averages."""
        extra = len(self.stds) if averages else 0
        return state.abstract(self.abstract_params, self.optimizer, extra)

    def root(self, rollbacks: int) -> Array:
        """Return the root of the random numbers of the steps."""
        if not rollbacks:
            return self.experiment.key(self.seed)
        return jax.random.fold_in(self.experiment.key("rollback"), rollbacks)
