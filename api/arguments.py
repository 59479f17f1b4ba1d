"""The domains of the Python API's arguments: one for each name, wherever the name occurs.

`checked` converts and checks the arguments of a function before it runs. Where config fields have
the same meaning, their domains apply. `Guarded` reports what functions of a user raise.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import math
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeGuard, TypeVar, cast

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh

from errors import SHORT, InputError, UnknownOptionError, bind, brief, unknown_option
from options import (
    COUNT,
    FLAG,
    LARGEST,
    NOT_NEGATIVE,
    SHARE,
    TOLERANCE,
    AnyOf,
    Domain,
    Integer,
    Real,
    Sequence,
)
from sharding import check_memory
from solvers.loop import image_keys

F = TypeVar("F", bound=Callable[..., Any])
PACKAGE = os.path.dirname(__file__) + os.sep


@dataclasses.dataclass(frozen=True)
class Rule:
    """The values that pass a test."""

    test: Callable[[Any], bool]
    what: str

    def allows(self, value: Any) -> bool:
        return self.test(value)

    def describe(self) -> str:
        return self.what


@dataclasses.dataclass(frozen=True)
class Numbers:
    """Arrays of `low` to `high` axes, of real numbers that float32 holds.

    They are 0 or 1 if `binary` is set, and may be complex if `complex` is set. Arrays that have no
    values yet, inside of a function that JAX compiles, belong to the domain if `traced` is set.
    """

    low: int = 0
    high: int = 16
    binary: bool = False
    complex: bool = False
    traced: bool = False

    def allows(self, value: Any) -> bool:
        is_array = isinstance(value, (np.ndarray, jax.Array))
        if not is_array or not self.low <= value.ndim <= self.high:
            return False
        is_real = jnp.issubdtype(value.dtype, jnp.floating) or value.dtype.kind in "biu"
        is_known = is_real or (self.complex and value.dtype.kind == "c")
        if not is_known or value.dtype.char in "gG":  # Long doubles, which JAX lacks.
            return False
        if isinstance(value, Tracer):
            return self.traced
        allowed = (value == 0) | (value == 1) if self.binary else abs(value) <= LARGEST
        return bool(allowed.all())

    def describe(self) -> str:
        axes = f"{self.low}" if self.low == self.high else f"{self.low} to {self.high}"
        kind = "complex" if self.complex else "real"
        values = "True or False" if self.binary else f"finite {kind} numbers up to {LARGEST:g}"
        return f"an array with {axes} axes of {values}"


def _is_range(value: Any) -> bool:
    is_pair = isinstance(value, tuple) and len(value) == 2 and {*map(type, value)} <= {int, float}
    return is_pair and value[0] < value[1]


FUNCTION = Rule(callable, "a function")
PATH = Rule(lambda value: isinstance(value, (str, Path)) and "\0" not in str(value), "a path")
CONFIG = Rule(lambda value: isinstance(value, ml_collections.ConfigDict), "a config")
RANGE = Rule(_is_range, "a tuple (low, high) with low < high")
NAME = Rule(lambda value: isinstance(value, str), "a string")
MESH = Rule(lambda value: isinstance(value, Mesh), "a mesh of devices")
FEWEST = 20  # simulations of a calibration, and samples of each
BATCH, SIDE, WIDTH = Integer(1, 10**6), Integer(1, 4096), Real(1e-3, 1000)
SHAPE = Sequence(Integer(1, 2**31 - 1), 0, 8)
IMAGE = Sequence(SIDE, 2, 3)  # (H, W) or (H, W, C)
DOMAINS: dict[str, Domain] = {
    "angle": Real(-360, 360),
    "angles": Numbers(0, 1),
    "batch_size": BATCH,
    "channels": FLAG,
    "checkpoint": AnyOf((Integer(0, 10**9), PATH)),
    "classes": Sequence(Integer(0, 10**6), 0, 10**6),
    "config": AnyOf((CONFIG, PATH)),
    "count": COUNT,
    "factor": SIDE,
    "first": Integer(0, 10**9),
    "function": FUNCTION,
    "guidance_interval": RANGE,
    "guidance_scale": NOT_NEGATIVE,
    "images": Numbers(),
    "kernel": Numbers(2, 2),
    "known": Numbers(binary=True),
    "length": WIDTH,
    "level": SHARE,
    "loc": Numbers(),
    "log_likelihood": FUNCTION,
    "maps": Numbers(3, 3, complex=True),
    "matrix": Numbers(2, 2),
    "mesh": MESH,
    "method": NAME,
    "path": PATH,
    "probes": BATCH,
    "return_error": FLAG,
    "return_info": FLAG,
    "rows": COUNT,
    "sample_shape": AnyOf((Integer(1, 10**15), Sequence(Integer(1, 10**15), 0, 8))),
    "sampler": NAME,
    "scale": Numbers(),
    "samples": Integer(FEWEST, 10**4),
    "score": FUNCTION,
    "shape": SHAPE,
    "share": SHARE,
    "simulate": FUNCTION,
    "simulations": Integer(FEWEST, 10**6),
    "std": WIDTH,
    "steps": Integer(1, 10**5),
    "support": RANGE,
    "temperature": Real(0, 2),
    "tolerance": TOLERANCE,
    "trace": NAME,
    "weights": Numbers(1, 1),
    "workdir": PATH,
    "x": Numbers(traced=True),
    "y": Numbers(),
    "z": Numbers(traced=True),
}
"""By the name of the argument. None is allowed where it is the default."""


def checked(function: F, **own: Domain) -> F:
    """Return a function that converts its arguments and raises InputError for invalid ones.

    The domains, by the names of arguments, are `own` or else those of `DOMAINS`.
    """
    signature = inspect.signature(function)
    own_options = [*signature.parameters.keys() - {"self", "options"}]
    called = function.__qualname__.removesuffix(".__init__")

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        bound = bind(signature, called, args, kwargs)
        for name, value in bound.arguments.items():
            domain = own.get(name, DOMAINS.get(name))
            if domain and (value is not None or signature.parameters[name].default is not None):
                bound.arguments[name] = converted(name, value, domain)
        try:
            return function(*bound.args, **bound.kwargs)
        except UnknownOptionError as error:
            # `function` may have called a checked one, which has more options.
            option, value, owner, known, more = error.given
            raise unknown_option(option, value, owner, known, [*more, *own_options]) from error

    return cast(F, call)


def converted(name: str, value: Any, domain: Domain) -> Any:
    """Return an argument in the type that its domain has. Raises InputError if it is not in it."""
    try:
        known: Any = as_array(value) if isinstance(domain, Numbers) else plain(value)
        is_allowed = domain.allows(known)
    except Exception:  # Objects of a user may raise anything when they are converted.
        known, is_allowed = value, False
    if not is_allowed:
        raise InputError(f"{name} = {show(value)} must be {domain.describe()}.")
    if name == "shape":
        check_memory(math.prod(known), f"An event of shape {known}")
    return Guarded(known, name) if domain is FUNCTION and name != "score" else known


def as_array(value: Any) -> np.ndarray | jax.Array:
    return value if isinstance(value, jax.Array) else np.asarray(value)


def plain(value: Any) -> Any:
    """Return numbers of NumPy and JAX as those of Python, and sequences of them as tuples."""
    if isinstance(value, (tuple, list)):
        return tuple(plain(each) for each in value)
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    return value.item() if isinstance(value, (np.generic, jax.Array)) else value


def show(value: Any) -> str:
    """Return a value for a message, in one line."""
    if isinstance(value, (np.ndarray, jax.Array)):
        return f"an array of shape {value.shape} and type {value.dtype}"
    try:
        return SHORT.repr(value)
    except Exception:  # As above.
        return f"an object of type {type(value).__name__}"


def warn(message: str) -> None:
    """Warn about the line outside of this package that has called it."""
    frames = traceback.walk_stack(sys._getframe())  # skip_file_prefixes requires Python 3.12.
    inside = (frame.f_code.co_filename.startswith(PACKAGE) for frame, _ in frames)
    warnings.warn(message, stacklevel=1 + list(inside).index(False))


def is_traced(tree: Any) -> bool:
    """Return whether a leaf has no values yet, as inside of a function that JAX compiles."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))


