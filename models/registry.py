"""The score networks: the fields of `config.model` that each one takes, and what it supports.

To add a network, add an entry to NETWORKS. Nothing is inferred from constructor signatures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from flax import nnx

from models.adm import ADM
from models.ddpm import DDPM
from models.ncsnpp import NCSNpp
from models.ncsnv2 import NCSN, NCSNv2, NCSNv2_128, NCSNv2_256
from options import Options


@dataclasses.dataclass(frozen=True)
class Network:
    """A network and its capabilities.

    Attributes:
      build: the constructor. Its keyword arguments are `image_size`, `num_channels`, `rngs` and the
        values of `fields`; where supported, also `classes` and `remat`.
      fields: the fields of `config.model` that are arguments of `build`, under the same names.
      options: further ones that no network of this code has, with their defaults and domains.
      class_conditional: `build` takes `classes` (`data.num_classes`).
      remat: `build` takes `remat` (`training.remat`).
      bfloat16: the network can compute in bfloat16 (`model.dtype`).
    """

    build: Callable[..., nnx.Module]
    fields: tuple[str, ...]
    class_conditional: bool = False
    remat: bool = False
    bfloat16: bool = False
    options: Options = dataclasses.field(default_factory=dict)

    def arguments(self, model: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of `build` that `model`, which is `config.model`, contains."""
        return {field: model[field] for field in (*self.fields, *self.options) if field in model}


UNET_FIELDS = (
    "nf",
    "ch_mult",
    "num_res_blocks",
    "attn_resolutions",
    "dropout",
    "conditional",
    "resamp_with_conv",
    "nonlinearity",
)
NCSNPP_FIELDS = (
    *UNET_FIELDS,
    "embedding_type",
    "noise_mult",
    "temb_mult",
    "class_embedding",
    "fourier_scale",
    "resblock_type",
    "fir",
    "fir_kernel",
    "progressive",
    "progressive_input",
    "progressive_combine",
    "skip_rescale",
    "init_scale",
)
DDPM_FIELDS = (*UNET_FIELDS, "normalization", "attend_after_each_up_block")
ADM_FIELDS = (
    *("nf", "ch_mult", "num_res_blocks", "attn_resolutions", "dropout"),
    *("embedding_type", "temb_mult"),
)
REFINENET_FIELDS = ("nf", "interpolation", "nonlinearity", "normalization")
UNET_CAPABILITIES = {"class_conditional": True, "remat": True, "bfloat16": True}

NETWORKS = {
    "ncsnpp": Network(NCSNpp, NCSNPP_FIELDS, **UNET_CAPABILITIES),
    "ddpm": Network(DDPM, DDPM_FIELDS, **UNET_CAPABILITIES),
    "adm": Network(ADM, ADM_FIELDS, **UNET_CAPABILITIES),
    "ncsn": Network(NCSN, (*REFINENET_FIELDS, "num_scales")),
    "ncsnv2_64": Network(NCSNv2, REFINENET_FIELDS),
    "ncsnv2_128": Network(NCSNv2_128, REFINENET_FIELDS),
    "ncsnv2_256": Network(NCSNv2_256, REFINENET_FIELDS),
}
"""By `config.model.name`."""


def networks_supporting(capability: str) -> list[str]:
    """Return the names of the networks with `capability`, the name of a boolean of `Network`."""
    return [name for name, network in NETWORKS.items() if getattr(network, capability)]
