"""Training of auxiliary networks, such as the guiding classifier, with restarts.

The parameters are a safetensors file, which also states what they were trained with. During
training, a second file, NAME.partial, holds everything that a restart needs.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util
from jax import Array

import progress
import sharding
import train_state
from datasets import Batch, Batches
from errors import InputError, printable
from experiment import Experiment
from models.building import Params
from runs import load_tree, locked, read_tree, save_tree
from runs.trees import TREE_DEPENDS, read_safetensors

LOG_EVERY, SAVE_EVERY = 100, 500  # steps

LOCATIONS = ("data.path", "data.tfrecords_path")
"""Settings that earlier versions stored, although only the images matter, not where they are."""

FitState = tuple[Params, optax.OptState]

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
    """Minimize a loss for `total` steps and write the parameters to `path`; `load` reads them.

    A run that is stopped and started again ends with the same parameters, bit for bit. A finished
    run does nothing.

    Args:
      experiment: provides the devices.
      path: the file of the result.
      params: initial parameters.
      loss: see `Loss`.
      batches: the training images.
      optimizer, total: the optimizer and the number of steps.
      key: the random numbers of step i are functions of fold_in(key, i).
      settings: everything that the result depends on, as JSON.
      constants: further arguments of the loss, the same on all devices.
      unit: the name of the loss on the console.

    Raises:
      InputError: the file, or that of a training that was stopped, has other settings; the loss or
        the state is not finite; or another process trains the same network.
    """
    finished = _load_stored(path, params, settings)
    if finished is not None:
        print(f"{path} exists and has the same settings: nothing left to do.")
        return jax.device_put(finished[0], sharding.replicated(experiment.mesh))
    partial = path.with_suffix(".partial")
    _check_settings(partial, settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent):
        whole, constants = sharding.replicated(experiment.mesh), tuple(constants)
        state = params, optimizer.init(params)
        state, start = _load_stored(partial, state, settings) or (state, 0)
        if start:
            print(f"continuing from step {start} of {partial}", flush=True)
        state, stream, values = jax.device_put(state, whole), batches.iterate(start), []
        step = _compile(experiment, loss, optimizer, key)
        with progress.counting(f"training {path.stem}", total, "step", start) as update:
            for i in range(start, total):
                batch = jax.tree.map(lambda leaf: leaf[0], next(stream))
                state, value = step(state, sharding.shard(experiment.mesh, batch), i, constants)
                values.append(value)
                update(i + 1)
                if (i + 1) % LOG_EVERY == 0 or i + 1 == total:
                    _report(i + 1, values, unit)
                    values = []
                if (i + 1) % SAVE_EVERY == 0 and i + 1 < total:
                    _check(state, i + 1)
                    save_tree(partial, state, settings, i + 1)
        _check(state, total)
        save_tree(path, state[0], settings, total)
        if not jax.process_index():
            partial.unlink(missing_ok=True)
        return state[0]


def _load_stored(path: Path, like: Any, settings: Mapping[str, Any]) -> tuple[Any, int] | None:
    """Return the tree of a file and its step.

    None if the file does not exist, or is damaged (with a warning). Raises InputError if it has
    other settings.
    """
    return load_tree(path, like, _check_settings(path, settings))


def _check_settings(path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a file states; {} if it does not exist or is damaged.

    Raises InputError, which lists the differences, if they are not `settings`. Entries of
    `LOCATIONS` are not compared.
    """
    stored = _stored_settings(path)
    if stored is None:
        return {}
    before, now = _flatten(stored), _flatten(settings)
    differing = "; ".join(
        f"{printable(name)}: {before.get(name, 'absent')!r} there, {now.get(name, 'absent')!r} now"
        for name in sorted(before | now)
        if name not in LOCATIONS and before.get(name) != now.get(name)
    )
    if differing:
        raise InputError(
            f"{path} was trained with other settings; nothing is overwritten. Move the file to "
            f"train again, or use the earlier config and checkpoint. Differences: {differing}."
        )
    return stored


def _stored_settings(path: Path) -> dict[str, Any] | None:
    """Return the settings that a file states; None if it does not exist or cannot be read."""
    try:
        stored = json.loads(read_safetensors(path)[0].get(TREE_DEPENDS, "{}"))
    except (RecursionError, ValueError):  # An InputError is a ValueError.
        return None
    return stored if isinstance(stored, dict) else None


def _flatten(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as JSON stores them, with dotted names."""
    return traverse_util.flatten_dict(json.loads(json.dumps(settings)), sep=".")


def _report(step: int, values: list[Array], unit: str) -> None:
    """Print the mean of the losses since the last report; raise InputError if it is not finite."""
    mean = float(np.mean(jax.device_get(values)))
    if not math.isfinite(mean):
        raise InputError(
            f"step {step}: the {unit} is {mean}. Training stops; a lower learning rate may help."
        )
    print(f"step {step}: {unit} {mean:.4f}", flush=True)


def _check(state: FitState, step: int) -> None:
    """Raise InputError if the state is not finite, which its last loss need not show."""
    if not train_state.all_finite(state):
        raise InputError(
            f"step {step}: the parameters or the optimizer state are not finite. Nothing more is "
            "saved; a lower learning rate may help."
        )


def _compile(
    experiment: Experiment, loss: Loss, optimizer: optax.GradientTransformation, key: Array
) -> Callable[[FitState, Batch, int, tuple], tuple[FitState, Array]]:
    """Return (state, batch, number of the step, constants) -> state, loss; jitted over the mesh."""
    whole, split = sharding.replicated(experiment.mesh), sharding.along_axis(experiment.mesh)

    @functools.partial(jax.jit, in_shardings=(whole, split, whole, whole), out_shardings=whole)
    def step(state: FitState, batch: Batch, i: Array, constants: tuple) -> tuple[FitState, Array]:
        params, opt_state = state
        step_key = jax.random.fold_in(key, i)
        value, grads = jax.value_and_grad(loss)(params, batch, step_key, *constants)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        # Optax declares its results as arbitrary trees.
        return (cast(Params, optax.apply_updates(params, updates)), opt_state), value

    return step


def load(path: Path, like: Params, mode: str, expected: Mapping[str, Any]) -> Params:
    """Return the parameters that `fit` wrote, with the structure of `like`.

    Args:
      path: the file.
      like: parameters, which may be abstract.
      mode: the mode that trains them, for the message.
      expected: the entries of `settings` that must agree, as far as the file states them; those of
        nested dicts have dotted names.

    Raises:
      InputError: the file does not exist, is damaged, holds another network, or was trained with
        other settings.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist; train it first, with --mode={mode}.")
    try:
        params, settings = read_tree(path, like)
    except InputError as error:
        raise InputError(
            f"{error} Train it again, with --mode={mode}. If it is not damaged, move it first."
        ) from error
    stated = traverse_util.flatten_dict(dict(settings), sep=".")
    for name, value in expected.items():
        if stated.get(name, value) != value:
            raise InputError(
                f"{path} was trained with {name} = {stated[name]!r}, but this run has {value!r}. "
                f"Move the file, and train again with --mode={mode}."
            )
    return jax.tree.map(jnp.asarray, params)
