"""Import of EDM's networks: the config that a file states, and the names of its parameters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from configs.edm_networks import experiment
from configs.fields import FIELDS
from errors import InputError, advice
from models import embeddings, layers
from models.adm import ADM
from pretrained.edm_format import EDMNetwork, read_network
from pretrained.parameter_names import TORCH_LEAVES, parameters
from pretrained.stored_parameters import Layout, StoredParameter, load_params
from pretrained.stored_parameters import Path as Keys
from pretrained.trained import Config, Tensors, Trained

EDM_LEAVES = TORCH_LEAVES | {
    layers.NIN: TORCH_LEAVES[nnx.Linear],
    nnx.Embed: {"embedding": ("rows", (0, 1))},
    embeddings.GaussianFourierProjection: {"W": ("freqs", (0,))},
}
STEM: dict[Keys, str] = {
    **{("fourier",): "map_noise", ("class_embedding",): "map_label"},
    **{("temb1",): "map_layer0", ("temb2",): "map_layer1"},
}
INNER = {  # Layers of a block.
    **{"norm1": "norm0", "conv1": "conv0", "temb": "affine", "norm2": "norm1", "conv2": "conv1"},
    **{"shortcut": "skip", "norm": "norm2", "query": "q", "key": "k", "value": "v", "out": "proj"},
}
# Values that a config without these fields has. The last ones do not depend on the network.
IMPLIED = {
    "noise_mult": 0,
    "temb_mult": 4,
    "class_embedding": "after",
    "parameterization": "default",
}
NOT_STATED = ("data.uniform_dequantization", "data.value_range")
UNUSED = ("resample_filter", "map_augment.weight")  # Constants; labels that samplers set to zero.


def read_config(path: Path) -> dict[str, Any]:
    """Return the config of the network in a file of EDM. Raise InputError if we have none."""
    return _config(path, read_network(path)).to_dict()


def read(path: Path, network: nnx.Module, config: Config) -> Trained:
    """Read the averaged parameters of a file of EDM. Raise InputError if they do not fit."""
    stored = read_network(path)
    _check(path, _config(path, stored), config)
    tensors = _separate(stored.tensors, config)
    params = load_params(edm_layout(network, config), tensors, str(path))
    return Trained(step=0, params=params, ema=params)


def _config(path: Path, network: EDMNetwork) -> Config:
    with advice(f"This is the network in {path}."):
        config = experiment(network.kind, network.arguments, network.keywords)
    config.data.random_flip = network.data_set.get("xflip") is True
    name = Path(str(network.data_set.get("path"))).name
    config.data.dataset = "CIFAR10" if name.startswith("cifar10") else "folder"
    return config


def _check(path: Path, stated: Config, config: Config) -> None:
    """Raise InputError, naming a field, unless a config describes the network of a file."""
    skipped = {*NOT_STATED, *(["model.num_scales"] if config.training.continuous else [])}
    skipped |= set() if config.data.num_classes else {"model.class_embedding"}
    for name in (name for name, field in FIELDS.items() if "network" in field.affects):
        section, _, key = name.rpartition(".")
        fallback = IMPLIED.get(key, config[section].get(key))
        found = stated[section].get(key, fallback)
        wanted = config[section].get(key, IMPLIED.get(key, found))
        if found != wanted and name not in skipped:
            raise InputError(
                f"{path} does not fit the config: its network has {name} = {found!r}, and the "
                f"config {wanted!r}. Without --config, the file states its config."
            )


def _separate(tensors: Tensors, config: Config) -> Tensors:
    """Return a tensor for each of our parameters, from those that EDM combines.

    Query, key and value alternate in the output of an attention layer's first convolution. A class
    enters a linear layer as a vector (K,) of zeros with a one, or with sqrt(K) in SongUNet; "no
    class" is a vector of zeros. The second half of twice the channels are variances, not used here.
    """
    separate: Tensors = {}
    channels = config.data.num_channels
    for name, tensor in tensors.items():
        layer, _, leaf = name.removeprefix("model.").rpartition(".")
        if layer.endswith("qkv"):
            for i, letter in enumerate("qkv"):
                separate[f"{layer[:-3]}{letter}.{leaf}"] = tensor[i::3]
        elif layer.endswith(("aux_conv", "out_conv")) and len(tensor) == 2 * channels:
            separate[f"{layer}.{leaf}"] = tensor[:channels]
        elif name != "u" and not name.endswith(UNUSED):
            separate[f"{layer}.{leaf}"] = tensor
    if "map_label.weight" in separate:
        rows = np.asarray(separate.pop("map_label.weight"), np.float32).T
        rows = rows if config.model.name == "adm" else rows * np.sqrt(np.float32(len(rows)))
        rows = np.concatenate([rows, np.zeros_like(rows[:1])])
        separate["map_label.rows"] = rows + separate.pop("map_label.bias", np.float32(0))
    return separate


def edm_layout(network: nnx.Module, config: Config) -> Layout:
    """The layout of EDM's U-Nets, with names like 'enc.16x16_block0.conv0.weight'."""
    is_adm = isinstance(network, ADM)
    names = STEM | (network.block_names() if is_adm else dict(_song_blocks(config)))
    layout = []
    for path, _, layer, shape in parameters(network):
        block = next(path[:end] for end in range(len(path), 0, -1) if path[:end] in names)
        leaf, axes = EDM_LEAVES[type(layer)][path[-1]]
        inner = "" if path[:-1] == block else f"{INNER[str(path[-2])]}."
        is_matrix = isinstance(layer, layers.NIN) and len(shape) == 2  # A 1x1 convolution there.
        padded = (*shape[::-1], 1, 1) if is_matrix else None
        name = f"{names[block]}.{inner}{leaf}"
        layout.append(StoredParameter(path, shape, (name,), axes, padded))
    return layout


def _song_blocks(config: Config) -> Iterator[tuple[Keys, str]]:
    """Yield the path of each block that NCSN++ can have, and its name in a SongUNet."""
    sides = [f"{side}x{side}" for side in _sides(config)]
    count, lowest = config.model.num_res_blocks, len(sides) - 1
    yield ("conv_in",), f"enc.{sides[0]}_conv"
    yield ("norm_out",), f"dec.{sides[0]}_aux_norm"
    yield ("conv_out",), f"dec.{sides[0]}_aux_conv"
    for key, name in {"mid1": "in0", "mid_attn": "in0", "mid2": "in1"}.items():
        yield (key,), f"dec.{sides[-1]}_{name}"
    for i, side in enumerate(sides):
        up = lowest - i
        for j in range(count):
            yield ("down", i, "steps", j), f"enc.{side}_block{j}"
        yield ("down", i - 1, "down"), f"enc.{side}_down"
        yield ("down", i - 1, "combine", "conv"), f"enc.{side}_aux_skip"
        yield ("down", i - 1, "image_down", "conv"), f"enc.{side}_aux_residual"
        for j in range(count + 1):
            yield ("up", up, "blocks", j), f"dec.{side}_block{j}"
        yield ("up", up, "attn"), f"dec.{side}_block{count}"
        yield ("up", up, "norm"), f"dec.{side}_aux_norm"
        yield ("up", up, "conv"), f"dec.{side}_aux_conv"
        yield ("up", up - 1, "up"), f"dec.{side}_up"


def _sides(config: Config) -> list[int]:
    """Return the side lengths of the levels, the largest first."""
    return [config.data.image_size >> level for level in range(len(config.model.ch_mult))]
