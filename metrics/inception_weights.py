"""Reads the weights of FID's Inception network: pytorch-fid's .pth file, or a .safetensors made of it once.

Nothing is downloaded.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import safetensors.numpy
from flax import nnx, traverse_util

import pretrained
from errors import InputError
from models.building import Params, abstract_network
from models.inception import Inception
from models.layers import Rngs
from pretrained.parameter_names import KERNEL, MATRIX, VECTOR, Place, take

FILE = "pt_inception-2015-12-05-6726825d.pth"
ALIAS = "weights-inception-2015-12-05-6726825d.pth"  # What torch-fidelity calls the same file.
URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE}"
STANDARD = "6726825d"  # The first digits of the file's SHA-256.
SOURCE = "sha256_of_pth"
CACHES = (
    Path.home() / ".cache" / "score_sde",
    Path.home() / ".cache" / "torch" / "hub" / "checkpoints",
)

LEAVES = {  # Our parameters: {(layer, parameter): (PyTorch's name, its axes)}.
    ("conv", "kernel"): ("weight", KERNEL),
    ("bn", "scale"): ("weight", VECTOR),
    ("bn", "bias"): ("bias", VECTOR),
    ("bn", "mean"): ("running_mean", VECTOR),
    ("bn", "var"): ("running_var", VECTOR),
    ("fc", "kernel"): ("weight", MATRIX),
    ("fc", "bias"): ("bias", VECTOR),
}


class Weights(NamedTuple):
    """`params`: nested dictionaries, as the network has them; `digest`: SHA-256 of the tensors, the same whatever file
    they came from; `standard`: whether they are the ones that FID is defined by."""

    params: Params
    digest: str
    standard: bool


def read(path: str | Path) -> Weights:
    """The weights in a file of PyTorch (which needs torch) or of safetensors, under the names of pytorch-fid.

    Raises InputError if the file is damaged, its name says 6726825d and its SHA-256 does not, or it lacks a tensor,
    has one too many, or one of another shape.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        notes, tensors = pretrained.load_safetensors(path)
        source = notes.get(SOURCE, "")
    else:
        source = _checked_hash(path)
        tensors = {
            name: pretrained.to_numpy(tensor)
            for name, tensor in _named(path, pretrained.load_torch(path))
        }
    tensors = {
        name: tensor
        for name, tensor in tensors.items()
        if not name.endswith(".num_batches_tracked")
    }
    return Weights(
        take(_places(), tensors, str(path)), _digest(tensors), source.startswith(STANDARD)
    )


def find(path: str | Path = "") -> Path:
    """The file that `path` is, or that lies in the folder `path`, or else in the caches of this program and of PyTorch.

    Raises InputError, which says where to get it, if there is none.
    """
    if Path(path).is_file():
        return Path(path)
    folders = [Path(path)] if path else CACHES
    names = (Path(FILE).with_suffix(".safetensors"), FILE, ALIAS)
    for candidate in (folder / name for folder in folders for name in names):
        if candidate.is_file():
            return candidate
    raise InputError(
        f"The weights of FID's Inception network are not at eval.inception_path = {str(path)!r}"
        + ("" if path else f", nor in {' or '.join(map(str, CACHES))}")
        + f". Nothing is downloaded unasked; they are at {URL} (91 MB)."
    )


def to_safetensors(source: str | Path) -> Path:
    """Writes the weights of a .pth file beside it, as .safetensors, which needs no PyTorch to be read."""
    source = Path(source)
    tensors = {
        name: pretrained.to_numpy(tensor)
        for name, tensor in _named(source, pretrained.load_torch(source))
    }
    target = source.with_suffix(".safetensors")
    safetensors.numpy.save_file(tensors, target, {SOURCE: _checked_hash(source)})
    return target


def network(*, half_pixel: bool) -> tuple[nnx.GraphDef, Params]:
    """The network without values: its graph, and its parameters as shapes."""
    built = abstract_network(lambda: Inception(half_pixel, rngs=Rngs(jax.random.key(0))))
    graph, state = nnx.split(built)
    return graph, nnx.to_pure_dict(state)


def _places() -> list[Place]:
    """Where each parameter lies in the file."""
    _, shapes = network(half_pixel=True)
    places = []
    for path, leaf in traverse_util.flatten_dict(shapes).items():
        name, axes = LEAVES[path[-2:]]
        places.append(Place(path, leaf.shape, (".".join((*path[:-1], name)),), axes))
    return places


def _named(path: Path, state: object) -> list[tuple[str, object]]:
    if not isinstance(state, dict) or not all(
        hasattr(tensor, "is_floating_point") for tensor in state.values()
    ):
        raise InputError(f"{path} holds no state dict: tensors by name, and nothing else.")
    return list(state.items())


def _checked_hash(path: Path) -> str:
    """SHA-256 of a file, which must be the standard one if the name says so."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if STANDARD in path.name and not digest.startswith(STANDARD):
        raise InputError(
            f"{path} is damaged or another file: its SHA-256 begins with {digest[:8]}, not with the {STANDARD} of its "
            f"name. Get it again, from {URL}."
        )
    return digest


def _digest(tensors: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensors[name], np.float32).tobytes())
    return digest.hexdigest()
