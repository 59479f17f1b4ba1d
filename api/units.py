"""Events x in the units of a user's data, x = loc + scale z, where z is what the score is of."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Units:
    """The map x = loc + scale z of events of a shape; `loc` and `scale` broadcast to it."""

    shape: tuple[int, ...]
    loc: np.ndarray
    scale: np.ndarray

    def to_data(self, z: Any) -> Any:
        """Return x for z (..., *shape)."""
        return self.loc + self.scale * z

    def standardized(self, x: Any) -> Any:
        """Return z for x (..., *shape)."""
        return (x - self.loc) / self.scale

    @property
    def log_volume(self) -> float:
        """log |dx/dz|."""
        return float(np.log(np.broadcast_to(self.scale, self.shape)).sum())
