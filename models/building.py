"""How networks are constructed: from their options, or without values of their parameters.

Each network declares all arguments of its constructor but `rngs` in one frozen dataclass, its
`Options`, which its layers receive. `registry.py` derives from it which fields of `config.model`
the network takes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import jax
from flax import nnx
from jax import Array

from options import Name, check, plain
from readers.image_sizes import ImageSize

if TYPE_CHECKING:
    from models.conditions import Condition
    from models.score import ScoreModel

Params = dict[Any, Any]
"""Parameters of a network as nested dictionaries, as returned by `nnx.to_pure_dict`.

Keys are strings, and integers for the entries of lists.
"""

FIXED = "W"
"""The name of parameters that are not trained: frequencies of random Fourier features."""


def one_of(default: str, known: Collection[str]) -> Any:
    """Return the dataclass field of an option whose values are the names in `known`.

    Values may be given in any case. `known` may be a registry that users extend.
    """
    return dataclasses.field(default=default, metadata={"known": known})


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """Options of all networks. Names get their declared case; lists become tuples.

    Attributes:
      image_size, num_channels: H = W, or (H, W), and C of the images.

    Raises:
      InputError: an option declared by `one_of` has another value.
      TypeError: there is no such option, or one without a default is missing.
    """

    image_size: ImageSize
    num_channels: int

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = plain(getattr(self, field.name))
            known = field.metadata.get("known")
            if known is not None:
                value = next((name for name in known if name.lower() == value.lower()), value)
                check(f"model.{field.name}", value, Name(known, exact=True))
            object.__setattr__(self, field.name, value)


def is_fixed(path: tuple) -> bool:
    """Return whether the parameter at this path, in the form of `jax.tree`, is not trained."""
    return bool(path) and getattr(path[-1], "key", None) == FIXED


def network_score(
    model: ScoreModel,
    graph: nnx.GraphDef[nnx.Module],
    params: Params,
    x: Array,
    t: Array,
    condition: Condition | None = None,
) -> Array:
    """Return the score of the network with this structure and these parameters."""
    return model.score(nnx.merge(graph, params), x, t, condition=condition)


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
