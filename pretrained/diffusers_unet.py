"""The U-Nets of diffusers: which of our networks a UNet2DModel is, and where its parameters lie."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections
import safetensors
import safetensors.numpy
from flax import nnx

from errors import InputError, choose
from models import blocks, ddpm, layers, ncsnpp
from models.building import Params
from pretrained.parameter_names import (
    MATRIX,
    TORCH_LEAVES,
    VECTOR,
    Path,
    Place,
    check_kind,
    is_trained,
    official_layers,
    parameters,
    take,
)

Config = ml_collections.ConfigDict

DIFFUSERS_LEAVES = TORCH_LEAVES | {
    layers.NIN: TORCH_LEAVES[nnx.Linear],
    layers.GaussianFourierProjection: {"W": ("weight", VECTOR)},
}
STEM = {
    ("fourier",): "time_proj",
    ("temb1",): "time_embedding.linear_1",
    ("temb2",): "time_embedding.linear_2",
    ("conv_in",): "conv_in",
}
DDPM_KINDS = {
    blocks.ResnetBlockDDPMpp: "resnets",
    blocks.AttnBlockpp: "attentions",
    blocks.Downsample: "downsamplers",
    blocks.Upsample: "upsamplers",
}
DIFFUSERS_LAYERS = {  # Of layers inside an outermost one; the second names are those of files older than 2023.
    "temb": ("time_emb_proj",),
    "shortcut": ("conv_shortcut",),
    "norm": ("group_norm",),
    "query": ("to_q", "query"),
    "key": ("to_k", "key"),
    "value": ("to_v", "value"),
    "out": ("to_out.0", "proj_attn"),
}


UNET_DEFAULTS = {  # Of UNet2DModel, for what an older config.json does not say.
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
UNET_FAMILIES = {  # By model.name: what config.model must say, what config.json must, and the prefix of block types.
    "ncsnpp": (
        {
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
        {"time_embedding_type": "fourier", "mid_block_scale_factor": math.sqrt(2)},
        "Skip",
    ),
    "ddpm": (
        {
            "attend_after_each_up_block": True,
            "conditional": True,
            "nonlinearity": "swish",
            "resamp_with_conv": True,
            "scale_by_sigma": False,
        },
        {"downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1},
        "",
    ),
}


def read_unet(folder: pathlib.Path, network: nnx.Module, config: Config) -> Params:
    """The parameters of a UNet2DModel: config.json and its safetensors, in `folder` or its subfolder unet.

    Raises InputError if there is no such model, or if it is not the network of the config.
    """
    folder = folder / "unet" if (folder / "unet" / "config.json").exists() else folder
    try:
        described = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} is no diffusers folder; its config.json: {error}") from error
    _check_unet(folder / "config.json", described, config)
    path = folder / "diffusion_pytorch_model.safetensors"
    if not path.exists():
        raise InputError(
            f"{path} does not exist; save the model with safe_serialization=True (diffusers' default)."
        )
    try:
        tensors = safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise InputError(f"{path} is no complete safetensors file: {error}") from error
    return take(unet_places(network), tensors, str(path))


def _check_unet(path: pathlib.Path, described: Mapping[str, Any], config: Config) -> None:
    """Raises InputError if a config.json describes another network than `config`; names every field."""
    ours, theirs = unet_config(config), UNET_DEFAULTS | described
    if (
        ours["norm_num_groups"] is None
    ):  # diffusers chooses as we do then; a number may come to the same.
        same = all(
            theirs["norm_num_groups"] in (None, layers.groups(ours["block_out_channels"][i]))
            for i in (0, -1)
        )
        theirs |= {"norm_num_groups": None} if same else {}
    wrong = [f"  {key}: {theirs.get(key)!r} there, {ours[key]!r} by the config" for key in ours]
    wrong = [line for line, key in zip(wrong, ours) if not _same(theirs.get(key), ours[key])]
    if wrong:
        raise InputError(f"{path} describes another network than the config:\n" + "\n".join(wrong))


def unet_config(config: Config) -> dict[str, Any]:
    """The config.json of the UNet2DModel that the network of a config is. Raises InputError if it is none."""
    model, data = config.model, config.data
    needed, fixed, kind = choose(
        UNET_FAMILIES, model.name, "For diffusers' UNet2DModel, model.name"
    )
    for field, value in needed.items():
        if not _same(model.get(field), value):
            raise InputError(
                f"model.{field} = {model.get(field)!r} is not in diffusers' UNet2DModel; {value!r} is."
            )
    widths = [model.nf * multiplier for multiplier in model.ch_mult]
    attends = [
        "Attn" * (data.image_size >> i in tuple(model.attn_resolutions)) for i in range(len(widths))
    ]
    for width, attn in zip(widths, attends):
        if kind and attn and layers.groups(width) != layers.groups(128):
            raise InputError(
                f"Next to attention, diffusers normalizes in 32 groups, we {width} channels in {layers.groups(width)}."
            )
    described = {
        "attention_head_dim": None,
        "block_out_channels": widths,
        "center_input_sample": not data.centered,
        "down_block_types": [f"{attn}{kind}DownBlock2D" for attn in attends],
        "in_channels": data.num_channels,
        "layers_per_block": model.num_res_blocks,
        "norm_eps": 1e-6,
        "norm_num_groups": None if kind else ddpm.NUM_GROUPS,
        "out_channels": data.num_channels,
        "sample_size": data.image_size,
        "up_block_types": [f"{attn}{kind}UpBlock2D" for attn in reversed(attends)],
    }
    return UNET_DEFAULTS | fixed | described


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, float) or isinstance(b, float):
        return a is not None and b is not None and math.isclose(a, b, rel_tol=1e-6)
    listed = lambda value: list(value) if isinstance(value, (list, tuple)) else value
    return listed(a) == listed(b)


def unet_places(network: nnx.Module) -> list[Place]:
    """Names in diffusers' UNet2DModel, such as 'down_blocks.0.resnets.1.conv1.weight'.

    Raises InputError for networks that are not in diffusers.
    """
    check_kind(network, "diffusers' UNet2DModel")
    blocks = dict(
        _ddpm_blocks(network) if isinstance(network, ddpm.DDPM) else _ncsnpp_blocks(network)
    )
    paths = {name: path for path, name, _ in official_layers(network)}
    places = []
    for path, names, owner, shape in parameters(network):
        block, attribute = paths[names[0]], path[-2]
        leaf, axes = DIFFUSERS_LEAVES[type(owner)][path[-1]]
        is_block = path[:-1] == block or block[-1] == "combine"
        inner = ("",) if is_block else DIFFUSERS_LAYERS.get(attribute, (attribute,))
        aliases = tuple(".".join(filter(None, (blocks[block], name, leaf))) for name in inner)
        as_conv = attribute == "shortcut" and axes == MATRIX
        places.append(
            Place(
                path,
                shape,
                aliases,
                axes,
                (*shape[::-1], 1, 1) if as_conv else None,
                is_trained(owner),
            )
        )
    return places


def _ncsnpp_blocks(network: ncsnpp.NCSNpp) -> Iterator[tuple[Path, str]]:
    """Path and diffusers name of each outermost layer."""
    yield from STEM.items()
    yield from {("mid1",): "mid_block.resnets.0", ("mid_attn",): "mid_block.attentions.0"}.items()
    yield ("mid2",), "mid_block.resnets.1"
    for i, level in enumerate(network.down):
        for j in range(len(level.steps)):
            yield ("down", i, "steps", j, 0), f"down_blocks.{i}.resnets.{j}"
            yield ("down", i, "steps", j, 1), f"down_blocks.{i}.attentions.{j}"
        yield ("down", i, "down"), f"down_blocks.{i}.resnet_down"
        yield ("down", i, "combine"), f"down_blocks.{i}.skip_conv"
    for i, level in enumerate(network.up):
        for j in range(len(level.blocks)):
            yield ("up", i, "blocks", j), f"up_blocks.{i}.resnets.{j}"
        yield ("up", i, "attn"), f"up_blocks.{i}.attentions.0"
        yield ("up", i, "norm"), f"up_blocks.{i}.skip_norm" if level.up else "conv_norm_out"
        yield ("up", i, "conv"), f"up_blocks.{i}.skip_conv" if level.up else "conv_out"
        yield ("up", i, "up"), f"up_blocks.{i}.resnet_up"


def _ddpm_blocks(network: ddpm.DDPM) -> Iterator[tuple[Path, str]]:
    """Path and diffusers name of each outermost layer."""
    yield from STEM.items()
    yield from {
        ("norm_out",): "conv_norm_out",
        ("conv_out",): "conv_out",
        ("mid", 0): "mid_block.resnets.0",
    }.items()
    yield from {("mid", 1): "mid_block.attentions.0", ("mid", 2): "mid_block.resnets.1"}.items()
    for side in ("down", "up"):
        level, block = 0, 0
        for i, steps in enumerate(getattr(network, side)):
            for k, layer in enumerate(steps):
                kind = next(
                    name for layer_type, name in DDPM_KINDS.items() if isinstance(layer, layer_type)
                )
                resamples = isinstance(layer, blocks.Resampler)
                yield (side, i, k), f"{side}_blocks.{level}.{kind}.{0 if resamples else block}"
            level, block = (level + 1, 0) if resamples else (level, block + 1)
