"""Import of the U-Nets of diffusers: files of a UNet2DModel and the names of its parameters."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

from flax import nnx

from errors import InputError, naming, printable
from models import blocks, ddpm, embeddings, layers, ncsnpp
from models.building import Params
from pretrained import safetensors_format
from pretrained.diffusers_config import check_unet
from pretrained.parameter_names import (
    TORCH_LEAVES,
    NetworkParameter,
    check_supported,
    is_trained,
    official_layers,
    parameters,
)
from pretrained.stored_parameters import (
    MATRIX,
    VECTOR,
    Layout,
    Path,
    StoredParameter,
    load_params,
)
from pretrained.trained import Config, Tensors
from readers.files import read_json

WEIGHTS = "diffusion_pytorch_model.safetensors"
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


def read_unet(folder: pathlib.Path, network: nnx.Module, config: Config) -> Params:
    """Read the parameters of a UNet2DModel from config.json and the safetensors file in a folder.

    The model may be in the subfolder unet, as in the folder of a pipeline.

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
    """Return the files with the weights of a model: one, or those that an index lists.

    Raises InputError if there are none, or if the index names a file outside of the folder.
    """
    path, index = folder / WEIGHTS, folder / f"{WEIGHTS}.index.json"
    if path.exists():
        return [path]
    if not index.exists():
        raise InputError(
            f"{path} does not exist. Save the model with safe_serialization=True, the default of "
            f"diffusers."
        )
    content = read_json(index, {"weight_map": dict})
    names = list(dict.fromkeys(content["weight_map"].values()))
    for name in names:
        is_plain = isinstance(name, str) and name == pathlib.PurePath(name).name
        if not is_plain or "\\" in name or not name.endswith(".safetensors"):
            raise InputError(
                f"{index} lists {printable(repr(name))}; it may list only safetensors files in its "
                "own folder."
            )
    return [folder / name for name in names]


def unet_layout(network: nnx.Module) -> Layout:
    """The layout of UNet2DModel, with names like 'down_blocks.0.resnets.1.conv1.weight'.

    Raises InputError for networks that are not in diffusers.
    """
    network = check_supported(network, "diffusers' UNet2DModel")
    is_ddpm = isinstance(network, ddpm.DDPM)
    names = dict(_ddpm_blocks(network) if is_ddpm else _ncsnpp_blocks(network))
    paths = {name: path for path, name, _ in official_layers(network)}
    layout = []
    for parameter in parameters(network):
        block = paths[parameter.layer_names[0]]
        layout.append(_stored(parameter, block, names[block]))
    return layout


def _stored(parameter: NetworkParameter, block: Path, name: str) -> StoredParameter:
    """Return how diffusers stores a parameter of the outermost layer `block`, its layer `name`."""
    path, _, layer, shape = parameter
    attribute = path[-2]
    leaf, axes = DIFFUSERS_LEAVES[type(layer)][path[-1]]
    if path[:-1] == block or block[-1] == "combine":
        names = (f"{name}.{leaf}",)
    else:
        inner_names = INNER_LAYERS.get(attribute, (str(attribute),))
        names = tuple(f"{name}.{inner}.{leaf}" for inner in inner_names)
    padded_shape = None
    if attribute == "shortcut" and axes == MATRIX:  # A matrix here, a 1x1 convolution there.
        padded_shape = (*shape[::-1], 1, 1)
    return StoredParameter(path, shape, names, axes, padded_shape, is_trained(layer))


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
