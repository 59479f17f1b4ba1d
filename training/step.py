"""The training step: one update of the state on a batch, compiled over the mesh."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import Array

import losses
import sharding
import train_state
from datasets import Batch
from experiment import Experiment
from losses import Part
from models import averages
from models.building import Params
from models.layers import Rngs
from train_state import TrainState

Metrics = dict[str, Array]
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    experiment: Experiment,
    optimizer: optax.GradientTransformation,
    rollbacks: int = 0,
) -> tuple[TrainState, Metrics]:
    """Update the state on B images.

    The random numbers are functions of the seed, state.step and the number of rollbacks.
    """
    config = experiment.config
    key = jax.random.fold_in(root(experiment, rollbacks), state.step)
    data_key, noise_key, dropout_key = jax.random.split(key, 3)
    class_key = jax.random.fold_in(key, 3)
    x = experiment.prepare(data_key, batch.pixels, flip=config.data.random_flip)
    classes = experiment.hide_classes(class_key, batch.labels)
    t, z = experiment.draw(noise_key, x)

    def loss(params: Params, part: Part) -> tuple[Array, Array]:
        score = experiment.score(params, Rngs(part.key), part.classes)
        per_image = experiment.loss(score, part.x, part.t, part.z)
        return per_image.mean(), per_image

    (value, per_image), grads = losses.value_and_grad(
        loss,
        state.params,
        Part(dropout_key, x, t, z, classes),
        config.training.accumulate,
        unroll=sharding.on_cpu(experiment.mesh),
    )
    metrics = {"loss": value, "grad_norm": train_state.global_norm(grads)}
    metrics["levels"] = jnp.stack(losses.by_noise_level(per_image, t, experiment.sde))
    rate = train_state.ema_rate(config.model, state.step)
    updated = train_state.update(state, grads, optimizer, rate)
    followed = averages.follow(state.averages, updated.params, config.model.ema_stds, updated.step)
    updated = updated._replace(averages=followed)
    if config.training.on_nonfinite == "skip":
        finite = jnp.isfinite(value) & jnp.isfinite(metrics["grad_norm"])
        updated = train_state.keep_if(finite, updated, state)
    return updated, metrics


def root(experiment: Experiment, rollbacks: int) -> Array:
    """Return the root of the random numbers of training."""
    if not rollbacks:
        return experiment.key("train")
    return jax.random.fold_in(experiment.key("rollback"), rollbacks)


def state_shardings(experiment: Experiment, optimizer: optax.GradientTransformation) -> TrainState:
    """Return the shardings of a state."""
    extra = len(experiment.config.model.ema_stds)
    abstract = train_state.abstract(experiment.abstract_params, optimizer, extra)
    return experiment.state_shardings(abstract)


def init_state(experiment: Experiment, optimizer: optax.GradientTransformation) -> TrainState:
    """Return the state before the first step, on the devices."""
    extra = len(experiment.config.model.ema_stds)
    state = train_state.create(experiment.init_params(), optimizer, extra)
    return jax.device_put(state, state_shardings(experiment, optimizer))


def jit_step(
    experiment: Experiment, optimizer: optax.GradientTransformation, rollbacks: int = 0
) -> Step:
    """Return `train_step`, jitted over the mesh; it donates its state argument."""
    whole, split = sharding.replicated(experiment.mesh), sharding.along_axis(experiment.mesh)
    state = state_shardings(experiment, optimizer)
    step = functools.partial(
        train_step, experiment=experiment, optimizer=optimizer, rollbacks=rollbacks
    )
    return jax.jit(
        step, in_shardings=(state, split), out_shardings=(state, whole), donate_argnums=0
    )


def compile_steps(
    experiment: Experiment,
    optimizer: optax.GradientTransformation,
    *,
    rollbacks: int = 0,
    scan: bool | None = None,
) -> Step:
    """Return `train_step` along the first axis of batches (steps, B, ...), by `sharding.repeat`."""
    return sharding.repeat(jit_step(experiment, optimizer, rollbacks), experiment.mesh, scan=scan)
