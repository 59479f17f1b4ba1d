"""The UNet2DModel of diffusers that is the network of a config, as its config.json.

Not every NCSN++ or DDPM network is in diffusers; `UNET_FAMILIES` states the required config fields.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from errors import InputError, choose
from models import ddpm, layers
from pretrained.trained import Config
from readers.image_sizes import as_json

UNET_DEFAULTS = {  # The values of UNet2DModel for fields that an older config.json lacks.
    "act_fn": "silu",
    "add_attention": True,
    "attention_head_dim": 8,
    "attn_norm_num_groups": None,
    "center_input_sample": False,
    "class_embed_type": None,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2D",
    "norm_eps": 1e-5,
    "norm_num_groups": 32,
    "num_class_embeds": None,
    "out_channels": 3,
    "resnet_time_scale_shift": "default",
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "upsample_type": "conv",
}


class UNetFamily(NamedTuple):
    """The networks of one kind that are in diffusers.

    Attributes:
      model_fields: required values in config.model.
      unet_fields: required values in config.json.
      block_prefix: prefix of the types of blocks.
    """

    model_fields: dict[str, Any]
    unet_fields: dict[str, Any]
    block_prefix: str


UNET_FAMILIES = {  # By model.name.
    "ncsnpp": UNetFamily(
        model_fields={
            "conditional": True,
            "embedding_type": "fourier",
            "fir": True,
            "fir_kernel": (1, 3, 3, 1),
            "nonlinearity": "swish",
            "progressive": "output_skip",
            "progressive_combine": "sum",
            "progressive_input": "input_skip",
            "resblock_type": "biggan",
            "scale_by_sigma": True,
            "skip_rescale": True,
        },
        unet_fields={"time_embedding_type": "fourier", "mid_block_scale_factor": math.sqrt(2)},
        block_prefix="Skip",
    ),
    "ddpm": UNetFamily(
        model_fields={
            "attend_after_each_up_block": True,
            "conditional": True,
            "nonlinearity": "swish",
            "resamp_with_conv": True,
            "scale_by_sigma": False,
        },
        unet_fields={"downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1},
        block_prefix="",
    ),
}


def check_unet(path: pathlib.Path, described: Mapping[str, Any], config: Config) -> None:
    """Raise InputError, naming every wrong field, unless a config.json describes our network."""
    expected, actual = unet_config(config), {**UNET_DEFAULTS, **described}
    if expected["norm_num_groups"] is None:  # diffusers then selects the numbers as we do.
        widths = expected["block_out_channels"]
        selected = {layers.groups(widths[0]), layers.groups(widths[-1])}
        if [actual["norm_num_groups"]] == list(selected):
            actual["norm_num_groups"] = None
    wrong = [
        f"  {key}: {actual.get(key)!r} in the file, {expected[key]!r} required by the config"
        for key in expected
        if not _equal(actual.get(key), expected[key])
    ]
    if wrong:
        raise InputError(f"{path} describes another network than the config:\n" + "\n".join(wrong))


def unet_config(config: Config) -> dict[str, Any]:
    """Return the config.json of the UNet2DModel that is the network of a config.

    Raises InputError if the network is not in diffusers.
    """
    model, data = config.model, config.data
    family = choose(UNET_FAMILIES, model.name, "For diffusers' UNet2DModel, model.name")
    for field, value in family.model_fields.items():
        if not _equal(model.get(field), value):
            raise InputError(
                f"model.{field} = {model.get(field)!r} is not in diffusers' UNet2DModel; {value!r} "
                f"is."
            )
    widths = [model.nf * multiplier for multiplier in model.ch_mult]
    attends = layers.attending_levels(data.image_size, model.attn_resolutions, len(widths))
    for width, attend in zip(widths, attends):
        # The attention layers of diffusers have 32 groups.
        if family.block_prefix and attend and layers.groups(width) != layers.groups(128):
            raise InputError(
                f"Next to attention, diffusers normalizes {width} channels in 32 groups, and the "
                f"network of the config in {layers.groups(width)}. Use at least 128 channels there "
                f"(model.nf, model.ch_mult)."
            )
    prefixes = [
        f"Attn{family.block_prefix}" if attend else family.block_prefix for attend in attends
    ]
    described = {
        "attention_head_dim": None,
        "block_out_channels": widths,
        "center_input_sample": not data.centered,
        "down_block_types": [f"{prefix}DownBlock2D" for prefix in prefixes],
        "in_channels": data.num_channels,
        "layers_per_block": model.num_res_blocks,
        "norm_eps": 1e-6,
        "norm_num_groups": None if family.block_prefix else ddpm.NUM_GROUPS,
        "out_channels": data.num_channels,
        "sample_size": as_json(data.image_size),
        "up_block_types": [f"{prefix}UpBlock2D" for prefix in reversed(prefixes)],
    }
    return UNET_DEFAULTS | family.unet_fields | described


def _equal(a: Any, b: Any) -> bool:
    """Compare two config values: floats by their relative difference, lists like tuples."""
    if isinstance(a, float) or isinstance(b, float):
        are_numbers = isinstance(a, (int, float)) and isinstance(b, (int, float))
        return are_numbers and math.isclose(a, b, rel_tol=1e-6)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return list(a) == list(b)
    return a == b
