"""Conversion between the parameters of a network and the tensors of a file.

A layout is a list of `StoredParameter`s, one for each parameter. Files are read and written with
the same layout, so that `export_params` and `load_params` invert each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, cast

import numpy as np
from flax import traverse_util
from jax import Array

from errors import InputError, printable
from models.building import Params
from readers.files import is_real, not_finite

Path = tuple[str | int, ...]
"""The keys of a parameter or layer in nested dictionaries of parameters."""

# The axes of PyTorch's parameters, as indices of our axes.
VECTOR = (0,)
MATRIX = (1, 0)
KERNEL = (3, 2, 0, 1)


class StoredParameter(NamedTuple):
    """How a file stores one parameter of a network.

    Attributes:
      path: keys in our nested dictionaries, or () for a tensor that the format requires but on
        which no output of the network depends.
      shape: shape in our network.
      names: accepted names in the file; the first one is written.
      axes: axes in the file, as indices of our axes.
      padded_shape: shape in a file that adds axes of length 1, or None.
      trained: whether PyTorch trains it, so that the file has an average of it.
    """

    path: Path
    shape: tuple[int, ...]
    names: tuple[str, ...]
    axes: tuple[int, ...]
    padded_shape: tuple[int, ...] | None = None
    trained: bool = True

    @property
    def file_shapes(self) -> tuple[tuple[int, ...], ...]:
        """The accepted shapes in the file; the first one is written."""
        plain = tuple(self.shape[axis] for axis in self.axes)
        return (plain,) if self.padded_shape is None else (self.padded_shape, plain)

    @property
    def has_gradient(self) -> bool:
        """Whether it has gradients, so that an optimizer has moments of it."""
        return self.trained and bool(self.path)

    def to_file(self, value: np.ndarray | Array) -> np.ndarray:
        """Convert a parameter of our network to the array in the file."""
        transposed = np.asarray(value, np.float32).transpose(self.axes)
        return np.ascontiguousarray(transposed.reshape(self.file_shapes[0]))

    def from_file(self, tensor: np.ndarray) -> np.ndarray:
        """Invert `to_file`; float32."""
        with np.errstate(over="ignore"):  # Values beyond float32 become infinite.
            value = np.asarray(tensor, np.float32).reshape(self.file_shapes[-1])
        return np.ascontiguousarray(value.transpose(np.argsort(self.axes)))


Layout = list[StoredParameter]


def load_params(layout: Layout, tensors: Mapping[str, np.ndarray], source: str) -> Params:
    """Return the parameters that the file `source` stores as `tensors`, as nested dictionaries.

    Raises InputError for the first tensor that is missing, has another shape or values that are
    not finite, or is left over.
    """
    params = {stored.path: _load(stored, tensors, source) for stored in layout}
    params.pop((), None)
    known = {name for stored in layout for name in stored.names}
    for name in tensors:
        if name not in known:
            raise InputError(
                f"{source} does not fit the config: the network has no parameter for "
                f"{printable(name)}, which is in the file."
            )
    return traverse_util.unflatten_dict(params)


def _load(stored: StoredParameter, tensors: Mapping[str, np.ndarray], source: str) -> np.ndarray:
    """Return the value of a parameter, float32."""
    expected = " or ".join(map(str, stored.file_shapes))
    present = [name for name in stored.names if name in tensors]
    if not present:
        raise InputError(
            f"{source} does not fit the config: {stored.names[0]}, which the network has with "
            f"shape {expected}, is not in the file."
        )
    tensor = tensors[present[0]]
    if not isinstance(tensor, np.ndarray) or not is_real(tensor.dtype):
        kind = tensor.dtype if isinstance(tensor, np.ndarray) else type(tensor).__name__
        raise InputError(
            f"{source} is damaged: {present[0]} is of type {kind}; it must be an array of real "
            "numbers."
        )
    if tensor.shape not in stored.file_shapes:
        raise InputError(
            f"{source} does not fit the config: {present[0]} has shape {tensor.shape} in the file "
            f"and {expected} in the network."
        )
    if any(not np.array_equal(tensor, tensors[name]) for name in present[1:]):
        raise InputError(
            f"{source} is inconsistent: {' and '.join(present)} should be the same tensor."
        )
    value = stored.from_file(tensor)
    if not_finite({present[0]: value}):
        raise InputError(
            f"{source} is damaged: {present[0]} has values that are not finite numbers."
        )
    return value


def export_params(layout: Layout, params: Params) -> dict[str, np.ndarray]:
    """Return the tensors of a file by name; those on which no output depends are 0."""
    flat = cast(dict[Path, Array], traverse_util.flatten_dict(params))
    tensors = {}
    for stored in layout:
        value = flat[stored.path] if stored.path else np.zeros(stored.shape)
        tensors[stored.names[0]] = stored.to_file(value)
    return tensors
