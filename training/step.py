"""What is trained, and the training step: one update of the state on a batch."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

import losses
import sharding
from configs.default import Config
from datasets import Batch
from experiment import Experiment
from losses import Part
from models.building import Params
from training import averages, state
from training.state import TrainState

Metrics = dict[str, Array]
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
FREQUENCIES = ("log_freq", "eval_freq", "snapshot_freq", "snapshot_freq_for_preemption")


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """What is trained.

    Attributes:
      experiment: the devices, data and SDE.
      settings: fields as those of config.training: batch_size, n_iters, n_jitted_steps, accumulate,
        on_nonfinite, patience and FREQUENCIES.
      loss: (params, part of a batch) -> the losses of its images (B,).
      part: (key, batch) -> images, times, noise and condition of a training step.
      held_out: (params, batch, key) -> the losses and times (B,) of held-out images; compiled.
      init, abstract_params: () -> initial parameters; their shapes.
      key: the root of the random numbers of the steps.
      rate, average: the learning rate, and the decay of the moving average in the next update,
        after a number of updates.
      stds: the widths of further averages.
      labelled: whether the loss uses labels or other conditions.
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
    key: Array
    rate: Callable[[int], Any]
    average: Callable[[Array], ArrayLike] = lambda _: 0.0
    stds: tuple[float, ...] = ()
    labelled: bool = False
    note: Callable[[int], str] = lambda _: ""
    samples: Callable[[Params], Any] | None = None

    def initial_state(self) -> TrainState:
        """Return the state before the first step, on the devices."""
        made = state.create(self.init(), self.optimizer, len(self.stds))
        return jax.device_put(made, self.shardings())

    def shardings(self) -> TrainState:
        """Return the shardings of a state."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state())

    def abstract_state(self, *, averages: bool = True) -> TrainState:
        """Return the shapes and shardings of a state, with or without the further averages."""
        extra = len(self.stds) if averages else 0
        make = functools.partial(state.create, optimizer=self.optimizer, extra=extra)
        shapes = jax.eval_shape(make, self.abstract_params)
        places = self.experiment.state_shardings(shapes)
        return jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            *(shapes, places),
        )

    def root(self, rollbacks: int) -> Array:
        """Return the root of the random numbers of the steps after a number of rollbacks."""
        if not rollbacks:
            return self.key
        return jax.random.fold_in(self.experiment.key("rollback"), rollbacks)


def train_step(
    before: TrainState, batch: Batch, *, job: Job, rollbacks: int = 0, unroll: bool = False
) -> tuple[TrainState, Metrics]:
    """Update the state on B images; `unroll` the loop over the parts of the batch, if any.

    The random numbers are functions of the seed, the step and the number of rollbacks.
    """
    part = job.part(jax.random.fold_in(job.root(rollbacks), before.step), batch)

    def loss(params: Params, part: Part) -> tuple[Array, Array]:
        per_image = job.loss(params, part)
        return per_image.mean(), per_image

    (value, per_image), grads = losses.value_and_grad(
        loss, before.params, part, job.settings.accumulate, unroll=unroll
    )
    levels = losses.by_noise_level(per_image, part.t, job.experiment.sde)
    norm = state.global_norm(grads)
    after = state.update(before, grads, job.optimizer, job.average(before.step))
    followed = averages.follow(before.averages, after.params, job.stds, after.step)
    after = after._replace(averages=followed)
    if job.settings.on_nonfinite == "skip":
        after = state.keep_if(jnp.isfinite(value) & jnp.isfinite(norm), after, before)
    return after, {"loss": value, "grad_norm": norm, "levels": jnp.stack(levels)}


def jit_step(job: Job, rollbacks: int = 0) -> Step:
    """Return `train_step`, jitted over the mesh; it donates its state argument."""
    mesh, shardings = job.experiment.mesh, job.shardings()
    whole, split = sharding.replicated(mesh), sharding.along_axis(mesh)
    options = {"job": job, "rollbacks": rollbacks, "unroll": sharding.on_cpu(mesh)}
    step = functools.partial(train_step, **options)
    return jax.jit(
        step, in_shardings=(shardings, split), out_shardings=(shardings, whole), donate_argnums=0
    )


def compile_steps(job: Job, rollbacks: int = 0) -> Step:
    """Return `train_step` along the first axis of batches (steps, B, ...).

    On accelerators the steps are one `lax.scan`. XLA's CPU backend computes weight gradients of
    convolutions twenty times more slowly inside a loop (jax issue 12868), so it gets a Python loop.
    """
    step, mesh = jit_step(job, rollbacks), job.experiment.mesh
    if not sharding.on_cpu(mesh):
        return jax.jit(functools.partial(jax.lax.scan, step), donate_argnums=0)

    def loop(after: TrainState, batches: Batch) -> tuple[TrainState, Metrics]:
        found = []
        for i in range(len(batches.pixels)):
            batch = jax.tree.map(lambda leaf, i=i: leaf[i], batches)
            after, metrics = step(after, jax.device_put(batch, sharding.along_axis(mesh)))
            found.append(metrics)
        return after, jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)

    return loop
