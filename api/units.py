"""Events x in the units of a user's data, x = loc + scale z, where z is what the score is of.

Samplers, densities and methods of posteriors compute with z. `Prior` and `Posterior` convert their
arguments and results by `Units`, the only place where loc and scale are used.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from api.arguments import show
from controllable.measurements import Evidence, Measurement
from controllable.operators import Operator, decompose
from errors import InputError

MOST_RATIO = 100  # of scales of entries; a decomposition takes 1e-3 of the largest value for 0


@dataclasses.dataclass(frozen=True, eq=False)
class Units:
    """The map x = loc + scale z of events of a shape; `loc` and `scale` broadcast to it."""

    shape: tuple[int, ...]
    loc: np.ndarray
    scale: np.ndarray

    def __post_init__(self) -> None:
        """Raise InputError unless loc and scale broadcast to an event, and scale is positive."""
        for name in ("loc", "scale"):
            value = getattr(self, name)
            with np.errstate(all="ignore"):
                object.__setattr__(self, name, value.astype(np.float32))
            sizes = zip(value.shape[::-1], self.shape[::-1])
            if value.ndim > len(self.shape) or any(n not in (1, size) for n, size in sizes):
                raise InputError(
                    f"{name} has shape {value.shape}; it must be a number or have the shape of an "
                    f"event, {self.shape}."
                )
        if not (self.scale > 0).all():
            raise InputError(f"scale = {show(self.scale.tolist())} must be positive.")

    @property
    def is_identity(self) -> bool:
        return not self.loc.any() and bool((self.scale == 1).all())

    def to_data(self, z: Any) -> Any:
        """Return x for z (..., *shape)."""
        return z if self.is_identity else self.loc + self.scale * z

    def standardized(self, x: Any) -> Any:
        """Return z for x (..., *shape)."""
        return x if self.is_identity else (x - self.loc) / self.scale

    @property
    def _scales(self) -> np.ndarray:
        return np.broadcast_to(self.scale, self.shape).astype(np.float64)

    @property
    def log_volume(self) -> float:
        """log |dx / dz|."""
        return float(np.log(self._scales).sum())

    @property
    def typical_scale(self) -> float:
        """The root mean square of the scales of all entries."""
        return math.sqrt(np.square(self._scales).mean())

    def range_of_z(self, support: tuple[float, float] | None) -> tuple[float, float] | None:
        """Return the smallest and the largest z for a range of x."""
        if support is None or self.is_identity:
            return support
        low, high = ((each - self.loc) / self.scale for each in support)
        return float(low.min()), float(high.max())

    def measurement(self, model: Evidence) -> tuple[Evidence, Array | float]:
        """Return how y - offset depends on z, and the offset, given how y depends on x.

        Raises InputError if it cannot be decomposed.
        """
        if self.is_identity:
            return model, 0.0
        if isinstance(model, Measurement):
            operator = _operator_of_z(model.operator, self)
            loc = np.broadcast_to(self.loc, (1, *self.shape))
            return dataclasses.replace(model, operator=operator), model.operator.forward(loc)[0]
        changed: Any = model  # All others have a function of x.
        return dataclasses.replace(changed, function=_OfZ(changed.function, self)), 0.0


@dataclasses.dataclass(frozen=True)
class _OfZ:
    """A function of an event x, as one of z; equal if function and units are."""

    function: Callable[..., Array]
    units: Units

    def __call__(self, z: Array, *others: Any) -> Array:
        return self.function(self.units.to_data(z), *others)


@functools.lru_cache(maxsize=16)  # The same operator again needs no new compilation.
def _operator_of_z(operator: Operator, units: Units) -> Operator:
    """Return z -> A (scale z) for an operator A."""
    scale = units.scale
    if (scale == scale.flat[0]).all():
        values = np.asarray(operator.singular_values) * scale.flat[0]
        return dataclasses.replace(operator, singular_values=values)

    if scale.max() > MOST_RATIO * scale.min():
        raise InputError(
            f"scale holds {scale.min():g} and {scale.max():g}; with an Operator, the largest ratio "
            f"is {MOST_RATIO}. Pass a function of one event instead, and noise > 0."
        )

    def forward(z: Array) -> Array:
        return operator.forward((scale * z)[None])[0]

    found = decompose(forward, units.shape)
    shape = jnp.shape(forward(jnp.zeros(units.shape)))
    return dataclasses.replace(
        found,
        to_measured=lambda c: found.to_measured(c).reshape(-1, *shape),
        from_measured=lambda y: found.from_measured(y.reshape(len(y), -1)),
    )
