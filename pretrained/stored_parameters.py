"""The content of a checkpoint, and how the tensors of a file become parameters of a network.

A layout is a list of `StoredParameter`s, one for each parameter. Files are read and written with
the same layout, so that `export_params` and `load_params` invert each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import ml_collections
import numpy as np
from flax import traverse_util
from jax import Array

from errors import InputError, printable
from models.building import Params
from readers.files import MAX_STEP, is_real, not_finite

Config = ml_collections.ConfigDict
Tensors = dict[str, np.ndarray]
"""The arrays of a file by name."""
Path = tuple[str | int, ...]
"""The keys of a parameter or layer in nested dictionaries of parameters."""

# The axes of PyTorch's parameters, as indices of our axes.
VECTOR = (0,)
MATRIX = (1, 0)
KERNEL = (3, 2, 0, 1)


class Trained(NamedTuple):
    """The content of a checkpoint, with parameters as nested dictionaries of float32 arrays."""

    step: int  # The number of training steps done.
    params: Params
    ema: Params  # The moving average of the parameters, used for sampling.
    mu: Params | None = None  # Adam's first and second moments, or None if the file has none.
    nu: Params | None = None
    updates: int = 0  # The number of gradients averaged in `mu` and `nu`.
    ema_rate: float | None = None  # The decay of the average; None if the file has none.


class StoredParameter(NamedTuple):
    """How a file stores one parameter of a network. Files may add or omit axes of length 1."""

    path: Path  # () for a tensor that the format requires, but on which no output depends.
    shape: tuple[int, ...]  # That in our network.
    names: tuple[str, ...]  # Accepted names in the file; the first one is written.
    axes: tuple[int, ...]  # Axes in the file, as indices of our axes.
    padded_shape: tuple[int, ...] | None = None  # With axes of length 1 that are written.
    trained: bool = True  # Whether PyTorch trains it, so that the file has its average.

    @property
    def file_shape(self) -> tuple[int, ...]:
        """The shape in the file."""
        return self.padded_shape or tuple(self.shape[axis] for axis in self.axes)

    @property
    def has_gradient(self) -> bool:
        """Whether it has gradients, so that an optimizer has moments of it."""
        return self.trained and bool(self.path)

    def to_file(self, value: np.ndarray | Array) -> np.ndarray:
        """Convert a parameter of our network to the array in the file."""
        transposed = np.asarray(value, np.float32).transpose(self.axes)
        return np.ascontiguousarray(transposed.reshape(self.file_shape))

    def from_file(self, tensor: np.ndarray) -> np.ndarray:
        """Invert `to_file`; float32."""
        with np.errstate(over="ignore"):  # Values beyond float32 become infinite.
            value = np.asarray(tensor, np.float32).reshape([self.shape[axis] for axis in self.axes])
        return np.ascontiguousarray(value.transpose(np.argsort(self.axes)))


Layout = list[StoredParameter]


def load_params(layout: Layout, tensors: Mapping[str, np.ndarray], source: str) -> Params:
    """Return the parameters that the file `source` stores as `tensors`, as nested dictionaries.

    Raises InputError for the first tensor that is missing, has another shape or values that are
    not finite, or is left over.
    """
    params = {stored.path: _load(stored, tensors, source) for stored in layout}
    params.pop((), None)
    unknown = tensors.keys() - {name for stored in layout for name in stored.names}
    if unknown:
        raise InputError(
            f"{source} does not fit the config: the network has no parameter for "
            f"{printable(next(name for name in tensors if name in unknown))}, which is in the file."
        )
    return traverse_util.unflatten_dict(params)


def _load(stored: StoredParameter, tensors: Mapping[str, np.ndarray], source: str) -> np.ndarray:
    """Return the value of a parameter, float32."""
    present = [name for name in stored.names if name in tensors]
    if not present:
        raise InputError(
            f"{source} does not fit the config: {stored.names[0]}, which the network has with "
            f"shape {stored.file_shape}, is not in the file."
        )
    name, tensor = present[0], tensors[present[0]]
    if not isinstance(tensor, np.ndarray) or not is_real(tensor.dtype):
        kind = tensor.dtype if isinstance(tensor, np.ndarray) else type(tensor).__name__
        raise InputError(
            f"{source} is damaged: {name} is of type {kind}; it must be an array of real numbers."
        )
    if _longer(tensor.shape) != _longer(stored.file_shape):
        raise InputError(
            f"{source} does not fit the config: {name} has shape {tensor.shape} in the file and "
            f"{stored.file_shape} in the network."
        )
    value = stored.from_file(tensor)
    problem = "are not finite" if not_finite({name: value}) else ""
    if not all(np.array_equal(tensor, tensors[each]) for each in present):
        problem = problem or "differ"
    if problem:
        raise InputError(f"{source} is damaged: values of {' and '.join(present)} {problem}.")
    return value


def _longer(shape: tuple[int, ...]) -> list[int]:
    """Return the sides that are not 1."""
    return [side for side in shape if side != 1]


def export_params(layout: Layout, params: Params) -> dict[str, np.ndarray]:
    """Return the tensors of a file by name; those on which no output depends are 0."""
    flat = cast(dict[Path, Array], traverse_util.flatten_dict(params))
    tensors = {}
    for stored in layout:
        value = flat[stored.path] if stored.path else np.zeros(stored.shape)
        tensors[stored.names[0]] = stored.to_file(value)
    return tensors


def part(tensors: Tensors, start: str = "", end: str = "") -> Tensors:
    """Return the arrays whose names start and end so, by the names between."""
    return {
        name.removeprefix(start).removesuffix(end): value
        for name, value in tensors.items()
        if name.startswith(start) and name.endswith(end)
    }


def to_step(path: object, name: str, value: Any) -> int:
    """Return a number of steps, which is a number, an array () or decimal text in a file."""
    if isinstance(value, str) and value.isdecimal() and len(value) <= len(str(MAX_STEP)):
        value = int(value)
    number = to_number(path, name, value, MAX_STEP)
    if number != int(number):
        raise InputError(f"{path} is damaged: {name} is {number}; it must be an integer.")
    return int(number)


def to_number(path: object, name: str, value: Any, highest: int = 1) -> int | float:
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
