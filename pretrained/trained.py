"""The content of a checkpoint, independent of the format of its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, cast

import ml_collections
import numpy as np
from flax import traverse_util

from errors import InputError, printable
from models.building import Params
from readers.files import MAX_STEP

Config = ml_collections.ConfigDict
Tensors = dict[str, np.ndarray]
"""The arrays of a file by name."""


class Trained(NamedTuple):
    """The content of a checkpoint, with parameters as nested dictionaries of float32 arrays.

    Attributes:
      step: number of training steps done.
      params: parameters.
      ema: moving average of the parameters, used for sampling.
      mu, nu: Adam's first and second moments, or None if the file has none.
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
    """Return the leaves of nested dictionaries by their keys, which are texts, joined by '/'."""
    try:
        return cast(Tensors, traverse_util.flatten_dict(tree, sep="/"))
    except (RecursionError, TypeError) as error:
        raise ValueError("the names of its parameters are not nested strings") from error


def part(tensors: Tensors, start: str = "", end: str = "") -> Tensors:
    """Return the arrays whose names start and end so, by the names between."""
    return {
        name.removeprefix(start).removesuffix(end): value
        for name, value in tensors.items()
        if name.startswith(start) and name.endswith(end)
    }


def to_step(path: Path, name: str, value: Any) -> int:
    """Return a number of steps, which is a number, an array () or decimal text in a file."""
    if isinstance(value, str) and value.isdecimal() and len(value) <= len(str(MAX_STEP)):
        value = int(value)
    number = to_number(path, name, value, MAX_STEP)
    if number != int(number):
        raise InputError(f"{path} is damaged: {name} is {number}; it must be an integer.")
    return int(number)


def to_number(path: Path, name: str, value: Any, highest: int = 1) -> int | float:
    """Return a number or an array's only entry. Raises InputError unless 0 <= n <= highest."""
    if isinstance(value, (np.ndarray, np.generic)) and value.size == 1:
        value = value.item()
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= highest:
        return value  # NaN is not in the range.
    is_short = isinstance(value, (int, float)) or (isinstance(value, str) and len(value) <= 50)
    shown = printable(repr(value)) if is_short else f"of type {type(value).__name__}"
    raise InputError(
        f"{path} is damaged: {name} is {shown}; it must be a number from 0 to {highest:,}."
    )
