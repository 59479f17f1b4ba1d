"""Networks without values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

Params = dict[str | int, Any]
"""Parameters of a network as nested dictionaries, as `nnx.to_pure_dict` gives them."""


def as_built(make: Callable[[], nnx.Module]) -> nnx.Module:
    """The network that `make` makes, its attributes in the order of their construction, its parameters not computed.

    Names depend on that order, and a network that was split and merged (also by nnx.eval_shape) has lost it.
    """
    built = []
    jax.eval_shape(lambda: built.append(make()))
    return built[0]
