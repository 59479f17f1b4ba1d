"""States on the way that a loop keeps, to show them."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array


class Frames:
    """The states after some of n steps, in an array (B, F + 1, ...) that a loop carries.

    Args:
      n: the number of steps.
      shown: the numbers (F,) of the steps, from 0, after which the state is kept.
    """

    def __init__(self, n: int, shown: np.ndarray | Sequence[int]) -> None:
        self.count = len(shown)
        # The states after other steps are written to an extra frame, which is dropped.
        self._positions = np.full(n, self.count)
        self._positions[np.asarray(shown, int)] = np.arange(self.count)

    def start(self, x: Array) -> Array:
        """Return the array for states of the shape of x (B, ...), empty if none is kept."""
        return jnp.zeros((len(x), self.count + 1 if self.count else 0, *x.shape[1:]))

    def put(self, frames: Array, step: int | Array, x: Array) -> Array:
        """Return the array with the state x (B, ...) after a step, if it is one of those kept."""
        if not self.count:
            return frames
        return frames.at[:, jnp.asarray(self._positions)[step]].set(x)

    def finish(self, frames: Array) -> Array:
        """Return the states (F, B, ...)."""
        return frames[:, : self.count].swapaxes(0, 1)
