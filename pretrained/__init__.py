"""Import and export of checkpoints of other code bases.

Supported are the official Flax and PyTorch code (Song et al. 2021), diffusers folders and EDM's
pickles (import only) and safetensors files. Files are data: nothing in them is executed, and
PyTorch is imported only to write its files.

A reader is selected by the content of the file, a writer by its name.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np
from flax import nnx

from errors import InputError
from pretrained import edm_import, flax_format, safetensors_format, torch_format
from pretrained.diffusers_unet import read_unet
from pretrained.stored_parameters import Config, Trained
from pretrained.torch_pickles import ZIP
from readers.files import check_regular, reading

__all__ = ["WITH_CONFIG", "Trained", "Writer", "read", "read_config", "writer"]

Reader = Callable[[Path, nnx.Module, Config], Trained]
Writer = Callable[[BinaryIO, Trained, nnx.Module, Config], None]

WITH_CONFIG = (".safetensors", ".pkl")  # Files that state a config.
PICKLE = b"\x80\x02"  # PyTorch wrote bare pickles before version 1.6.
NEWER_PICKLES = (b"\x80\x03", b"\x80\x04", b"\x80\x05")  # EDM's networks.
MSGPACK_MAPS = (*range(0x80, 0x90), 0xDE, 0xDF)
WRITERS: dict[str, Writer] = {".pth": torch_format.write, ".safetensors": safetensors_format.write}


def read(source: str | Path, network: nnx.Module, config: Config) -> Trained:
    """Read a checkpoint file or folder; its format is detected from its content.

    Only the shapes of the parameters of `network`, that of `config`, are used. Raises InputError if
    the file does not exist, has an unknown format, or does not fit the config.
    """
    path = Path(source)
    if path.is_dir():
        params = read_unet(path, network, config)
        return Trained(step=0, params=params, ema=params)
    check_regular(path, "--source")
    with reading(f"--source = {str(path)!r}"), open(path, "rb") as file:
        head = file.read(16)
    trained = _reader(path, head)(path, network, config)
    if any(np.any(leaf < 0) for leaf in jax.tree.leaves(trained.nu)):
        raise InputError(f"{path} is damaged: Adam's second moments have negative values.")
    return trained


def _reader(path: Path, head: bytes) -> Reader:
    """Return the reader for a file that starts with the bytes `head`."""
    if head.startswith((ZIP, PICKLE)):
        return torch_format.read
    if head.startswith(NEWER_PICKLES):
        return edm_import.read
    if head[8:9] == b"{":  # JSON after a length of 8 bytes.
        return safetensors_format.read
    if head and head[0] in MSGPACK_MAPS:
        return flax_format.read
    hint = " It looks like a web page." if head.lstrip().startswith(b"<") else ""
    raise InputError(
        f"{path} is not a checkpoint in a known format (Flax msgpack, PyTorch, EDM or "
        f"safetensors): it starts with {head!r}.{hint}"
    )


def read_config(path: Path) -> dict[str, Any]:
    """Return the config that a file of `WITH_CONFIG` states. Raise InputError if it has none."""
    kind = edm_import if path.suffix == ".pkl" else safetensors_format
    return kind.read_config(path)


def writer(target: str | Path, *, average_only: bool = False) -> Writer:
    """Return the writer for a file name: .pth for PyTorch, .safetensors, or else Flax.

    With `average_only`, for .safetensors, it writes the moving average in half precision.
    """
    if not average_only:
        return WRITERS.get(Path(target).suffix, flax_format.write)
    if Path(target).suffix != ".safetensors":
        raise InputError(
            f"--average_only needs a --target that ends in .safetensors, not {str(target)!r}."
        )
    return safetensors_format.write_average
