"""The state of training: parameters, their moving average (EMA), the optimizer, and checkpoints.

Sampling and evaluation use the EMA parameters, as in the official code.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike

from errors import InputError, advice
from models.building import Params, is_fixed
from readers.files import MAX_STEP, read_json
from runs import write_json
from runs.checkpoints import EMA, PARAMS, Trees


class TrainState(NamedTuple):
    """All that training changes.

    They are the number of steps done, int32 (); the parameters of the network, nested dictionaries;
    their exponential moving average; the state of the optimizer; and averages of other widths.
    """

    step: Array
    params: Params
    ema: Params
    opt_state: optax.OptState
    averages: tuple[Params, ...] = ()


def create(params: Params, optimizer: optax.GradientTransformation, extra: int = 0) -> TrainState:
    """Return the state before the first step, with `extra` averages."""
    ema, *averages = (jax.tree.map(jnp.copy, params) for _ in range(1 + extra))
    return TrainState(jnp.int32(0), params, ema, optimizer.init(params), tuple(averages))


def update(
    state: TrainState, grads: Params, optimizer: optax.GradientTransformation, ema_rate: ArrayLike
) -> TrainState:
    """Return the state after one more step; `ema_rate` is the decay of the moving average.

    It leaves `averages` to `training.averages.follow`.
    """
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    # Optax declares its results as arbitrary trees.
    params = cast(Params, optax.apply_updates(state.params, updates))
    ema = cast(Params, optax.incremental_update(params, state.ema, 1 - ema_rate))
    return TrainState(state.step + 1, params, ema, opt_state, state.averages)


# --- moving average -------------------------------------------------------------------------------


def ema_rate(rate: float, ramp: bool, step: Array) -> ArrayLike:
    """Return the decay of the moving average in the update after `step` updates.

    With `ramp`, it is at most (1 + n) / (10 + n) in update n, as in the official PyTorch code.
    """
    number = step + 1
    return jnp.minimum(rate, (1 + number) / (10 + number)) if ramp else rate


def initial_share(rate: float, ramp: bool, steps: int) -> float:
    """Return the weight of the initial parameters in the moving average after a number of steps."""
    n = np.arange(1, steps + 1)
    return float(np.prod(np.minimum(rate, (1 + n) / (10 + n)) if ramp else np.full(steps, rate)))


def initial_share_note(rate: float, ramp: bool, steps: int) -> str:
    """Return a sentence if the initial parameters still count in the moving average, else ''."""
    share = initial_share(rate, ramp, steps)
    if steps == 0 or share <= 0.01:  # Imported files of EDM state no steps.
        return ""
    hint = "train longer" if ramp else "train longer, or set model.ema_ramp = True"
    return (
        f"the moving average (EMA) still holds {share:.0%} of the initial weights, and samples and "
        f"bits/dim are those of the EMA; {hint}"
    )


# --- values that are not finite -------------------------------------------------------------------


def keep_if(accepted: Array, updated: TrainState, before: TrainState) -> TrainState:
    """Return `updated` if `accepted` (), else `before` with the new step number."""
    kept = jax.tree.map(lambda new, old: jnp.where(accepted, new, old), updated, before)
    return kept._replace(step=updated.step)


@jax.jit
def all_finite(tree: Any) -> Array:
    """Return whether all floating-point values of a tree are finite, ().

    Zero times a value is 0 if it is finite, else NaN. These few sums compile in a sixth of the time
    of `jnp.isfinite` for each array.
    """
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    vectors = jnp.concatenate([leaf.ravel() for leaf in leaves if leaf.ndim < 2] or [jnp.zeros(1)])
    zeros = [(0 * leaf).sum() for leaf in (vectors, *leaves) if leaf is vectors or leaf.ndim > 1]
    return jnp.stack(zeros).sum() == 0


MOST_ROLLBACKS = 3  # without getting beyond the step that failed


class Rollbacks(NamedTuple):
    """How often a run went back to an earlier checkpoint; kept in WORKDIR/rollbacks.json.

    Random numbers depend on their `number`. `step` is the latest whose values were not finite, and
    `repeated` the number since training first failed there.
    """

    number: int = 0
    step: int = 0
    repeated: int = 0

    def next(self, step: int) -> Rollbacks | None:
        """Return the value after one more failure, at `step`; None if training must stop."""
        if step > self.step:
            return Rollbacks(self.number + 1, step, 1)
        if self.repeated >= MOST_ROLLBACKS:
            return None
        return Rollbacks(self.number + 1, self.step, self.repeated + 1)

    def write(self, workdir: str | Path) -> None:
        """Write the file; process 0 only."""
        write_json(Path(workdir) / "rollbacks.json", self._asdict())


def read_rollbacks(workdir: str | Path) -> Rollbacks:
    """Return the rollbacks of a run. Raise InputError if the file is damaged."""
    path = Path(workdir) / "rollbacks.json"
    if not os.path.lexists(path):
        return Rollbacks()
    with advice("Restore it, or delete it to continue with the noise of a run without rollbacks."):
        found = read_json(path, dict.fromkeys(Rollbacks._fields, int))
        rollbacks = Rollbacks(*(found[name] for name in Rollbacks._fields))
        if not all(0 <= value <= MAX_STEP for value in rollbacks):
            raise InputError(f"{path} is damaged: it states {rollbacks}.")
    return rollbacks


# --- optimizer ------------------------------------------------------------------------------------


def make_optimizer(
    *,
    lr: float,
    beta1: float = 0.9,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    warmup: int = 0,
    grad_clip: float = 0.0,
    **others: Any,
) -> optax.GradientTransformation:
    """Return Adam with linear warm-up, clipping of the global norm and decoupled weight decay.

    The arguments are the fields of config.optim. Clipping is left out if grad_clip is not positive.
    """
    del others  # They have no effect.
    rate = functools.partial(learning_rate, lr, warmup) if warmup > 0 else lr
    adam = adamw(rate, weight_decay, b1=beta1, eps=eps)
    return adam if grad_clip <= 0 else optax.chain(clip_by_global_norm(grad_clip), adam)


def learning_rate(lr: float, warmup: int, updates: ArrayLike) -> Array:
    """Return the learning rate after a number of updates."""
    if warmup <= 0:
        return jnp.float32(lr)
    return lr * jnp.minimum(updates, warmup) / warmup


def adamw(
    rate: optax.ScalarOrSchedule, weight_decay: float, *, b1: float = 0.9, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Return `optax.adamw`, with the same state, that does not decay the fixed frequencies.

    The official JAX code decays them, too; its experiments have no weight decay.
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
    """Return Optax's transformation of this name as a product, which fuses into Adam's sums."""

    def clip(grads: optax.Updates, params: optax.Params | None = None) -> optax.Updates:
        factor = limit / jnp.maximum(limit, global_norm(grads))
        return jax.tree.map(lambda grad: factor * grad, grads)

    return optax.stateless(clip)


def global_norm(tree: optax.Updates) -> Array:
    """Return Optax's norm; hundreds of vectors are one array, as each sum is a kernel."""
    leaves = jax.tree.leaves(tree)
    vectors = jnp.concatenate([leaf for leaf in leaves if leaf.ndim == 1] or [jnp.zeros(1)])
    return optax.global_norm([vectors, *(leaf for leaf in leaves if leaf.ndim != 1)])


# --- checkpoints ----------------------------------------------------------------------------------

AVERAGE = "average_{}"  # number i, of the width model.ema_stds[i]


def to_checkpoint(state: TrainState) -> Trees:
    """Return the named trees that a checkpoint stores; each can be read without the others."""
    optimizer = {"step": state.step, "state": state.opt_state}
    averages = {AVERAGE.format(i): tree for i, tree in enumerate(state.averages)}
    return {PARAMS: state.params, EMA: state.ema, "optimizer": optimizer, **averages}


def from_checkpoint(trees: Trees) -> TrainState:
    """Invert `to_checkpoint`."""
    optimizer = trees["optimizer"]
    names = map(AVERAGE.format, range(len(trees)))
    averages = tuple(trees[name] for name in names if name in trees)
    return TrainState(optimizer["step"], trees[PARAMS], trees[EMA], optimizer["state"], averages)
