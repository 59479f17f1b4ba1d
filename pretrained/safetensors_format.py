"""Checkpoints as safetensors, the output of `--mode=export --target=NAME.safetensors`.

Names of tensors are official Flax names after 'params/', 'ema/', 'mu/' or 'nu/'. This is the
only format for networks that are conditioned on classes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import BinaryIO

import safetensors.numpy
from flax import nnx

from errors import InputError, printable
from pretrained.parameter_names import flax_layout
from pretrained.stored_parameters import export_params, load_params
from pretrained.trained import Config, Tensors, Trained, to_step
from readers.files import read_safetensors

TREES = ("params", "ema", "mu", "nu")  # The fields of Trained that contain parameters.


def load(path: str | Path) -> tuple[dict[str, str], Tensors]:
    """Return the metadata and the arrays of a file. Raises InputError if it is damaged."""
    return read_safetensors(Path(path))


def read(path: Path, network: nnx.Module, config: Config) -> Trained:
    """Read a file that `write` made.

    Raises InputError if the file is damaged, has another origin or does not fit `network`.
    """
    del config
    metadata, tensors = load(path)
    _check_origin(path, metadata, tensors)
    layout = flax_layout(network)
    trees = {}
    for tree in TREES:
        prefix = f"{tree}/"
        found = {
            name.removeprefix(prefix): value
            for name, value in tensors.items()
            if name.startswith(prefix)
        }
        trees[tree] = load_params(layout, found, f"{path} (its {tree})")
    step, updates = (to_step(path, name, metadata.get(name)) for name in ("step", "updates"))
    return Trained(step=step, updates=updates, **trees)


def _check_origin(path: Path, metadata: dict[str, str], tensors: Tensors) -> None:
    """Raise InputError unless the file was written by `write`."""
    unknown = [name for name in tensors if name.partition("/")[0] not in TREES]
    if "step" in metadata and not unknown:
        return
    found = f" (it contains {printable(unknown[0])})" if unknown else ""
    raise InputError(
        f"{path} was not written by --mode=export{found}. To import a diffusers model, pass the "
        f"folder that contains its config.json."
    )


def write(file: BinaryIO, trained: Trained, network: nnx.Module, config: Config) -> None:
    """Write `trained`, with the config as JSON in the metadata; `read` inverts it."""
    layout = flax_layout(network)
    tensors = {}
    for tree in TREES:
        for name, value in export_params(layout, getattr(trained, tree)).items():
            tensors[f"{tree}/{name}"] = value
    metadata = {
        "step": str(trained.step),
        "updates": str(trained.updates),
        "config": json.dumps(config.to_dict()),
    }
    file.write(safetensors.numpy.save(tensors, metadata))
