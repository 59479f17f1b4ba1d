"""Where each parameter of a network lies in the files of other code bases.

A format is a list of `Place`s, one for each parameter; reading and writing go through the same list, so each inverts
the other. The official code numbers layers in the order of their construction: in Flax those of one class within their
parent, in PyTorch the outermost ones. Ours are stored in that order too, and modules that merely group layers have no
counterpart there; so a walk through a network gives both official names of every parameter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from flax import nnx, traverse_util
from jax import Array

from errors import InputError
from models import classifier, ddpm, layers, ncsnpp, refinenet
from models.building import Params

Path = tuple[str | int, ...]

GROUPS = (nnx.List, ncsnpp.DownLevel, ncsnpp.UpLevel)
CLASS_NAMES = {
    nnx.Linear: "Dense",
    layers.Conv1x1: "Conv",
}  # Other classes have the official names.
LAYER_NAMES = {  # Layers that the official code names itself.
    (classifier.WideResnetBlock, "norm1"): "init_bn",
    (classifier.WideResnetBlock, "norm2"): "bn_2",
    (classifier.WideResnetBlock, "conv1"): "conv1",
    (classifier.WideResnetBlock, "conv2"): "conv2",
    (classifier.WideResnet, "conv_in"): "init_conv",
    (classifier.WideResnet, "norm_out"): "pre-pool-bn",
}
FLAX_NAMES = {(layers.NIN, "kernel"): "W", (layers.NIN, "bias"): "b"}
FLAX_NORMS = (
    layers.GroupNorm,
    refinenet.InstanceNorm2dPlus,
)  # flax 0.3 gave their parameters the shape (1, 1, 1, C).

Leaves = dict[str, tuple[str, tuple[int, ...]]]
VECTOR, MATRIX, KERNEL = (
    (0,),
    (1, 0),
    (3, 2, 0, 1),
)  # Axes of PyTorch's parameters, as numbers of ours.
TORCH_LEAVES: dict[
    type, Leaves
] = {  # Of each layer: {our parameter: (its name there, its axes)}, in their order.
    nnx.Linear: {"kernel": ("weight", MATRIX), "bias": ("bias", VECTOR)},
    nnx.Conv: {"kernel": ("weight", KERNEL), "bias": ("bias", VECTOR)},
    layers.GroupNorm: {"scale": ("weight", VECTOR), "bias": ("bias", VECTOR)},
    layers.Conv1x1: {"kernel": ("weight", KERNEL), "bias": ("bias", VECTOR)},
    layers.Conv2d: {"weight": ("weight", KERNEL), "bias": ("bias", VECTOR)},
    layers.NIN: {"kernel": ("W", (0, 1)), "bias": ("b", VECTOR)},
    layers.GaussianFourierProjection: {"W": ("W", VECTOR)},
}


class Place(NamedTuple):
    """Where a parameter of ours lies in a file.

    Attributes:
      path: its keys in our nested dictionaries; () for a tensor that a file has, but no output depends on.
      shape: its shape there.
      names: what the file may call it; the first is the name to write.
      axes: the file's axes, as numbers of ours.
      padded: its shape in a file that adds axes of length 1, or None.
      trained: whether PyTorch counts it among the trained ones, of which it keeps averages.
    """

    path: Path
    shape: tuple[int, ...]
    names: tuple[str, ...]
    axes: tuple[int, ...]
    padded: tuple[int, ...] | None = None
    trained: bool = True

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes it may have in the file; the first is the one to write."""
        plain = tuple(self.shape[axis] for axis in self.axes)
        return (plain,) if self.padded is None else (self.padded, plain)

    @property
    def moves(self) -> bool:
        """Whether it has gradients, of which an optimizer keeps averages."""
        return self.trained and bool(self.path)

    def theirs(self, ours: Array) -> np.ndarray:
        """The parameter as the file has it."""
        return np.ascontiguousarray(
            np.asarray(ours, np.float32).transpose(self.axes).reshape(self.shapes[0])
        )

    def ours(self, theirs: np.ndarray) -> np.ndarray:
        """Inverts `theirs`; float32."""
        value = np.asarray(theirs, np.float32).reshape(self.shapes[-1])
        return np.ascontiguousarray(value.transpose(np.argsort(self.axes)))


def take(places: list[Place], tensors: Mapping[str, np.ndarray], source: str) -> Params:
    """The parameters that a file `source` holds under the names of `places`.

    Raises InputError naming the first tensor that is missing, of another shape, or left over.
    """
    taken, used = {}, set()
    for place in places:
        present = [name for name in place.names if name in tensors]
        expected = " or ".join(map(str, place.shapes))
        if not present:
            raise InputError(
                f"{source} does not fit the config: {place.names[0]}, which the network has with shape {expected}, "
                f"is not in the file."
            )
        value = tensors[present[0]]
        if value.shape not in place.shapes:
            raise InputError(
                f"{source} does not fit the config: {present[0]} has shape {value.shape} in the file and {expected} "
                f"in the network."
            )
        if any(not np.array_equal(value, tensors[name]) for name in present[1:]):
            raise InputError(
                f"{source} contradicts itself: {' and '.join(present)} should be the same tensor."
            )
        used.update(present)
        if place.path:
            taken[place.path] = place.ours(value)
    for name in tensors:
        if name not in used:
            raise InputError(
                f"{source} does not fit the config: the network has no place for {name}, which has shape "
                f"{tensors[name].shape} in the file."
            )
    return traverse_util.unflatten_dict(taken)


