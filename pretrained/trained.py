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
    """Return the leaves of nested dictionaries, with their keys joined by '/'.

    Raises ValueError if a key is not a string, or the nesting is too deep.
    """
    try:
        return cast(Tensors, traverse_util.flatten_dict(tree, sep="/"))
    except (RecursionError, TypeError) as error:
        raise ValueError("the names of its parameters are not nested strings") from error


def to_step(path: Path, name: str, value: Any) -> int:
    """Return a number of steps, which a file may store as a number, an array () or decimal text.

    Raises InputError unless it is an integer from 0 to MAX_STEP.
    """
    number = _to_number(value)
    if isinstance(value, str) and value.isdecimal() and len(value) <= len(str(MAX_STEP)):
        number = int(value)
    if number is None or not 0 <= number <= MAX_STEP or number != int(number):
        raise InputError(
            f"{path} is damaged: {name} is {_shown(value)}; it must be an integer from 0 to "
            f"{MAX_STEP:,}."
        )
    return int(number)


def to_rate(path: Path, name: str, value: Any) -> float:
    """Return the decay of a moving average. Raises InputError unless it is from 0 to 1."""
    number = _to_number(value)
    if number is None or not 0 <= number <= 1:
        raise InputError(
            f"{path} is damaged: {name} is {_shown(value)}; it must be a number from 0 to 1."
        )
    return float(number)


def _to_number(value: Any) -> int | float | None:
    """Return a number or the number in an array or tensor of one entry; None for anything else."""
    try:
        value = value.item() if hasattr(value, "item") else value
    except Exception:  # Arrays and tensors of several entries raise different types.
        return None
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if is_number else None


def _shown(value: Any) -> str:
    number = _to_number(value)
    if number is None and (not isinstance(value, str) or len(value) > 50):
        return f"of type {type(value).__name__}"
    return printable(repr(value if number is None else number))


def check_entries(path: Path, state: Any, expected: set[str]) -> None:
    """Raise InputError unless `state` of the official code has exactly the `expected` entries."""
    present = set(state) if isinstance(state, dict) else set()
    for key in sorted(expected - present):
        raise InputError(f"{path} is not a training state of the official code: it has no {key!r}.")
    for key in sorted(map(printable, present - expected)):
        raise InputError(
            f"{path} has an entry {key!r} that a training state of the official code does not have."
        )
