"""Auxiliary networks: fitted beside the score model, kept in a workdir as safetensors, resumed where they were stopped.

While a fit is under way, all that it needs to go on lies in NAME.partial beside its file NAME.safetensors.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors
import safetensors.numpy
from jax import Array
from tqdm import tqdm

import sharding
from datasets import Batch, Batches
from errors import InputError
from experiment import Experiment
from models.building import Params
from workdir import write_atomically

LOG_EVERY, SAVE_EVERY = 100, 500  # steps

State = tuple[Params, optax.OptState]

Loss = Callable[..., Array]
"""(params, Batch, key, *constants) -> the mean over the batch, a scalar."""


def fit(
    experiment: Experiment,
    path: Path,
    params: Params,
    loss: Loss,
    batches: Batches,
    optimizer: optax.GradientTransformation,
    total: int,
    *,
    key: Array,
    settings: dict[str, Any],
    constants: Iterable[Any] = (),
    unit: str = "loss",
) -> Params:
    """Minimizes a loss for `total` steps and writes the parameters to `path`, from which `load` reads them.

    Started again after it was stopped, it ends with bit-identical parameters; after it was finished, it does nothing.

    Args:
      params: at the start.
      key: the random numbers of step i are functions of fold_in(key, i).
      settings: all that the result depends on, for JSON; what was written under others is replaced.
      constants: further arguments of the loss, the same on all devices.
      unit: what to call the loss on the console.

    Raises InputError if the loss is not finite.
    """
    whole = sharding.replicated(experiment.mesh)
    notes, partial, constants = (
        json.dumps(settings, sort_keys=True),
        path.with_suffix(".partial"),
        tuple(constants),
    )
    if (finished := _read(path, params, notes)) is not None:
        print(f"{path} is there already, of the same settings: nothing left to do.")
        return jax.device_put(finished[0], whole)
    state = params, optimizer.init(params)
    state, start = _read(partial, state, notes) or (state, 0)
    if start:
        print(f"going on from step {start} of {partial}", flush=True)
    state, stream, values = jax.device_put(state, whole), batches.iterate(start), []
    step = _compile(experiment, loss, optimizer, key)
    for i in tqdm(range(start, total), initial=start, total=total, unit="step", disable=None):
        batch = jax.tree.map(lambda leaf: leaf[0], next(stream))
        state, value = step(state, sharding.shard(experiment.mesh, batch), i, constants)
        values.append(value)
        if (i + 1) % LOG_EVERY == 0 or i + 1 == total:
            mean, values = float(np.mean(jax.device_get(values))), []
            if not math.isfinite(mean):
                raise InputError(
                    f"Step {i + 1}: the {unit} is {mean}. Training stops; a lower learning rate may help."
                )
            print(f"step {i + 1}: {unit} {mean:.4f}", flush=True)
        if (i + 1) % SAVE_EVERY == 0 and i + 1 < total:
            _write(partial, state, notes, i + 1)
    _write(path, state[0], notes, total)
    if not jax.process_index():
        partial.unlink(missing_ok=True)
    return state[0]


def _compile(
    experiment: Experiment, loss: Loss, optimizer: optax.GradientTransformation, key: Array
) -> Callable[[State, Batch, int, tuple], tuple[State, Array]]:
    """(state, batch, number of the step, constants) -> state, loss; jitted over the mesh."""
    whole, split = sharding.replicated(experiment.mesh), sharding.along_axis(experiment.mesh)

    @functools.partial(jax.jit, in_shardings=(whole, split, whole, whole), out_shardings=whole)
    def step(state: State, batch: Batch, i: Array, constants: tuple) -> tuple[State, Array]:
        params, opt_state = state
        value, grads = jax.value_and_grad(loss)(
            params, batch, jax.random.fold_in(key, i), *constants
        )
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    return step


def load(path: Path, like: Params, mode: str) -> Params:
    """The parameters that `fit` wrote, with the structure of `like`.

    Raises InputError, which names the mode that trains them, if there are none, or of another network.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist; train it first, with --mode={mode}.")
    try:
        tensors = safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise InputError(
            f"{path} is damaged: {error}. Train it again, with --mode={mode}."
        ) from error
    shapes = {name: leaf.shape for name, leaf in _named(like).items()}
    if {name: value.shape for name, value in tensors.items()} != shapes:
        raise InputError(
            f"{path} is of another network than the config's. Train it again, with --mode={mode}."
        )
    return jax.tree.map(jnp.asarray, _unflatten(like, tensors))


def _read(path: Path, like: Any, notes: str) -> tuple[Any, int] | None:
    """The tree that `_write` wrote with these notes and its step; None if there is none, or it is damaged."""
    try:
        with safetensors.safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("settings") != notes:
                return None
            return _unflatten(like, {name: file.get_tensor(name) for name in _named(like)}), int(
                metadata["step"]
            )
    except (FileNotFoundError, safetensors.SafetensorError):
        return None


def _write(path: Path, tree: Any, notes: str, step: int) -> None:
    tensors = {name: np.asarray(leaf) for name, leaf in _named(tree).items()}
    data = safetensors.numpy.save(tensors, {"settings": notes, "step": str(step)})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(data))


def _named(tree: Any) -> dict[str, Any]:
    """The leaves by the names that they have in files."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def _unflatten(like: Any, tensors: dict[str, np.ndarray]) -> Any:
    return jax.tree.unflatten(jax.tree.structure(like), [tensors[name] for name in _named(like)])
