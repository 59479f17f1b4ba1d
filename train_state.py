"""The state of training."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from configs.default import Config
from errors import check_name
from experiment import Experiment
from models.building import Params


class TrainState(NamedTuple):
    """All that training changes; `ema` is the moving average of `params`, with which one samples."""

    step: Array
    params: Params
    ema: Params
    opt_state: optax.OptState


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """Adam with linear warm-up, clipping of the global norm and decoupled weight decay, from config.optim."""
    check_name(config.optimizer.lower(), ("adam",), "optim.optimizer")
    warm_up = lambda step: config.lr * jnp.minimum(step, config.warmup) / config.warmup
    rate = warm_up if config.warmup > 0 else config.lr
    adam = optax.adamw(rate, b1=config.beta1, eps=config.eps, weight_decay=config.weight_decay)
    return (
        optax.chain(clip_by_global_norm(config.grad_clip), adam) if config.grad_clip > 0 else adam
    )


def clip_by_global_norm(limit: float) -> optax.GradientTransformation:
    """Optax's, but as a product with one factor, which fuses into Adam's sums: clipped gradients are never stored."""

    def clip(grads: Params, params: Params | None = None) -> Params:
        factor = limit / jnp.maximum(limit, global_norm(grads))
        return jax.tree.map(lambda grad: factor * grad, grads)

    return optax.stateless(clip)


def global_norm(tree: Params) -> Array:
    """Optax's norm of all entries, but the vectors, of which a network has hundreds, are summed as one; it has some."""
    leaves = jax.tree.leaves(tree)
    vectors = jnp.concatenate([leaf for leaf in leaves if leaf.ndim == 1])
    return optax.global_norm([vectors, *(leaf for leaf in leaves if leaf.ndim != 1)])


def state_shardings(experiment: Experiment, optimizer: optax.GradientTransformation) -> TrainState:
    """The shardings of a state."""
    params = experiment.abstract_params
    state = TrainState(
        jax.ShapeDtypeStruct((), jnp.int32), params, params, jax.eval_shape(optimizer.init, params)
    )
    return experiment.state_shardings(state)


def init_state(experiment: Experiment, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    params = experiment.init_params()
    state = TrainState(jnp.int32(0), params, jax.tree.map(jnp.copy, params), optimizer.init(params))
    return jax.device_put(state, state_shardings(experiment, optimizer))


def to_checkpoint(state: TrainState) -> dict:
    """The state as checkpoints hold it."""
    return {
        "params": state.params,
        "ema": state.ema,
        "optimizer": {"step": state.step, "state": state.opt_state},
    }


def from_checkpoint(trees: dict) -> TrainState:
    """Inverts `to_checkpoint`."""
    return TrainState(
        trees["optimizer"]["step"], trees["params"], trees["ema"], trees["optimizer"]["state"]
    )
