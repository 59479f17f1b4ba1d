"""The content of a checkpoint, independent of the format of its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, cast

import ml_collections
import numpy as np
from flax import traverse_util

from errors import InputError
from models.building import Params

Config = ml_collections.ConfigDict
Tensors = dict[str, np.ndarray]
"""The arrays of a file by name."""


class Trained(NamedTuple):
    """The content of a checkpoint, with parameters as nested dictionaries of float32 arrays.

    Attributes:
      step: number of training steps done.
      params: parameters.
      ema: moving average of the parameters, used for sampling.
      mu: Adam's first moments, or None if the file has none.
      nu: Adam's second moments, or None if the file has none.
      updates: number of gradients averaged in `mu` and `nu`.
      ema_rate: decay of the moving average, or None if the file does not contain it.
    """

    step: int
    params: Params
    ema: Params
    mu: Params | None = None
    nu: Params | None = None
    updates: int = 0
    ema_rate: float | None = None


def flatten(tree: dict[str, Any]) -> Tensors:
    """Return the leaves of nested dictionaries, with their keys joined by '/'."""
    return cast(Tensors, traverse_util.flatten_dict(tree, sep="/"))


def check_entries(path: Path, state: Any, expected: set[str]) -> None:
    """Raise InputError unless `state` of the official code has exactly the `expected` entries."""
    present = set(state) if isinstance(state, dict) else set()
    for key in sorted(expected - present):
        raise InputError(f"{path} is not a training state of the official code: it has no {key!r}.")
    for key in sorted(map(str, present - expected)):
        raise InputError(
            f"{path} has an entry {key!r} that a training state of the official code does not have."
        )
