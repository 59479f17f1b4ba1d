"""Modules of a user, of Flax NNX or Equinox, as networks of this code."""

from __future__ import annotations

import inspect
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from errors import InputError
from models.layers import Rngs


def network_of(module: Any) -> nnx.Module:
    """Return a network (x, label, rngs, **condition) from a module of a user.

    One of NNX is called with x (B, ...) and labels (B,), and with `rngs` if it has that argument.
    One of Equinox is called with one event and its label, and with `key` if it has that argument.
    The result has a copy of the parameters, since training overwrites its own.

    Raises InputError for other objects, and variables of NNX that are not `nnx.Param`.
    """
    if isinstance(module, nnx.Module):
        return NNXNetwork(module)
    if isinstance(module, eqx.Module) and callable(module):
        return EquinoxNetwork(module)
    raise InputError(
        f"network is an object of type {type(module).__name__}; it must be a name, or a module of "
        "Flax NNX or Equinox."
    )


class NNXNetwork(nnx.Module):
    """A module (x (B, ...), label (B,), **condition) -> (B, ...)."""

    def __init__(self, module: nnx.Module) -> None:
        graph, params, others = nnx.split(module, nnx.Param, ...)
        if jax.tree.leaves(others):
            kinds = {type(each).__name__ for _, each in nnx.to_flat_state(others)}
            raise InputError(
                f"network has variables of the types {', '.join(sorted(kinds))}; only nnx.Param is "
                "allowed. Remove batch statistics, and take random keys as an argument rngs of "
                "__call__."
            )
        self.module: Any = nnx.merge(graph, jax.tree.map(jnp.array, params))
        self.takes_rngs = _takes(module, "rngs")

    def __call__(
        self, x: Array, label: Array, rngs: Rngs | None = None, **condition: Array
    ) -> Array:
        random = {"rngs": rngs} if self.takes_rngs else {}
        return self.module(x, label, **random, **condition)


class EquinoxNetwork(nnx.Module):
    """A module (x (...), label (), **condition) -> (...) of one event."""

    def __init__(self, module: eqx.Module) -> None:
        arrays, self.static = eqx.partition(module, eqx.is_inexact_array)
        leaves, self.structure = jax.tree.flatten(arrays)
        self.leaves = nnx.List([nnx.Param(jnp.array(leaf)) for leaf in leaves])
        self.takes_key = _takes(module, "key")

    def __call__(
        self, x: Array, label: Array, rngs: Rngs | None = None, **condition: Array
    ) -> Array:
        arrays = jax.tree.unflatten(self.structure, [leaf[...] for leaf in self.leaves])
        module: Any = eqx.combine(arrays, self.static)
        if rngs is None:
            module = eqx.nn.inference_mode(module)
        keys = None if rngs is None else jax.random.split(rngs.dropout(), len(x))

        def one(x: Array, label: Array, key: Array | None, condition: dict[str, Array]) -> Array:
            random = {"key": key} if self.takes_key else {}
            return module(x, label, **random, **condition)

        return jax.vmap(one)(x, label, keys, condition)


def _takes(module: Any, name: str) -> bool:
    return name in inspect.signature(type(module).__call__).parameters
