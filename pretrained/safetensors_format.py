"""Checkpoints as safetensors, the output of `--mode=export --target=NAME.safetensors`.

Names of tensors are official Flax names after 'params/', 'ema/', 'mu/' or 'nu/'; a file of
the moving average only has 'ema/' alone. The metadata hold the config. This is the only format for
networks that are conditioned on classes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx

from configs.default import not_data, reset
from errors import InputError, brief, printable
from models.building import Params
from pretrained.parameter_names import flax_layout
from pretrained.stored_parameters import (
    Config,
    Tensors,
    Trained,
    export_params,
    load_params,
    part,
    to_step,
)
from readers.files import MAX_TEXT, MAY_LACK, check_regular, parse_json, reading

TREES = ("params", "ema", "mu", "nu")  # The fields of Trained that contain parameters.


def load(path: str | Path) -> tuple[dict[str, str], Tensors]:
    """Return the metadata and the arrays of a file. Raise InputError if it is damaged."""
    check_regular(path)
    with reading(path, MAY_LACK, " as safetensors"):
        with open(path, "rb") as stream:
            if int.from_bytes(stream.read(8), "little") > MAX_TEXT:
                raise ValueError(f"its header has more than {MAX_TEXT:,} bytes")
        with safetensors.safe_open(path, "numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return file.metadata() or {}, tensors


def read(path: Path, network: nnx.Module, config: Config) -> Trained:
    """Read a file that `write` or `write_average` made, whatever the config."""
    metadata, tensors = _load_own(path)
    layout = flax_layout(network)

    def read_tree(name: str) -> Params:
        return load_params(layout, part(tensors, f"{name}/"), f"{path} (its {name})")

    step, updates = (to_step(path, name, metadata.get(name)) for name in ("step", "updates"))
    if all(name.startswith("ema/") for name in tensors):
        average = read_tree("ema")
        return Trained(step=step, params=average, ema=average)
    params, ema, mu, nu = map(read_tree, TREES)
    return Trained(step, params, ema, mu, nu, updates)


def read_config(path: Path) -> dict[str, Any]:
    """Return the config in the metadata of a file. Raise InputError if there is none."""
    metadata, _ = _load_own(path)
    if not metadata.get("config"):
        raise InputError(f"{path} contains no config; name one with --config.")
    try:
        config = parse_json(metadata["config"])
    except ValueError as error:
        raise InputError(f"{path} is damaged: its config is not JSON: {brief(error)}.") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} is damaged: its config is {printable(config)[:80]}.")
    return config


def _load_own(path: Path) -> tuple[dict[str, str], Tensors]:
    """Return what `load` returns. Raise InputError if other programs wrote the file."""
    metadata, tensors = load(path)
    unknown = [name for name in tensors if name.partition("/")[0] not in TREES]
    if "step" in metadata and not unknown:
        return metadata, tensors
    found = f" (it contains {printable(unknown[0])})" if unknown else ""
    raise InputError(
        f"{path} was not written by --mode=export{found}. To import a diffusers model, pass the "
        f"folder that contains its config.json."
    )


def write(file: BinaryIO, trained: Trained, network: nnx.Module, config: Config) -> None:
    """Write `trained`, with the config as JSON in the metadata; `read` inverts it."""
    _write(file, trained, network, config, TREES)


def write_average(file: BinaryIO, trained: Trained, network: nnx.Module, config: Config) -> None:
    """Write the moving average only, in half precision: an eighth of the size, to sample from.

    `read` returns it as the parameters and as their average. The config names neither files
    nor code. Raises InputError if a parameter is beyond the range of half precision.
    """
    _write(file, trained, network, reset(config, not_data(config)), ("ema",))


def _write(
    file: BinaryIO, trained: Trained, network: nnx.Module, config: Config, trees: Sequence[str]
) -> None:
    layout, tensors = flax_layout(network), {}
    dtype = np.dtype(np.float32 if "params" in trees else np.float16)
    for tree in trees:
        for name, value in export_params(layout, getattr(trained, tree)).items():
            if np.max(np.abs(value), initial=0) > np.finfo(dtype).max:
                raise InputError(f"{tree}/{name} has values that {dtype} cannot hold.")
            tensors[f"{tree}/{name}"] = value.astype(dtype)
    metadata = {
        "step": str(trained.step),
        "updates": str(trained.updates),
        "config": json.dumps(config.to_dict(), sort_keys=True),
    }
    file.write(safetensors.numpy.save(tensors, metadata))
