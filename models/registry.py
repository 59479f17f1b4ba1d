"""The score networks: the fields of `config.model` that each one takes, and what it supports.

To add a network, add an entry to NETWORKS. Those of this code declare their options in a dataclass,
from which `entry` derives the fields.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from flax import nnx

from errors import InputError
from models.adm import ADM
from models.ddpm import DDPM
from models.mlp import MLP
from models.ncsnpp import NCSNpp
from models.ncsnv2 import NCSN, NCSNv2, NCSNv2_128, NCSNv2_256
from models.unet import UNet
from options import GIVEN, Options


@dataclasses.dataclass(frozen=True)
class Network:
    """A network and its capabilities.

    Attributes:
      build: the constructor. Its keyword arguments are `image_size`, `num_channels`, `rngs` and the
        values of `fields`; where supported, also `classes`, `vector_size`, `image_channels` (see
        `conditions.Kinds`) and `remat`.
      fields: the fields of `config.model` that are arguments of `build`, under the same names.
      required: those of `fields` that have no default.
      options: further ones that no network of this code has, with their defaults and domains.
      class_conditional: `build` takes `classes` (`data.num_classes`), and the network the keyword
        argument of this name.
      vector_conditional, image_conditional: likewise with `vector_size` and `image_channels`
        (fields of `config.data`), and the arguments `vector` and `image` of the network.
      remat: `build` takes `remat` (`training.remat`).
      bfloat16: the network can compute in bfloat16 (`model.dtype`).
      any_shape: events need not be images; `image_size` is then any tuple of sides.
    """

    build: Callable[..., nnx.Module]
    fields: tuple[str, ...]
    required: tuple[str, ...] = ()
    class_conditional: bool = False
    vector_conditional: bool = False
    image_conditional: bool = False
    remat: bool = False
    bfloat16: bool = False
    any_shape: bool = False
    options: Options = dataclasses.field(default_factory=dict)

    def arguments(self, model: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of `build` that `model`, which is `config.model`, contains."""
        return {field: model[field] for field in (*self.fields, *self.options) if field in model}


NOT_IN_MODEL = {
    *("image_size", "num_channels", "classes", "vector_size", "image_channels", "remat"),
}
"""Options that are fields of `config.data` and `config.training`."""


def entry(network: type[UNet] | type[NCSNv2] | type[MLP]) -> Network:
    """Return the entry of a network that declares its options in a dataclass, `Options`."""
    defaults = {field.name: field.default for field in dataclasses.fields(network.Options)}
    names = [name for name in defaults if name not in NOT_IN_MODEL]
    return Network(
        network,
        fields=tuple(names),
        required=tuple(name for name in names if defaults[name] is dataclasses.MISSING),
        class_conditional="classes" in defaults,
        vector_conditional="vector_size" in defaults,
        image_conditional="image_channels" in defaults,
        remat="remat" in defaults,
        bfloat16=issubclass(network, UNet),
        any_shape=issubclass(network, MLP),
    )


def _not_stored(**options: Any) -> nnx.Module:
    raise InputError(
        f"model.name = {GIVEN!r}: the network is an argument of score_sde.train and is not stored. "
        "Call train again with it; from the last checkpoint of its workdir this takes no time."
    )


NETWORKS = {
    "ncsnpp": entry(NCSNpp),
    "ddpm": entry(DDPM),
    "adm": entry(ADM),
    "ncsn": entry(NCSN),
    "ncsnv2_64": entry(NCSNv2),
    "ncsnv2_128": entry(NCSNv2_128),
    "ncsnv2_256": entry(NCSNv2_256),
    "mlp": entry(MLP),
    GIVEN: Network(
        _not_stored,
        fields=(),
        class_conditional=True,
        vector_conditional=True,
        image_conditional=True,
        any_shape=True,
    ),
}
"""By `config.model.name`."""


def networks_supporting(capability: str) -> list[str]:
    """Return the names of the networks with `capability`, the name of a boolean of `Network`."""
    return [name for name, network in NETWORKS.items() if getattr(network, capability)]
