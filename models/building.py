"""Abstract networks, whose parameters have shapes but no values, and the type of parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

Params = dict[Any, Any]
"""Parameters of a network as nested dictionaries, as returned by `nnx.to_pure_dict`.

Keys are strings, and integers for the entries of lists.
"""

FIXED = "W"
"""The name of parameters that are not trained: frequencies of random Fourier features."""


def is_fixed(path: tuple) -> bool:
    """Return whether the parameter at this path, in the form of `jax.tree`, is not trained."""
    return bool(path) and getattr(path[-1], "key", None) == FIXED


def abstract_network(build: Callable[[], nnx.Module]) -> nnx.Module:
    """Return the network that `build` constructs, without computing its parameters.

    Only the shapes and dtypes of its parameters may be used: `nnx.split` separates them from the
    graph. Attributes keep the order of their construction, which determines the parameter names in
    official checkpoints. `nnx.eval_shape` would return a merged network, which has lost that order.
    """
    networks = []

    def trace() -> None:
        networks.append(build())

    jax.eval_shape(trace)
    return networks[0]
