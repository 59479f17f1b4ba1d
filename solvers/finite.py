"""Values that are not finite: at which step a sampler first produced them, for each image.

A bad step is counted from 1; 0 states that there is none.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Int


def is_finite(x: Array) -> Bool[Array, " b"]:
    """Return whether all entries of each image of x (B, ...) are finite."""
    return jnp.isfinite(x).all(axis=tuple(range(1, x.ndim)))


def note_bad(bad_step: Array, x: Array, step: int | Array) -> Int[Array, " b"]:
    """Return `bad_step` (B,) after step number `step`, whose result is x (B, ...)."""
    return jnp.where((bad_step == 0) & ~is_finite(x), step, bad_step)
