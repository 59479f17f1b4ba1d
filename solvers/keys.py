"""Random numbers for batches of images, with one key per image.

The noise of an image depends on its own key only, not on the batch that contains the image.
"""

from __future__ import annotations

import jax
import numpy as np
from jax import Array
from jaxtyping import Float


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
