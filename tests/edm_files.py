"""Pickles in the form of EDM's files, written by hand: intact, damaged or malicious."""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from pretrained.torch_pickles import MAGIC


class Call(NamedTuple):
    """A call of a name in a pickle."""

    module: str
    name: str
    arguments: tuple = ()


class Raw(NamedTuple):
    """Instructions of a pickle that push one value."""

    code: bytes


def dumps(value: Any) -> bytes:
    """Return a pickle of protocol 4 of plain values, arrays as tensors, and calls."""
    return b"\x80\x04" + _code(value) + b"."


def _code(value: Any) -> bytes:
    """Return the instructions that push a value."""
    match value:
        case Raw():
            return value.code
        case Call():
            return _code(value.module) + _code(value.name) + b"\x93" + _code(value.arguments) + b"R"
        case None | bool() | int() | float() | str() | bytes():
            return pickle.dumps(value, 3)[2:-1]
        case tuple():
            return b"(" + b"".join(map(_code, value)) + b"t"
        case list():
            return b"](" + b"".join(map(_code, value)) + b"e"
        case dict():
            pairs = b"".join(_code(key) + _code(each) for key, each in value.items())
            return b"}(" + pairs + b"u"
        case np.ndarray():
            return _code(tensor(value))
    raise TypeError(type(value))


def storage(array: np.ndarray, main: Any = None, count: int | None = None) -> bytes:
    """Return what PyTorch's older format writes of the numbers in an array, float32.

    `main` replaces the record of the storage, and `count` its number of entries.
    """
    count = array.size if count is None else count
    if main is None:
        names = _code(("storage", Raw(b"ctorch\nFloatStorage\n"), "0", "cpu", count, None))
        main = Raw(names + b"Q")
    system = {"protocol_version": 1001, "little_endian": True}
    parts = [dumps(part) for part in (MAGIC, 1001, system, main, ["0"])]
    return b"".join(parts) + count.to_bytes(8, "little") + np.asarray(array, "<f4").tobytes()


def tensor(array: np.ndarray, *, shape: tuple | None = None, strides: tuple | None = None) -> Call:
    """Return the call that builds a tensor of an array's shape and strides, or of others."""
    shape = array.shape if shape is None else shape
    if strides is None:
        strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    data = Call("torch.storage", "_load_from_bytes", (storage(np.ascontiguousarray(array)),))
    hooks = Call("collections", "OrderedDict")
    return Call("torch._utils", "_rebuild_tensor_v2", (data, 0, shape, strides, False, hooks))


def persistent(kind: str, state: dict[str, Any], source: str = "raise SystemExit") -> Call:
    """Return the call that rebuilds an object of EDM's persistence layer."""
    meta = {"type": "class", "version": 6, "module_src": source, "class_name": kind}
    return Call(
        "torch_utils.persistence", "_reconstruct_persistent_obj", (meta | {"state": state},)
    )


def module(kind: str, tensors: Mapping[str, Any], **attributes: Any) -> Call:
    """Return a module with the tensors of a state_dict, nested as their names state."""
    parameters = {name: value for name, value in tensors.items() if "." not in name}
    children: dict[str, dict[str, Any]] = {}
    for name, value in tensors.items():
        head, dot, rest = name.partition(".")
        if dot:
            children.setdefault(head, {})[rest] = value
    modules = {head: module("Linear", inner) for head, inner in children.items()}
    state = {"_parameters": parameters, "_buffers": {}, "_modules": modules}
    return persistent(kind, state | {"_init_args": (), "_init_kwargs": {}} | attributes)


def network(
    tensors: Mapping[str, Any], kind: str = "EDMPrecond", **arguments: Any
) -> dict[str, Any]:
    """Return the content of a file: a network with the arguments of its constructor."""
    averaged = module(kind, tensors, _init_kwargs=arguments)
    loss = persistent("EDMLoss", {"P_mean": -1.2, "_init_args": (), "_init_kwargs": {}})
    data_set = {"path": "datasets/cifar10-32x32.zip", "xflip": True, "resolution": 32}
    return {"ema": averaged, "loss_fn": loss, "augment_pipe": None, "dataset_kwargs": data_set}


def combined(tensors: Mapping[str, np.ndarray], *, scaled_classes: bool) -> dict[str, np.ndarray]:
    """Return the tensors of EDM's network from those of our layout.

    With `scaled_classes`, as in SongUNet, class vectors are scaled and have a bias.
    """
    found = {}
    for name, tensor in tensors.items():
        layer, _, leaf = name.rpartition(".")
        block, _, letter = layer.rpartition(".")
        if letter in ("k", "v"):
            continue
        if letter == "q":
            parts = [tensors[f"{block}.{each}.{leaf}"] for each in "qkv"]
            found[f"{block}.qkv.{leaf}"] = np.stack(parts, 1).reshape(-1, *tensor.shape[1:])
        elif leaf == "rows":
            scale = math.sqrt(len(tensor) - 1) if scaled_classes else 1.0
            found[f"{layer}.weight"] = (tensor[:-1] - tensor[-1]).T / scale
            if scaled_classes:
                found[f"{layer}.bias"] = tensor[-1]
        else:
            found[name] = tensor
    return {f"model.{name}": tensor for name, tensor in found.items()}
