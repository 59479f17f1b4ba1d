"""The weights of FID's Inception network: pytorch-fid's .pth file, or other ones of its shapes.

A file is searched for in local folders and never downloaded.
"""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx, traverse_util

from errors import InputError, cache_folder, expand_home
from metrics.inception import Inception
from models.building import Params, abstract_network
from models.layers import Rngs
from pretrained import safetensors_format, torch_format
from pretrained.stored_parameters import KERNEL, MATRIX, VECTOR, StoredParameter, load_params
from readers.files import check_regular, check_structure

FILE = "pt_inception-2015-12-05-6726825d.pth"
ALIAS = "weights-inception-2015-12-05-6726825d.pth"  # The name of the same file in torch-fidelity.
URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE}"
STANDARD = "6726825d"  # The first digits of the file's SHA-256.
UNUSED = ".num_batches_tracked"  # The end of the names of tensors that are not parameters.
CACHES = (cache_folder() / "score_sde", cache_folder() / "torch" / "hub" / "checkpoints")

LEAVES = {  # (Our layer, our parameter): (PyTorch's name of the parameter, its axes).
    ("conv", "kernel"): ("weight", KERNEL),
    ("bn", "scale"): ("weight", VECTOR),
    ("bn", "bias"): ("bias", VECTOR),
    ("bn", "mean"): ("running_mean", VECTOR),
    ("bn", "var"): ("running_var", VECTOR),
    ("fc", "kernel"): ("weight", MATRIX),
    ("fc", "bias"): ("bias", VECTOR),
}


class Weights(NamedTuple):
    """Parameters as nested dictionaries, the SHA-256 of the tensors, and whether they define FID.

    The digest does not depend on the file format.
    """

    params: Params
    digest: str
    standard: bool


def read(path: str | Path) -> Weights:
    """Read weights, named as in pytorch-fid, from a PyTorch file or a .safetensors file.

    Raises InputError if the file is damaged, if its name contains 6726825d but its SHA-256 does not
    begin with it, or if a tensor is missing, left over or of another shape.
    """
    path = Path(path)
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if STANDARD in path.name and not digest.startswith(STANDARD):
        raise InputError(
            f"{path} is damaged or another file: its SHA-256 begins with {digest[:8]} instead of "
            f"{STANDARD}, as its name states. Download it again from {URL}."
        )
    is_copy = path.suffix == ".safetensors"
    tensors = safetensors_format.load(path)[1] if is_copy else torch_format.load(path)
    check_structure(tensors, dict, path)
    tensors = torch_format.to_arrays(str(path), tensors)
    tensors = {name: tensors[name] for name in sorted(tensors) if not name.endswith(UNUSED)}
    flat: dict[tuple[Any, ...], Any] = traverse_util.flatten_dict(network(half_pixel=True)[1])
    layout = []
    for leaf, shaped in flat.items():
        name, axes = LEAVES[leaf[-2:]]
        stored = (".".join((*leaf[:-1], name)),)
        layout.append(StoredParameter(leaf, shaped.shape, stored, axes))
    params, content = load_params(layout, tensors, str(path)), hashlib.sha256()
    for name, tensor in tensors.items():
        content.update(name.encode() + np.ascontiguousarray(tensor, np.float32).tobytes())
    return Weights(params, content.hexdigest(), digest.startswith(STANDARD))


def find(path: str | Path = "") -> Path:
    """Return the file of weights: `path`, or a file in the folder `path` or in the caches."""
    if path:
        path = expand_home(path, "eval.inception_path")
        if os.path.lexists(path) and not path.is_dir():
            check_regular(path, "eval.inception_path")
            return path
    folders = [path] if path else CACHES
    for candidate in (folder / name for folder in folders for name in (FILE, ALIAS)):
        if candidate.is_file():
            return candidate
    searched = "" if path else f", nor in {' or '.join(map(str, CACHES))}"
    raise InputError(
        f"The weights of FID's Inception network are not at eval.inception_path = {str(path)!r}"
        f"{searched}. They are not downloaded automatically; get them from {URL} (91 MB)."
    )


@functools.cache
def network(*, half_pixel: bool) -> tuple[nnx.GraphDef, Params]:
    """Return the graph of the network, and its parameters as shapes without values."""
    abstract = abstract_network(lambda: Inception(half_pixel, rngs=Rngs(jax.random.key(0))))
    graph, state = nnx.split(abstract)
    return graph, {**nnx.to_pure_dict(state)}