Seed = int | jax.Array


def _is_keys(seed: Any) -> TypeGuard[jax.Array]:
    return isinstance(seed, jax.Array) and jnp.issubdtype(seed.dtype, jax.dtypes.prng_key)


def key_of(seed: Seed) -> jax.Array:
    """Return the key of a seed. Raises InputError unless it is an int or a key."""
    if _is_keys(seed):
        if seed.shape:
            raise InputError(f"seed contains keys of shape {seed.shape}, but must be one key.")
        return seed
    if isinstance(seed, (int, np.integer)) and not isinstance(seed, bool):
        if -(2**63) <= seed < 2**63:
            high, low = divmod(int(seed) % 2**64, 2**32)
            key = jax.random.key(low)  # Without jax_enable_x64 it would ignore the other bits.
            return jax.random.fold_in(key, high) if high else key
        raise InputError(f"seed = {seed!r} must lie between -2**63 and 2**63 - 1.")
    raise InputError(f"seed = {show(seed)} must be an int or a key of jax.random.key.")


def keys_of(seed: Seed, count: int) -> jax.Array:
    """Return the keys (count,) of events: those that are given, or else those of a seed."""
    if _is_keys(seed) and seed.shape == (count,):
        return seed
    return image_keys(key_of(seed), jnp.arange(count))


def as_rows(
    name: str, value: Any, shape: tuple[int, ...], what: str = "an event"
) -> tuple[Any, tuple[int, ...]]:
    """Return rows (B, *shape) of an array (*leading, *shape), and `leading`.

    `what` has that shape. Raises InputError for another one, and if there are no rows.
    """
    leading = value.shape[: max(value.ndim - len(shape), 0)]
    if value.shape != (*leading, *shape):
        raise InputError(
            f"{name} has shape {value.shape}, but {what} has shape {shape}: the last axes must "
            "match."
        )
    if not value.size:
        raise InputError(f"{name} has shape {value.shape}: it contains no events.")
    return value.reshape(math.prod(leading), *shape), leading


@contextlib.contextmanager
def user_code(what: str) -> Iterator[None]:
    """Report in one line what code of a user raises."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{what}: {type(error).__name__}, {brief(error)}") from error


@dataclasses.dataclass(frozen=True)
class Guarded:
    """A function of a user, given as the argument `name`; equal if function and name are.

    Raises InputError for what it raises, and for results that are not arrays of real numbers.
    """

    function: Callable[..., Any]
    name: str

    def __call__(self, *arguments: Any) -> jax.Array:
        shapes = " and ".join(str(jnp.shape(each)) for each in arguments)
        with user_code(f"{self.name} cannot be applied to arguments of shape {shapes}"):
            value = jnp.asarray(self.function(*arguments))
        if jnp.iscomplexobj(value) or not value.size:
            raise InputError(
                f"{self.name} returns an array of shape {value.shape} and type {value.dtype}. "
                "Return real numbers; for complex ones, their real and imaginary parts, for "
                "example by jnp.stack."
            )
        return value
