"""Training of auxiliary networks, such as the guiding classifier, with restarts.

The parameters are a safetensors file, which also states what they were trained with. During
training, a second file, NAME.partial, holds everything that a restart needs.
"""

from __future__ import annotations

import functools
import json
import math
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

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
      settings: everything that the result depends on, as JSON; a file with others is replaced.
      constants: further arguments of the loss, the same on all devices.
      unit: the name of the loss on the console.

    Raises:
      InputError: the loss is not finite.
    """
    whole, constants = sharding.replicated(experiment.mesh), tuple(constants)
    partial = path.with_suffix(".partial")
    finished = _read(path, params, settings)
    if finished is not None:
        print(f"{path} exists and has the same settings: nothing left to do.")
        return jax.device_put(finished[0], whole)
    state = params, optimizer.init(params)
    state, start = _read(partial, state, settings) or (state, 0)
    if start:
        print(f"continuing from step {start} of {partial}", flush=True)
    state, stream, values = jax.device_put(state, whole), batches.iterate(start), []
    step = _compile(experiment, loss, optimizer, key)
    for i in tqdm(range(start, total), initial=start, total=total, unit="step", disable=None):
        batch = jax.tree.map(lambda leaf: leaf[0], next(stream))
        state, value = step(state, sharding.shard(experiment.mesh, batch), i, constants)
        values.append(value)
        if (i + 1) % LOG_EVERY == 0 or i + 1 == total:
            _report(i + 1, values, unit)
            values = []
        if (i + 1) % SAVE_EVERY == 0 and i + 1 < total:
            _write(partial, state, settings, i + 1)
    _write(path, state[0], settings, total)
    if not jax.process_index():
        partial.unlink(missing_ok=True)
    return state[0]


def _report(step: int, values: list[Array], unit: str) -> None:
    """Print the mean of the losses since the last report; raise InputError if it is not finite."""
    mean = float(np.mean(jax.device_get(values)))
    if not math.isfinite(mean):
        raise InputError(
            f"step {step}: the {unit} is {mean}. Training stops; a lower learning rate may help."
        )
    print(f"step {step}: {unit} {mean:.4f}", flush=True)


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


def load(path: Path, like: Params, mode: str) -> Params:
    """Return the parameters that `fit` wrote, with the structure of `like`.

    `mode` is the mode that trains them, for the message. Raises InputError if the file does not
    exist, is damaged, or holds another network.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist; train it first, with --mode={mode}.")
    try:
        tensors = safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise InputError(
            f"{path} is damaged: {error}. Train it again, with --mode={mode}."
        ) from error
    expected = {name: leaf.shape for name, leaf in _named(like).items()}
    if {name: value.shape for name, value in tensors.items()} != expected:
        raise InputError(
            f"{path} holds another network than the config's. Train it again, with --mode={mode}."
        )
    return jax.tree.map(jnp.asarray, _unflatten(like, tensors))


def checksum(params: Params) -> int:
    """Return the CRC-32 of parameters, which identifies them."""
    crc = 0
    for leaf in jax.tree.leaves(params):
        crc = zlib.crc32(np.ascontiguousarray(leaf).data, crc)
    return crc


# --- files ----------------------------------------------------------------------------------------


def _read(path: Path, like: Any, settings: dict[str, Any]) -> tuple[Any, int] | None:
    """Return the tree that `_write` wrote with these settings, and its step.

    None if there is no such file, or it is damaged.
    """
    try:
        with safetensors.safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("settings") != _canonical(settings):
                return None
            tensors = {name: file.get_tensor(name) for name in _named(like)}
            return _unflatten(like, tensors), int(metadata["step"])
    except (FileNotFoundError, safetensors.SafetensorError):
        return None


def _write(path: Path, tree: Any, settings: dict[str, Any], step: int) -> None:
    tensors = {name: np.asarray(leaf) for name, leaf in _named(tree).items()}
    metadata = {"settings": _canonical(settings), "step": str(step)}
    data = safetensors.numpy.save(tensors, metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(data))


def _canonical(settings: dict[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True)


def _named(tree: Any) -> dict[str, Any]:
    """Return the leaves by their names in files."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def _unflatten(like: Any, tensors: dict[str, np.ndarray]) -> Any:
    leaves = [tensors[name] for name in _named(like)]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)
