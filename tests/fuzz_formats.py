"""Formats for `tests.fuzz`: for each, the bytes of a small valid file, and what reads it."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from flax import serialization

from pretrained import edm_format, flax_format, safetensors_format, torch_format
from readers import cifar
from tests import edm_files

ARRAYS = {f"layer{i}.weight": np.arange(12, dtype=np.float32).reshape(3, 4) for i in range(3)}


def edm() -> bytes:
    return edm_files.dumps(edm_files.network(ARRAYS, img_resolution=16, channel_mult=[1, 2]))


def pth() -> bytes:
    import torch

    buffer = io.BytesIO()
    model = {name: torch.tensor(array) for name, array in ARRAYS.items()}
    torch.save({"model": model, "ema": {"decay": 0.9, "shadow": [*model.values()]}}, buffer)
    return buffer.getvalue()


def legacy() -> bytes:
    import torch

    buffer = io.BytesIO()
    model = {name: torch.tensor(array) for name, array in ARRAYS.items()}
    torch.save({"model": model, "step": 1}, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def flax() -> bytes:
    return serialization.msgpack_serialize({"step": np.int32(3), "params_ema": {"a": ARRAYS}})


def stored() -> bytes:
    return safetensors.numpy.save(ARRAYS, {"step": "1", "config": "{}"})


def batch() -> bytes:
    from tests.test_released import batch, pickled

    return pickled(batch(2)[1])


def read_batch(path: Path) -> Any:
    return cifar._parse(path.read_bytes(), str(path))


FORMATS: dict[str, tuple[Callable[[], bytes], Callable[[Path], Any]]] = {
    "edm": (edm, edm_format.read_network),
    "pth": (pth, torch_format.load),
    "legacy": (legacy, torch_format.load),
    "flax": (flax, flax_format.load),
    "safetensors": (stored, safetensors_format.load),
    "cifar": (batch, read_batch),
}
