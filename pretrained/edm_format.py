"""Pickles of EDM's networks (Karras et al. 2022), without executing their content.

Such a pickle contains the source of Python modules, which EDM's loader runs and this one ignores.
"""

from __future__ import annotations

import io
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from errors import printable
from pretrained import torch_pickles
from pretrained.trained import Tensors
from readers import pickles
from readers.files import check_regular, check_structure, reading
from readers.pickles import Record

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
    with reading(path, kind=" as a network of EDM"):
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
            raise ValueError(f"{printable(prefix + name)} is no tensor")
    for name, child in module.state["_modules"].items():
        if child is not None:
            yield from _tensors(child, f"{prefix}{name}.")
