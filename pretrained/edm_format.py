"""Pickles of EDM's networks (Karras et al. 2022), without executing their content.

Such a pickle calls functions, and contains the source of Python modules, which EDM's loader runs.
Here it can only build plain values, tensors and records: every other instruction, and every name
that is not listed, is refused. The source is ignored, and PyTorch is not needed.
"""

from __future__ import annotations

import dataclasses
import io
import mmap
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from errors import InputError, brief, printable
from pretrained.trained import Tensors
from readers.files import check_regular

VALUES = (  # The instructions of a pickle that only build plain values.
    "PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE "
    "SHORT_BINUNICODE BINBYTES BINBYTES8 SHORT_BINBYTES EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 "
    "EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS EMPTY_SET ADDITEMS MEMOIZE BINPUT "
    "LONG_BINPUT BINGET LONG_BINGET GLOBAL STACK_GLOBAL BINPERSID"
)
MAGIC = 0x1950A86A20F9469CFC6C  # The first value of PyTorch's older files; a storage is one.
STORAGES = {
    **{"torch.FloatStorage": "<f4", "torch.DoubleStorage": "<f8", "torch.HalfStorage": "<f2"},
    **{"torch.LongStorage": "<i8", "torch.IntStorage": "<i4", "torch.BoolStorage": "?"},
}
RECORDED = {  # Objects whose class does not matter.
    *(f"torch.nn.modules.container.{name}" for name in ("ModuleDict", "ModuleList", "Sequential")),
    *(f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")),
    *(f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core")),
    *("numpy.dtype", "numpy.ndarray"),
}


class EDMNetwork(NamedTuple):
    """A network in a file of EDM.

    Attributes:
      kind: the name of its class.
      arguments, keywords: those of its constructor.
      tensors: its parameters and buffers by name, as in PyTorch's state_dict.
      data_set: the arguments of the training data.
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
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as content:
            entries = _Reader(content).load()
        network = entries.get("ema") if isinstance(entries, dict) else None
        if not isinstance(network, Record):
            raise ValueError("it has no entry 'ema' with a network")
        tensors = dict(_tensors(network, "", set()))
        if sum(tensor.nbytes for tensor in tensors.values()) > path.stat().st_size:
            raise ValueError("its tensors are larger than the file")
        arguments, keywords = (network.state[f"_init_{kind}"] for kind in ("args", "kwargs"))
        data_set = dict(entries.get("dataset_kwargs") or {})
        return EDMNetwork(network.kind, tuple(arguments), dict(keywords), tensors, data_set)
    except Exception as error:  # Damage raises exceptions of many types.
        raise InputError(f"{path} cannot be read as a network of EDM: {brief(error)}.") from error


def _tensors(module: Any, prefix: str, seen: set[int]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the tensors of a module and of those in it."""
    if id(module) in seen or not isinstance(module, Record):  # Cycles would have no end.
        raise ValueError(f"the module {printable(prefix)!r} is no module or occurs twice")
    seen.add(id(module))
    for name, tensor in {**module.state["_parameters"], **module.state["_buffers"]}.items():
        if isinstance(tensor, np.ndarray):
            yield f"{prefix}{name}", tensor
        elif tensor is not None:
            raise ValueError(f"{printable(prefix + name)} is no tensor")
    for name, child in module.state["_modules"].items():
        if child is not None:
            yield from _tensors(child, f"{prefix}{name}.", seen)


# --- instructions ---------------------------------------------------------------------------------


@dataclasses.dataclass(slots=True, eq=False)
class Record:
    """An object in a pickle: the name of its class and its state."""

    kind: str = ""
    state: Any = None


class _Name(str):
    """A name in a pickle, which it may call."""


class _Instructions(dict):
    def __missing__(self, code: int) -> Callable:
        raise ValueError(f"it has the instruction {chr(code)!r}, which is not followed")


class _Reader(pickle._Unpickler):
    """Python's reader in Python: the one in C reserves as much memory as a file states."""

    stack: list[Any]
    dispatch = _Instructions(
        (code, pickle._Unpickler.dispatch[code])
        for code in (getattr(pickle, name)[0] for name in VALUES.split())
    )

    def find_class(self, module: str, name: str) -> _Name:
        full_name = f"{module}.{name}"
        if full_name not in CALLS and full_name not in RECORDED and full_name not in STORAGES:
            raise ValueError(f"it names {printable(full_name)[:100]}, which is not loaded")
        return _Name(full_name)

    def persistent_load(self, pid: Any) -> Any:
        return pid

    def _call(self) -> None:
        arguments, name = self.stack.pop(), self.stack.pop()
        if not isinstance(name, _Name) or not isinstance(arguments, tuple):
            raise ValueError("it calls a value that is no name")
        self.stack.append(CALLS[name](*arguments) if name in CALLS else Record())

    def _set_state(self) -> None:
        state, record = self.stack.pop(), self.stack[-1]
        if not isinstance(record, Record):
            raise ValueError("it sets the state of a value that is no object")
        record.state = state

    dispatch[pickle.REDUCE[0]] = dispatch[pickle.NEWOBJ[0]] = _call
    dispatch[pickle.BUILD[0]] = _set_state


def _module(meta: dict[str, Any]) -> Record:
    """Return the record of an object of EDM's persistence layer, without its source."""
    return Record(meta["class_name"], meta["state"])


def _storage(content: bytes) -> np.ndarray:
    """Return the numbers (n,) that PyTorch wrote: five pickles, the count and the data."""
    stream = io.BytesIO(content)
    magic, _, system, storage, keys = (_Reader(stream).load() for _ in range(5))
    _, name, key, _, count, *_ = storage
    dtype, stated = np.dtype(STORAGES[name]), int.from_bytes(stream.read(8), "little")
    is_known = magic == MAGIC and system["little_endian"] and keys == [key]
    if not is_known or stated != count or len(stream.read()) != count * dtype.itemsize:
        raise ValueError("the data of a tensor are damaged or not complete")
    return np.frombuffer(content, dtype, offset=len(content) - count * dtype.itemsize)


def _tensor(data: np.ndarray, offset: int, shape: tuple, strides: tuple, *_: Any) -> np.ndarray:
    """Return the entries of a storage (n,) that make a tensor. Raise ValueError for any outside."""
    sizes = (offset, *shape, *strides)
    is_storage = data.ndim == 1 and data.flags.contiguous  # Strides of a view could lead outside.
    if not is_storage or any(type(size) is not int or size < 0 for size in sizes):
        raise ValueError("a tensor has a damaged shape")
    last = offset + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True))
    if 0 in shape or last >= len(data) or np.prod(shape, dtype=object) > len(data):
        raise ValueError(f"a tensor of shape {shape} is larger than its data")
    steps = [stride * data.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(data[offset:], shape, steps, writeable=False)


CALLS: dict[str, Callable[..., Any]] = {
    "torch_utils.persistence._reconstruct_persistent_obj": _module,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch.storage._load_from_bytes": _storage,
    "collections.OrderedDict": dict,
    "dnnlib.util.EasyDict": dict,
    "builtins.set": set,
}
"""What replaces a call of a name. Calls of `RECORDED` and `STORAGES` become empty records."""
