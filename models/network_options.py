"""The base class of the options of a network: all arguments of its constructor but `rngs`.

Each network declares them in one frozen dataclass, its `Options`, which its layers receive.
`registry.py` derives from it which fields of `config.model` the network takes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

from errors import check_name
from options import plain
from readers.image_sizes import ImageSize


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
                check_name(value, known, f"model.{field.name}")
            object.__setattr__(self, field.name, value)
