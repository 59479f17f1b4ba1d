"""Checkpoints of the official JAX code: its training state as Flax's msgpack.

Files contain the optimizer state of flax 0.3; the official code restores the files written here
with flax 0.3.1, the version that it requires.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, BinaryIO

import jax.numpy as jnp
import msgpack
import numpy as np
from flax import nnx, serialization, traverse_util

from errors import InputError, printable
from pretrained.parameter_names import check_unconditional, flax_layout
from pretrained.stored_parameters import (
    Config,
    Trained,
    export_params,
    load_params,
    part,
    to_number,
    to_step,
)
from readers.files import MAY_LACK, check_regular, check_structure, is_real, reading

CODE_BASE = "the official Flax code"
STATE = {
    "step": object,
    "optimizer": {"target": dict, "state": {"step": object, "param_states": dict}},
    "model_state": (dict, type(None)),
    "ema_rate": object,
    "params_ema": dict,
}
"""The structure of a training state; see `readers.files.mismatch`."""
MAX_VALUES, MAX_NAMES, MAX_AXES = 10**6, 2**16, 8
"""In a file, dictionary and list. msgpack reserves memory for the lengths that a file states."""
MOMENTS = {"mu": "grad_ema", "nu": "grad_sq_ema"}  # Fields of Trained: names in the file.


def load(path: str | Path) -> Any:
    """Return the content of a Flax file. Raise InputError if it is damaged."""
    check_regular(path)
    left = MAX_VALUES

    def count(values: Any) -> Any:
        nonlocal left
        left -= 1 + len(values)
        if left < 0:
            raise ValueError(f"it has more than {MAX_VALUES:,} values")
        return values

    with reading(path, MAY_LACK, " as Flax msgpack"):
        return msgpack.unpackb(
            Path(path).read_bytes(),
            ext_hook=_array,
            list_hook=count,
            object_hook=count,
            max_array_len=MAX_AXES,
            max_map_len=MAX_NAMES,
        )


def _array(kind: int, content: bytes) -> np.ndarray | np.generic:
    """Return an array or number of Flax, which are extensions 1 and 3 of msgpack."""
    shape, name, numbers = msgpack.unpackb(content, raw=True, max_array_len=MAX_AXES)
    dtype = np.dtype(jnp.bfloat16 if name == b"bfloat16" else name[:10].decode())
    if kind not in (1, 3) or not (is_real(dtype) or dtype.kind == "b"):
        raise ValueError("it has an object that is no array of numbers")
    array = np.frombuffer(numbers, dtype).reshape(shape)
    return array if kind == 1 else array[()]


def read(path: Path, network: nnx.Module, config: Config) -> Trained:
    """Read a checkpoint of the official JAX code, whatever the config."""
    check_unconditional(network, CODE_BASE)
    state, layout = load(path), flax_layout(network)
    check_structure(state, STATE, path, "its training state")
    if state["model_state"]:
        names = ", ".join(map(printable, state["model_state"]))
        raise InputError(
            f"{path} has a model_state with {names}; it must be empty, as no supported network has "
            f"any."
        )
    optimizer = state["optimizer"]
    trees = (optimizer["target"], state["params_ema"], optimizer["state"]["param_states"])
    with reading(path):
        flatten: Any = functools.partial(traverse_util.flatten_dict, sep="/")
        params, ema, moments = map(flatten, trees)
    trained = Trained(
        step=to_step(path, "step", state["step"]),
        params=load_params(layout, params, str(path)),
        ema=load_params(layout, ema, str(path)),
        ema_rate=to_number(path, "ema_rate", state["ema_rate"]),
    )
    if not moments:
        return trained
    mu, nu = (
        load_params(layout, part(moments, end=f"/{kind}"), f"{path} (its {kind})")
        for kind in MOMENTS.values()
    )
    updates = to_step(path, "the optimizer's step", optimizer["state"]["step"])
    return trained._replace(mu=mu, nu=nu, updates=updates)


def write(file: BinaryIO, trained: Trained, network: nnx.Module, config: Config) -> None:
    """Write a checkpoint of the official JAX code; `read` inverts it."""
    check_unconditional(network, CODE_BASE)
    layout = flax_layout(network)
    moments = {
        f"{name}/{kind}": value
        for field, kind in MOMENTS.items()
        for name, value in export_params(layout, getattr(trained, field)).items()
    }
    state = {  # Names with slashes become nested dictionaries.
        "step": np.array(trained.step, np.int32),
        "optimizer/target": export_params(layout, trained.params),
        "optimizer/state/step": np.array(trained.updates, np.int32),
        "optimizer/state/param_states": moments,
        "lr": np.array(config.optim.lr, np.float32),
        "model_state": {},
        "ema_rate": np.array(config.model.ema_rate, np.float32),
        "params_ema": export_params(layout, trained.ema),
        "rng": np.array([0, config.seed], np.uint32),
    }
    flat = traverse_util.flatten_dict(state, keep_empty_nodes=True, sep="/")
    file.write(serialization.msgpack_serialize(traverse_util.unflatten_dict(flat, sep="/")))
