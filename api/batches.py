"""Seeds, sample shapes and batches of the Python API."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

import sampling
from api import arguments
from errors import InputError, NotFiniteError
from factory import Sampler, Samples

Seed = int | Array

Draw = Callable[[Array, np.ndarray], Samples]
"""(keys (B,), numbers of the events (B,)) -> samples."""


def key_of(seed: Seed) -> Array:
    """Return the key of a seed. Raises InputError unless it is an int or a key."""
    if isinstance(seed, Array) and jnp.issubdtype(seed.dtype, jax.dtypes.prng_key):
        if seed.shape:
            raise InputError(f"seed holds keys of shape {seed.shape}, but it must be one key.")
        return seed
    if isinstance(seed, (int, np.integer)) and not isinstance(seed, bool):
        if -(2**63) <= seed < 2**63:
            high, low = divmod(int(seed) % 2**64, 2**32)
            key = jax.random.key(low)  # Without jax_enable_x64 it would ignore the other bits.
            return jax.random.fold_in(key, high) if high else key
        raise InputError(f"seed = {seed!r} must lie between -2**63 and 2**63 - 1.")
    raise InputError(f"seed = {arguments.show(seed)} must be an int or a key of jax.random.key.")


def shape_of(sample_shape: int | tuple[int, ...]) -> tuple[int, ...]:
    """Return a sample shape as a tuple."""
    return sample_shape if isinstance(sample_shape, tuple) else (sample_shape,)


def count_of(sample_shape: int | tuple[int, ...]) -> int:
    """Return the number of samples of a sample shape."""
    return math.prod(shape_of(sample_shape))


def in_batches(
    draw: Draw,
    count: int,
    seed: Seed,
    batch_size: int,
    sampler: Sampler,
    shape: tuple[int, ...],
    *,
    first: int = 0,
) -> Array:
    """Return the events number first .. first + count - 1, computed in batches.

    All batches have the same size, so that one program suffices. Raises NotFiniteError if an event
    is not finite, and InputError if the events, which have this shape, do not fit the memory.
    """
    size, events = min(count, batch_size), []
    entries = (size + count // arguments.WORKSPACE) * math.prod(shape)
    arguments.check_memory(entries, f"A result of {count} events of shape {shape}")
    for start in range(0, count, size):
        indices = np.arange(first + start, first + start + size)
        samples = draw(sampling.image_keys(key_of(seed), indices), indices)
        valid = min(size, count - start)
        check_finite(samples.bad_step[:valid], sampler)
        events.append(samples.x[:valid])
    return jnp.concatenate(events)


def check_finite(bad_step: Array, sampler: Sampler) -> None:
    """Raise NotFiniteError if an event is not finite, unless the values are not known yet."""
    if is_traced(bad_step):
        return
    failed = bad_step[bad_step > 0]
    if not len(failed):
        return
    where = ""
    if sampler.steps is not None:
        where = f"; the first failed at {sampler.unit} {int(failed.min())} of {sampler.steps}"
    raise NotFiniteError(
        f"{len(failed)} of {len(bad_step)} events are not finite{where}.",
        "Raise steps, choose another sampler, or check the score at small times and, if there is "
        "one, the log-likelihood: where it is minus infinity, raise langevin_steps.",
    )


def is_traced(value: Array) -> bool:
    """Return whether an array has no values yet, as inside of a function that JAX compiles."""
    return isinstance(value, Tracer)
