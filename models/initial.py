"""Initial values of parameters, drawn by NumPy: XLA would compile a program for each shape.

`jax.random.uniform` takes ten seconds for the 21 shapes of CIFAR-10's DDPM++, this takes one. The
values are the same. The generator is Threefry-2x32 (Salmon et al. 2011, "Parallel random numbers:
as easy as 1, 2, 3"), as JAX uses it: number i depends on the key and i alone.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.core import Tracer

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
AT_ONCE = 2**14  # numbers, which fit into a processor's cache


def default_init(scale: float = 1.0) -> nnx.Initializer:
    """Return DDPM's initializer (Ho et al. 2020); scale 0 is replaced by 1e-10.

    The values are those of `jax.nn.initializers.variance_scaling`, which also draws the values if
    the initializer is traced, and by keys of other generators.
    """
    by_jax = jax.nn.initializers.variance_scaling(scale or 1e-10, "fan_avg", "uniform")

    def initialize(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        if isinstance(key, Tracer) or jax.random.key_impl(key) != "threefry2x32":
            return by_jax(key, shape, dtype)
        fan_avg = math.prod(shape[:-2]) * (shape[-2] + shape[-1]) / 2
        bound = np.sqrt(3 * np.float32((scale or 1e-10) / fan_avg))
        return jnp.asarray(bound * _uniform(key, math.prod(shape)).reshape(shape), dtype)

    return initialize


def _uniform(key: Array, size: int) -> np.ndarray:
    """Return `jax.random.uniform(key, (size,), minval=-1)`."""
    first, second = map(int, np.asarray(jax.random.key_data(key)))
    values = np.empty(size, np.float32)
    for start in range(0, size, AT_ONCE):
        part = values[start : start + AT_ONCE]
        bits = _threefry(first, second, np.arange(start, start + len(part), dtype=np.uint32))
        part[:] = ((bits >> 9) | 0x3F800000).view(np.float32)  # in [1, 2), with 23 random bits
    return (values - 1) * 2 - 1


def _threefry(first: int, second: int, counters: np.ndarray) -> np.ndarray:
    """Return 32 random bits for each counter (N,), by the key of two numbers of 32 bits."""
    keys = (first, second, first ^ second ^ 0x1BD11BDA)
    x, y = np.full_like(counters, first), counters + np.uint32(second)
    for i in range(5):
        for rotation in ROTATIONS[i % 2]:
            x += y
            y = (y << rotation) | (y >> (32 - rotation))
            y ^= x
        x += np.uint32(keys[(i + 1) % 3])
        y += np.uint32((keys[(i + 2) % 3] + i + 1) % 2**32)
    return x ^ y
