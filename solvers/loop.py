"""Samplers as loops whose steps a program can execute in parts, and what such loops need.

Random numbers have one key per image, so that the noise of an image depends on its own key only,
not on the batch that contains the image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool, Float, Int

Carry = Any
"""A pytree of arrays whose first axis counts images."""


class Loop(NamedTuple):
    """A sampler of n steps.

    Attributes:
      n: the number of steps. An adaptive solver is a loop of one step.
      start: the first carry, from states (B, ...).
      step: (number of the step, from 0, carry) -> carry.
      finish: the result, from the last carry.
    """

    n: int
    start: Callable[[Array], Carry]
    step: Callable[[Any, Carry], Carry]
    finish: Callable[[Carry], Any]

    def run(self, x: Array) -> Any:
        """Execute all steps from the states x (B, ...), and return the result."""
        carry = self.start(x)
        if self.n == 1:
            return self.finish(self.step(0, carry))
        return self.finish(lax.fori_loop(0, self.n, self.step, carry))

    def then(self, function: Callable[[Any], Any]) -> Loop:
        """Return the loop whose result is `function` of this loop's result."""
        finish = self.finish
        return self._replace(finish=lambda carry: function(finish(carry)))


def single(solve: Callable[[Array], Any]) -> Loop:
    """Return the loop whose only step is `solve`, from states to the result."""
    return Loop(1, lambda x: x, lambda _, x: solve(x), lambda result: result)


# --- states on the way, and states that are not finite --------------------------------------------


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


def is_finite(x: Array) -> Bool[Array, " b"]:
    """Return whether all entries of each image of x (B, ...) are finite."""
    return jnp.isfinite(x).all(axis=tuple(range(1, x.ndim)))


def note_bad(bad_step: Array, x: Array, step: int | Array) -> Int[Array, " b"]:
    """Return `bad_step` (B,) after step number `step`, whose result is x (B, ...)."""
    return jnp.where((bad_step == 0) & ~is_finite(x), step, bad_step)


# --- random numbers -------------------------------------------------------------------------------


def image_keys(key: Array, indices: Array | np.ndarray) -> Array:
    """Return the keys (B,) of the images with the given indices (B,), derived from `key`."""
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)


def fold_in(keys: Array, data: int | Array) -> Array:
    """Apply jax.random.fold_in to each of the keys (B,)."""
    return jax.vmap(lambda key: jax.random.fold_in(key, data))(keys)


def standard_normal(keys: Array, shape: tuple[int, ...]) -> Float[Array, " ..."]:
    """Draw standard normal noise of shape (B, ...), image i from keys[i]."""
    return jax.vmap(lambda key: jax.random.normal(key, shape[1:]))(keys)


def uniform(keys: Array, shape: tuple[int, ...]) -> Float[Array, " ..."]:
    """Draw uniform noise in [0, 1) of shape (B, ...), image i from keys[i]."""
    return jax.vmap(lambda key: jax.random.uniform(key, shape[1:]))(keys)
