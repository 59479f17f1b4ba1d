"""The training step: one update of the state on a batch, compiled over the mesh."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

import losses
import sharding
from datasets import Batch
from losses import Part
from models import averages
from models.building import Params
from training import state
from training.job import Job
from training.state import TrainState

Metrics = dict[str, Array]
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def train_step(
    before: TrainState, batch: Batch, *, job: Job, rollbacks: int = 0
) -> tuple[TrainState, Metrics]:
    """Update the state on B images.

    The random numbers are functions of the seed, the step and the number of rollbacks.
    """
    part = job.part(jax.random.fold_in(job.root(rollbacks), before.step), batch)

    def loss(params: Params, part: Part) -> tuple[Array, Array]:
        per_image = job.loss(params, part)
        return per_image.mean(), per_image

    unroll = sharding.on_cpu(job.experiment.mesh)
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
    step = functools.partial(train_step, job=job, rollbacks=rollbacks)
    return jax.jit(
        step, in_shardings=(shardings, split), out_shardings=(shardings, whole), donate_argnums=0
    )


def compile_steps(job: Job, *, rollbacks: int = 0, scan: bool | None = None) -> Step:
    """Return `train_step` along the first axis of batches (steps, B, ...), by `sharding.repeat`."""
    return sharding.repeat(jit_step(job, rollbacks), job.experiment.mesh, scan=scan)
