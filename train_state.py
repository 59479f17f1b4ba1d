"""The state of training: parameters, their moving average (EMA), the optimizer, and checkpoints.

Only this module defines how a step changes the state and how a checkpoint stores it. Sampling and
evaluation use the EMA parameters, as in the official code.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from checkpoints import Checkpoints, Found, Trees
from configs.default import Config
from models.building import Params, is_fixed

OPTIMIZERS = ("adam",)


class TrainState(NamedTuple):
    """All that training changes.

    Attributes:
      step: the number of steps done, int32 ().
      params: parameters of the network, nested dictionaries.
      ema: their exponential moving average, of the same structure.
      opt_state: the state of the optimizer.
    """

    step: Array
    params: Params
    ema: Params
    opt_state: optax.OptState


def create(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """Return the state before the first step."""
    return TrainState(jnp.int32(0), params, jax.tree.map(jnp.copy, params), optimizer.init(params))


def abstract(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """Return the shapes and types of a state; `params` may be abstract."""
    step = jax.ShapeDtypeStruct((), jnp.int32)
    return TrainState._make((step, params, params, jax.eval_shape(optimizer.init, params)))


def update(
    state: TrainState, grads: Params, optimizer: optax.GradientTransformation, ema_rate: float
) -> TrainState:
    """Return the state after one more step; `ema_rate` is the decay of the moving average."""
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    # Optax declares its results as arbitrary trees.
    params = cast(Params, optax.apply_updates(state.params, updates))
    ema = cast(Params, optax.incremental_update(params, state.ema, 1 - ema_rate))
    return TrainState(state.step + 1, params, ema, opt_state)


# --- optimizer ------------------------------------------------------------------------------------


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """Return Adam with linear warm-up, clipping of the global norm and decoupled weight decay.

    `config` is config.optim of a valid config. Clipping is left out if grad_clip is not positive.
    """

    def warm_up(step: ArrayLike) -> Array:
        return config.lr * jnp.minimum(step, config.warmup) / config.warmup

    rate = warm_up if config.warmup > 0 else config.lr
    adam = adamw(rate, config.weight_decay, b1=config.beta1, eps=config.eps)
    if config.grad_clip <= 0:
        return adam
    return optax.chain(clip_by_global_norm(config.grad_clip), adam)


def adamw(
    rate: optax.ScalarOrSchedule, weight_decay: float, *, b1: float = 0.9, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Return `optax.adamw`, with the same state, that leaves parameters alone that do not learn.

    These are the frequencies of Fourier features (`models.building.is_fixed`). The official JAX
    code decays them, too; its experiments have no weight decay.
    """

    def decay(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
        def add(path: tuple, update: Array, param: Array) -> Array:
            return update if is_fixed(path) else update + weight_decay * param

        return jax.tree.map_with_path(add, updates, params) if weight_decay else updates

    return optax.chain(
        optax.scale_by_adam(b1=b1, eps=eps),
        optax.stateless(decay),
        optax.scale_by_learning_rate(rate),
    )


def clip_by_global_norm(limit: float) -> optax.GradientTransformation:
    """Return Optax's transformation of this name, written as a product with one factor.

    The product fuses into Adam's sums, so that clipped gradients are never stored.
    """

    def clip(grads: optax.Updates, params: optax.Params | None = None) -> optax.Updates:
        factor = limit / jnp.maximum(limit, global_norm(grads))
        return jax.tree.map(lambda grad: factor * grad, grads)

    return optax.stateless(clip)


def global_norm(tree: optax.Updates) -> Array:
    """Return Optax's norm of all entries, with the vectors summed as one array.

    A network has hundreds of vectors, and each separate sum is a separate kernel. `tree` has at
    least one vector.
    """
    leaves = jax.tree.leaves(tree)
    vectors = jnp.concatenate([leaf for leaf in leaves if leaf.ndim == 1])
    return optax.global_norm([vectors, *(leaf for leaf in leaves if leaf.ndim != 1)])


# --- checkpoints ----------------------------------------------------------------------------------

EMA = "ema"


def to_checkpoint(state: TrainState) -> Trees:
    """Return the named trees that a checkpoint stores; each can be read without the others."""
    optimizer = {"step": state.step, "state": state.opt_state}
    return {"params": state.params, EMA: state.ema, "optimizer": optimizer}


def from_checkpoint(trees: Trees) -> TrainState:
    """Invert `to_checkpoint`."""
    optimizer = trees["optimizer"]
    return TrainState(optimizer["step"], trees["params"], trees[EMA], optimizer["state"])


def restore_ema(checkpoints: Checkpoints, found: Found, like: Params) -> Params:
    """Return the EMA parameters of a checkpoint, with the shapes and shardings of `like`.

    Raises InputError if the checkpoint is damaged or holds another network.
    """
    return checkpoints.restore(found, {EMA: like})[EMA]


def ema_checksum(checkpoints: Checkpoints, found: Found) -> int:
    """Return the checksum of the EMA parameters of a checkpoint, which identifies them."""
    return checkpoints.checksum(found, EMA)
