"""Import of the U-Nets of diffusers: files of a UNet2DModel, its config and its parameters.

Not every NCSN++ or DDPM network is in diffusers; `UNET_FAMILIES` states the required config fields.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from flax import nnx

from errors import InputError, naming
from models import blocks, ddpm, embeddings, layers, ncsnpp
from models.building import Params
from options import choose
from pretrained import safetensors_format
from pretrained.parameter_names import (
    TORCH_LEAVES,
    check_supported,
    is_trained,
    official_layers,
    parameters,
)
from pretrained.stored_parameters import (
    VECTOR,
    Config,
    Layout,
    Path,
    StoredParameter,
    Tensors,
    load_params,
)
from readers.files import read_json
from readers.image_sizes import as_json

WEIGHTS = "diffusion_pytorch_model.safetensors"


def read_unet(folder: pathlib.Path, network: nnx.Module, config: Config) -> Params:
    """Read the parameters of the UNet2DModel in a folder, or in its subfolder unet.

    Raises InputError if there is no such model, or if it is not the network of the config.
    """
    if (folder / "unet" / "config.json").exists():
        folder = folder / "unet"
    with naming(f"{folder} is not a diffusers folder"):
        described = read_json(folder / "config.json", dict)
    check_unet(folder / "config.json", described, config)
    tensors: Tensors = {}
    for path in _weight_files(folder):
        tensors |= safetensors_format.load(path)[1]
    return load_params(unet_layout(network), tensors, str(folder))


def _weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """Return the files with the weights: one, or those that an index lists in this folder."""
    path, index = folder / WEIGHTS, folder / f"{WEIGHTS}.index.json"
    if path.exists():
        return [path]
    if not index.exists():
        raise InputError(
            f"{path} does not exist. Save the model with safe_serialization=True, the default of "
            f"diffusers."
        )
    names = read_json(index, {"weight_map": dict})["weight_map"].values()
    # Only the last part of a name counts, so that no other folder is read.
    return [folder / pathlib.PurePath(name).name for name in dict.fromkeys(map(str, names))]


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
# By model.name: the required values in config.model and those in config.json.
UNET_FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
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
        f"  {key}: {actual.get(key)!r} in the file, {value!r} required by the config"
        for key, value in expected.items()
        if not _equal(actual.get(key), value)
    ]
    if wrong:
        raise InputError(f"{path} describes another network than the config:\n" + "\n".join(wrong))


def unet_config(config: Config) -> dict[str, Any]:
    """Return the config.json of the UNet2DModel of a config. Raise InputError without one."""
    model, data = config.model, config.data
    required, fields = choose(UNET_FAMILIES, model.name, "For diffusers' UNet2DModel, model.name")
    for field, value in required.items():
        if not _equal(model.get(field), value):
            raise InputError(
                f"model.{field} = {model.get(field)!r} is not in diffusers' UNet2DModel; {value!r} "
                f"is."
            )
    is_ddpm = model.name == "ddpm"
    widths = [model.nf * multiplier for multiplier in model.ch_mult]
    attends = layers.attending_levels(data.image_size, model.attn_resolutions, len(widths))
    for width, attend in zip(widths, attends):
        # The attention layers of diffusers have 32 groups.
        if not is_ddpm and attend and layers.groups(width) != layers.groups(128):
            raise InputError(
                f"Next to attention, diffusers normalizes {width} channels in 32 groups, and the "
                f"network of the config in {layers.groups(width)}. Use at least 128 channels there "
                f"(model.nf, model.ch_mult)."
            )
    prefixes = [("Attn" if attend else "") + ("" if is_ddpm else "Skip") for attend in attends]
    described = {
        "attention_head_dim": None,
        "block_out_channels": widths,
        "center_input_sample": not data.centered,
        "down_block_types": [f"{prefix}DownBlock2D" for prefix in prefixes],
        "in_channels": data.num_channels,
        "layers_per_block": model.num_res_blocks,
        "norm_eps": 1e-6,
        "norm_num_groups": ddpm.NUM_GROUPS if is_ddpm else None,
        "out_channels": data.num_channels,
        "sample_size": as_json(data.image_size),
        "up_block_types": [f"{prefix}UpBlock2D" for prefix in reversed(prefixes)],
    }
    return UNET_DEFAULTS | fields | described


def _equal(a: Any, b: Any) -> bool:
    """Compare two config values: floats by their relative difference, lists like tuples."""
    if isinstance(a, float) or isinstance(b, float):
        are_numbers = isinstance(a, (int, float)) and isinstance(b, (int, float))
        return are_numbers and math.isclose(a, b, rel_tol=1e-6)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return list(a) == list(b)
    return a == b


DIFFUSERS_LEAVES = TORCH_LEAVES | {
    layers.NIN: TORCH_LEAVES[nnx.Linear],
    embeddings.GaussianFourierProjection: {"W": ("weight", VECTOR)},
}
STEM_LAYERS = {
    ("fourier",): "time_proj",
    ("temb1",): "time_embedding.linear_1",
    ("temb2",): "time_embedding.linear_2",
    ("conv_in",): "conv_in",
}
NCSNPP_MIDDLE = {
    ("mid1",): "mid_block.resnets.0",
    ("mid_attn",): "mid_block.attentions.0",
    ("mid2",): "mid_block.resnets.1",
}
DDPM_MIDDLE = {
    ("norm_out",): "conv_norm_out",
    ("conv_out",): "conv_out",
    ("mid", 0): "mid_block.resnets.0",
    ("mid", 1): "mid_block.attentions.0",
    ("mid", 2): "mid_block.resnets.1",
}
DDPM_CLASSES = {
    blocks.ResnetBlockDDPMpp: "resnets",
    blocks.AttnBlockpp: "attentions",
    blocks.Downsample: "downsamplers",
    blocks.Upsample: "upsamplers",
}
# Layers inside an outermost one. Files from before 2023 have the second names.
INNER_LAYERS: dict[str | int, tuple[str, ...]] = {
    "temb": ("time_emb_proj",),
    "shortcut": ("conv_shortcut",),
    "norm": ("group_norm",),
    "query": ("to_q", "query"),
    "key": ("to_k", "key"),
    "value": ("to_v", "value"),
    "out": ("to_out.0", "proj_attn"),
}


def unet_layout(network: nnx.Module) -> Layout:
    """The layout of UNet2DModel, with names like 'down_blocks.0.resnets.1.conv1.weight'."""
    network = check_supported(network, "diffusers' UNet2DModel")
    is_ddpm = isinstance(network, ddpm.DDPM)
    names = dict(_ddpm_blocks(network) if is_ddpm else _ncsnpp_blocks(network))
    paths = {name: path for path, name, _ in official_layers(network)}
    layout = []
    for path, layer_names, layer, shape in parameters(network):
        block = paths[layer_names[0]]
        leaf, axes = DIFFUSERS_LEAVES[type(layer)][path[-1]]
        inner = [f"{name}." for name in INNER_LAYERS.get(path[-2], (str(path[-2]),))]
        if path[:-1] == block or block[-1] == "combine":
            inner = [""]
        stored = tuple(f"{names[block]}.{name}{leaf}" for name in inner)
        layout.append(StoredParameter(path, shape, stored, axes, trained=is_trained(layer)))
    return layout


def _ncsnpp_blocks(network: ncsnpp.NCSNpp) -> Iterator[tuple[Path, str]]:
    """Yield the path and the diffusers name of each outermost layer."""
    yield from STEM_LAYERS.items()
    yield from NCSNPP_MIDDLE.items()
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
    """Yield the path and the diffusers name of each outermost layer."""
    yield from STEM_LAYERS.items()
    yield from DDPM_MIDDLE.items()
    for side in ("down", "up"):
        level = block = 0
        for i, steps in enumerate(getattr(network, side)):
            for k, layer in enumerate(steps):
                kind = next(name for cls, name in DDPM_CLASSES.items() if isinstance(layer, cls))
                number = 0 if isinstance(layer, blocks.Resampler) else block
                yield (side, i, k), f"{side}_blocks.{level}.{kind}.{number}"
            if isinstance(steps[-1], blocks.Resampler):
                level, block = level + 1, 0
            else:
                block += 1