def give(places: list[Place], params: Params) -> dict[str, np.ndarray]:
    """Inverts `take`; what no output depends on is 0."""
    flat = traverse_util.flatten_dict(params)
    return {
        place.names[0]: place.theirs(flat[place.path] if place.path else np.zeros(place.shape))
        for place in places
    }


# --- the walk ---------------------------------------------------------------------------------------------------------


def official_layers(module: nnx.Module) -> Iterator[tuple[Path, str, nnx.Module]]:
    """The layers directly in a module, in the order of their construction: path, official Flax name, layer."""
    counts = Counter()
    for path, layer in _layers(module):
        name = LAYER_NAMES.get((type(module), path[-1]))
        if name is None:
            kind = CLASS_NAMES.get(type(layer), type(layer).__name__)
            name = f"{kind}_{counts[kind]}"
            counts[kind] += 1
        yield path, name, layer


def _layers(module: nnx.Module) -> Iterator[tuple[Path, nnx.Module]]:
    items = enumerate(module) if isinstance(module, nnx.List) else vars(module).items()
    for key, value in items:
        if isinstance(value, GROUPS):
            yield from (((key, *path), layer) for path, layer in _layers(value))
        elif isinstance(value, nnx.Module):
            yield (key,), value


def parameters(
    module: nnx.Module,
) -> Iterator[tuple[Path, tuple[str, ...], nnx.Module, tuple[int, ...]]]:
    """Of each parameter: its path, the official names of the layers around it, the innermost of these, its shape."""
    for path, name, layer in official_layers(module):
        for inner, names, owner, shape in parameters(layer):
            yield (*path, *inner), (name, *names), owner, shape
    own = {
        key: value.get_value()
        for key, value in vars(module).items()
        if isinstance(value, nnx.Param)
    }
    for key in sorted(own, key=lambda key: key == "bias"):  # Biases come last in PyTorch.
        if own[key] is not None:
            yield (key,), (), module, own[key].shape


def is_trained(layer: nnx.Module) -> bool:
    """Whether an optimizer changes the parameters of an innermost layer."""
    return not isinstance(layer, layers.GaussianFourierProjection)


# --- formats ----------------------------------------------------------------------------------------------------------


def flax_places(network: nnx.Module) -> list[Place]:
    """Official Flax names, such as 'ResnetBlockBigGANpp_3/Conv_0/kernel'."""
    places = []
    for path, names, owner, shape in parameters(network):
        name = "/".join((*names, FLAX_NAMES.get((type(owner), path[-1]), path[-1])))
        padded = (1, 1, 1, *shape) if isinstance(owner, FLAX_NORMS) else None
        places.append(
            Place(path, shape, (name,), tuple(range(len(shape))), padded, is_trained(owner))
        )
    return places


def torch_places(network: nnx.Module) -> list[Place]:
    """Official PyTorch names, such as 'all_modules.7.Conv_0.weight', in the order of its parameters().

    Raises InputError for networks of which the official PyTorch code has no working version.
    """
    check_kind(network, "the official PyTorch code, in working order,")
    kept = [
        name
        for path, name, layer in official_layers(network)
        if not _outside_all_modules(path, layer)
    ]
    places = []
    for path, names, owner, shape in parameters(network):
        leaf, axes = TORCH_LEAVES[type(owner)][path[-1]]
        layer = ("all_modules", str(kept.index(names[0])), *names[1:])
        places.append(
            Place(path, shape, (".".join((*layer, leaf)),), axes, trained=is_trained(owner))
        )
        if (
            isinstance(network, ncsnpp.NCSNpp)
            and not network.temb1
            and path[-2:] == ("conv1", "bias")
        ):
            places.extend(_idle_dense(".".join(layer[:-1]), 4 * network.nf, *shape))
    return places


def _idle_dense(block: str, in_features: int, features: int) -> list[Place]:
    """The layer for noise levels that PyTorch's NCSN++ gives its blocks even where it tells them none."""
    weight, bias = f"{block}.Dense_0.weight", f"{block}.Dense_0.bias"
    return [
        Place((), (in_features, features), (weight,), MATRIX),
        Place((), (features,), (bias,), VECTOR),
    ]


def _outside_all_modules(path: Path, layer: nnx.Module) -> bool:
    """Whether PyTorch keeps a layer elsewhere, as it does with resamplers of images that have no parameters."""
    return path[-1] in ("image_down", "image_up") and layer.conv is None


def check_kind(network: nnx.Module, where: str) -> None:
    """Raises InputError for a network that the code base `where` does not have."""
    if not isinstance(network, (ncsnpp.NCSNpp, ddpm.DDPM)):
        raise InputError(f"{type(network).__name__} networks are not in {where}.")
    check_unlabelled(network, where)


def check_unlabelled(network: nnx.Module, where: str) -> None:
    """Raises InputError for a network that is told classes, as none is in the code base `where`."""
    if getattr(network, "class_embedding", None) is not None:
        raise InputError(
            f"There are no networks with data.num_classes > 0 in {where} but .safetensors files hold them "
            f"(--target=NAME.safetensors)."
        )
