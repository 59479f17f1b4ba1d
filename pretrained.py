"""Reads other people's checkpoints into our networks.

The official Flax code numbers the layers of a class in the order of their construction inside the parent. Ours are
stored in that order too, and modules that merely group layers (lists, levels) have no counterpart there; so a walk
through a network gives the official path of every parameter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx, serialization, traverse_util

from errors import InputError
from models import layers, ncsnpp

GROUPS = (nnx.List, ncsnpp.DownLevel, ncsnpp.UpLevel)
LAYER_NAMES = {"Linear": "Dense"}
LEAF_NAMES = {layers.NIN: {"kernel": "W", "bias": "b"}}


def official_parameters(network: nnx.Module) -> dict[str, nnx.Param]:
    """The parameters of a network under their official Flax paths, such as 'ResnetBlockBigGANpp_3/Conv_0/kernel'."""
    return dict(_walk(network, ""))


def _walk(module: nnx.Module, prefix: str) -> Iterator[tuple[str, nnx.Param]]:
    counts = Counter()
    for child in _children(module):
        name = LAYER_NAMES.get(type(child).__name__, type(child).__name__)
        path = f"{prefix}{name}_{counts[name]}/"
        counts[name] += 1
        yield from _walk(child, path)
    names = LEAF_NAMES.get(type(module), {})
    for name, value in vars(module).items():
        if isinstance(value, nnx.Param) and value[...] is not None:
            yield prefix + names.get(name, name), value


def _children(module: nnx.Module) -> Iterator[nnx.Module]:
    values = module if isinstance(module, nnx.List) else vars(module).values()
    for value in values:
        if isinstance(value, GROUPS):
            yield from _children(value)
        elif isinstance(value, nnx.Module):
            yield value


def read_flax(path: str | Path) -> dict[str, Any]:
    """The official msgpack checkpoint at `path` as nested dictionaries of arrays (the State of the official code)."""
    return serialization.msgpack_restore(Path(path).read_bytes())


def load_official(network: nnx.Module, params: Mapping[str, Any]) -> None:
    """Overwrites the parameters of `network` with official ones, given as nested dictionaries of arrays.

    Raises InputError naming the first parameter that is missing, left over or of another shape. GroupNorm parameters of
    shape (1, 1, 1, C), as flax 0.3 wrote them, are accepted for (C,).
    """
    ours, theirs = official_parameters(network), traverse_util.flatten_dict(params, sep="/")
    for path in sorted(ours.keys() ^ theirs.keys()):
        where = "the checkpoint lacks" if path in ours else "the network has no place for"
        raise InputError(f"The checkpoint does not fit the network: {where} {path}.")
    for path, param in ours.items():
        value = np.asarray(theirs[path])
        shape = param[...].shape
        if value.shape != shape and value.shape != (1, 1, 1, *shape):
            raise InputError(f"The checkpoint does not fit the network: {path} is {value.shape}, not {shape}.")
        param[...] = jnp.asarray(value.reshape(shape), param[...].dtype)
