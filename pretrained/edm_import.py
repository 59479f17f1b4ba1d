"""Import of EDM's networks (Karras et al. 2022): pickles, the configs that they state, and names.

Such a pickle contains the source of Python modules, which EDM's loader runs and this one ignores.
"""

from __future__ import annotations

import io
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from configs.edm_networks import experiment
from configs.fields import FIELDS
from errors import InputError, advice, printable
from models import embeddings, layers
from models.adm import ADM
from pretrained import torch_pickles
from pretrained.parameter_names import TORCH_LEAVES, parameters
from pretrained.stored_parameters import (
    Config,
    Layout,
    StoredParameter,
    Tensors,
    Trained,
    load_params,
)
from pretrained.stored_parameters import Path as Keys
from readers import pickles
from readers.files import MAY_LACK, check_regular, check_structure, reading
from readers.pickles import Record

# --- files ---

RECORDED = {  # Objects whose class does not matter.
    *(f"torch.nn.modules.container {name}" for name in ("ModuleDict", "ModuleList", "Sequential")),
    *(f"numpy.{core}.multiarray scalar" for core in ("core", "_core")),
    *(f"numpy.{core}.multiarray _reconstruct" for core in ("core", "_core")),
    *("numpy dtype", "numpy ndarray", "builtins set"),
}

FILE = {"dataset_kwargs?": (dict, type(None))}
MODULE = {"_init_args": (tuple, list), "_init_kwargs": dict}
"""The structure of a file and of a network's state; see `readers.files.mismatch`. Keys of a
dictionary were checked by the reader of pickles; those of a list of pairs could be made to collide.
"""


class EDMNetwork(NamedTuple):
    """A network in a file of EDM: its class, the arguments of the constructor, and its tensors.

    `tensors` have the names of state_dict; `data_set` are arguments of the training data.
    """

    kind: str
    arguments: tuple
    keywords: dict[str, Any]
    tensors: Tensors
    data_set: dict[str, Any]


def read_network(path: Path) -> EDMNetwork:
    """Return the averaged network of a file of EDM.

    Raises InputError if the file is damaged, names objects that are not listed here, or has tensors
    that together are larger than the file.
    """
    check_regular(path)
    with reading(path, MAY_LACK, " as a network of EDM"):
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as content:
            entries = _load(content, len(content))
        network = entries.get("ema") if isinstance(entries, dict) else None
        if not isinstance(network, Record):
            raise ValueError("it has no entry 'ema' with a network")
        check_structure(network.state, MODULE, path, "its network")
        check_structure(entries, FILE, path)
        tensors = dict(_tensors(network, ""))
        arguments, keywords = (network.state[f"_init_{kind}"] for kind in ("args", "kwargs"))
        data_set = entries.get("dataset_kwargs") or {}
        return EDMNetwork(network.kind, tuple(arguments), keywords, tensors, data_set)


def _load(content: mmap.mmap, size: int) -> Any:
    """Return the value of a pickle of `size` bytes, in which each storage is a file of PyTorch."""
    reader, left = pickles.Reader(), size

    def load_storage(stored: Any) -> Any:
        nonlocal left
        left -= len(stored) if type(stored) is bytes else size + 1
        if left < 0:
            raise ValueError("the data of a tensor are damaged or not complete")
        return torch_pickles.load_stream(reader, io.BytesIO(stored), len(stored))

    value = reader.load(content, NAMES | {"torch.storage _load_from_bytes": load_storage})
    pickles.check_tree(value, size)
    return value


def _module(meta: Any) -> Record:
    """Return the record of an object of EDM's persistence layer, without its source."""
    return Record(pickles.as_text(meta["class_name"]), state=meta["state"])


NAMES = {
    **torch_pickles.NAMES,
    **dict.fromkeys(RECORDED),
    "torch_utils.persistence _reconstruct_persistent_obj": _module,
    "dnnlib.util EasyDict": torch_pickles.empty_dict,
}


def _tensors(module: Any, prefix: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the tensors of a module and of those in it."""
    if not isinstance(module, Record):
        raise ValueError(f"{printable(prefix)!r} is no module")
    for name, tensor in {**module.state["_parameters"], **module.state["_buffers"]}.items():
        if isinstance(tensor, np.ndarray):
            yield f"{prefix}{name}", tensor
        elif tensor is not None:
            raise ValueError(f"{printable(prefix + name)} is not a tensor")
    for name, child in module.state["_modules"].items():
        if child is not None:
            yield from _tensors(child, f"{prefix}{name}.")


# --- configs and names ---

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
        name = f"{names[block]}.{inner}{leaf}"
        layout.append(StoredParameter(path, shape, (name,), axes))
    return layout


def _song_blocks(config: Config) -> Iterator[tuple[Keys, str]]:
    """Yield the path of each block that NCSN++ can have, and its name in a SongUNet."""
    levels = range(len(config.model.ch_mult))
    sides = ["{0}x{0}".format(config.data.image_size >> level) for level in levels]
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
