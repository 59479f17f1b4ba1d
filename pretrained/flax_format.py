"""Checkpoints of the official JAX code: its training state as Flax's msgpack.

Files contain the optimizer state of flax 0.3; the official code restores the files written here
with flax 0.3.1, the version that it requires.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from flax import nnx, serialization, traverse_util

from errors import InputError
from models.building import Params
from pretrained.parameter_names import check_unconditional, flax_layout
from pretrained.stored_parameters import Layout, export_params, load_params
from pretrained.trained import Config, Tensors, Trained, check_entries, flatten

CODE_BASE = "the official Flax code"
ENTRIES = {"step", "optimizer", "lr", "model_state", "ema_rate", "params_ema", "rng"}
MOMENTS = {"mu": "grad_ema", "nu": "grad_sq_ema"}  # Fields of Trained: names in the file.


def load(path: str | Path) -> Any:
    """Return the content of a Flax msgpack file, for checkpoints nested dictionaries of arrays.

    Raises InputError if the file is damaged.
    """
    try:
        return serialization.msgpack_restore(Path(path).read_bytes())
    except Exception as error:  # Damaged files raise exceptions of several types.
        raise InputError(f"{path} is not a complete Flax msgpack file: {error}") from error


def read(path: Path, network: nnx.Module, config: Config) -> Trained:
    """Read a checkpoint of the official JAX code.

    Raises InputError if the file is damaged or does not fit `network`.
    """
    del config
    check_unconditional(network, CODE_BASE)
    state, layout = load(path), flax_layout(network)
    check_entries(path, state, ENTRIES)
    if state["model_state"]:
        raise InputError(
            f"{path} has a model_state with {', '.join(state['model_state'])}; "
            f"it must be empty, as no supported network has any."
        )
    optimizer = state["optimizer"]
    trained = Trained(
        step=int(state["step"]),
        params=load_params(layout, flatten(optimizer["target"]), str(path)),
        ema=load_params(layout, flatten(state["params_ema"]), str(path)),
        ema_rate=float(state["ema_rate"]),
    )
    moments = flatten(optimizer["state"]["param_states"])
    if not moments:
        return trained
    return trained._replace(
        mu=_read_moments(path, layout, moments, MOMENTS["mu"]),
        nu=_read_moments(path, layout, moments, MOMENTS["nu"]),
        updates=int(optimizer["state"]["step"]),
    )


def _read_moments(path: Path, layout: Layout, moments: Tensors, kind: str) -> Params:
    ending = f"/{kind}"
    tensors = {
        name.removesuffix(ending): value for name, value in moments.items() if name.endswith(ending)
    }
    return load_params(layout, tensors, f"{path} (its {kind})")


def write(file: BinaryIO, trained: Trained, network: nnx.Module, config: Config) -> None:
    """Write a checkpoint of the official JAX code; `read` inverts it."""
    check_unconditional(network, CODE_BASE)
    layout = flax_layout(network)
    moments = {}
    for field, kind in MOMENTS.items():
        for name, value in export_params(layout, getattr(trained, field)).items():
            moments[f"{name}/{kind}"] = value
    optimizer = {
        "target": _nest(export_params(layout, trained.params)),
        "state": {
            "step": np.array(trained.updates, np.int32),
            "param_states": _nest(moments),
        },
    }
    state = {
        "step": np.array(trained.step, np.int32),
        "optimizer": optimizer,
        "lr": np.array(config.optim.lr, np.float32),
        "model_state": {},
        "ema_rate": np.array(config.model.ema_rate, np.float32),
        "params_ema": _nest(export_params(layout, trained.ema)),
        "rng": np.array([0, config.seed], np.uint32),
    }
    file.write(serialization.msgpack_serialize(state))


def _nest(tensors: Tensors) -> dict[str, Any]:
    return traverse_util.unflatten_dict(tensors, sep="/")
