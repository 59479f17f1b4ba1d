"""Names of a network's parameters in the files of the official Flax and PyTorch code.

The official code numbers layers in the order of their construction: in Flax the layers of one class
within their parent, in PyTorch the outermost layers. Our networks store layers in that order too,
and modules that only group layers have no counterpart in the official code. So a walk through a
network yields both official names of every parameter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from flax import nnx

from errors import InputError
from models import blocks, classifier, ddpm, embeddings, instance_norm, layers, ncsnpp
from pretrained.stored_parameters import KERNEL, MATRIX, VECTOR, Layout, Path, StoredParameter

GROUPS = (nnx.List, ncsnpp.DownLevel, ncsnpp.UpLevel)  # They have no counterpart.
FLAX_CLASSES = {nnx.Linear: "Dense", layers.Conv1x1: "Conv"}  # All others have our class names.
# Layers to which the official code gives a name instead of a number.
FLAX_LAYERS: dict[tuple[type, str | int], str] = {
    (classifier.WideResnetBlock, "norm1"): "init_bn",
    (classifier.WideResnetBlock, "norm2"): "bn_2",
    (classifier.WideResnetBlock, "conv1"): "conv1",
    (classifier.WideResnetBlock, "conv2"): "conv2",
    (classifier.WideResnet, "conv_in"): "init_conv",
    (classifier.WideResnet, "norm_out"): "pre-pool-bn",
}
FLAX_LEAVES: dict[tuple[type, str | int], str] = {
    (layers.NIN, "kernel"): "W",
    (layers.NIN, "bias"): "b",
}
# In flax 0.3 the parameters of these layers have the shape (1, 1, 1, C).
FLAX_NORMS = (layers.GroupNorm, instance_norm.InstanceNorm2dPlus)

# For each layer class: {our parameter: (PyTorch's name, its axes)}.
TORCH_LEAVES: dict[type, dict[str | int, tuple[str, tuple[int, ...]]]] = {
    nnx.Linear: {"kernel": ("weight", MATRIX), "bias": ("bias", VECTOR)},
    nnx.Conv: {"kernel": ("weight", KERNEL), "bias": ("bias", VECTOR)},
    layers.GroupNorm: {"scale": ("weight", VECTOR), "bias": ("bias", VECTOR)},
    layers.Conv1x1: {"kernel": ("weight", KERNEL), "bias": ("bias", VECTOR)},
    layers.Conv2d: {"weight": ("weight", KERNEL), "bias": ("bias", VECTOR)},
    layers.NIN: {"kernel": ("W", (0, 1)), "bias": ("b", VECTOR)},
    embeddings.GaussianFourierProjection: {"W": ("W", VECTOR)},
}


class NetworkParameter(NamedTuple):
    """A parameter: its keys in nested dictionaries, the layers that contain it, and its shape.

    `layer_names` are the official Flax names of the layers, outermost first; `layer` is the last.
    """

    path: Path
    layer_names: tuple[str, ...]
    layer: nnx.Module
    shape: tuple[int, ...]


def official_layers(module: nnx.Module) -> Iterator[tuple[Path, str, nnx.Module]]:
    """Yield (path, official Flax name, layer) for the layers directly in a module, in order."""
    counts = Counter()
    for path, layer in _layers(module):
        name = FLAX_LAYERS.get((type(module), path[-1]))
        if name is None:
            class_name = FLAX_CLASSES.get(type(layer), type(layer).__name__)
            name = f"{class_name}_{counts[class_name]}"
            counts[class_name] += 1
        yield path, name, layer


def _layers(module: nnx.Module) -> Iterator[tuple[Path, nnx.Module]]:
    items = enumerate(module) if isinstance(module, nnx.List) else vars(module).items()
    for key, value in items:
        if isinstance(value, GROUPS):
            yield from (((key, *path), layer) for path, layer in _layers(value))
        elif isinstance(value, nnx.Module):
            yield (key,), value


def parameters(module: nnx.Module) -> Iterator[NetworkParameter]:
    """Yield the parameters of a module in the order of PyTorch's `parameters()`."""
    for path, name, layer in official_layers(module):
        for inner in parameters(layer):
            yield inner._replace(path=(*path, *inner.path), layer_names=(name, *inner.layer_names))
    own = [(key, value) for key, value in vars(module).items() if isinstance(value, nnx.Param)]
    for key, value in sorted(own, key=lambda item: item[0] == "bias"):  # Last in PyTorch.
        if value.get_value() is not None:
            yield NetworkParameter((key,), (), module, value.get_value().shape)


def is_trained(layer: nnx.Module) -> bool:
    """Return whether an optimizer updates the parameters of an innermost layer."""
    return not isinstance(layer, embeddings.GaussianFourierProjection)


def flax_layout(network: nnx.Module) -> Layout:
    """The layout of official Flax files, with names like 'ResnetBlockBigGANpp_3/Conv_0/kernel'."""
    layout = []
    for path, layer_names, layer, shape in parameters(network):
        leaf = FLAX_LEAVES.get((type(layer), path[-1]), str(path[-1]))
        name, axes = "/".join((*layer_names, leaf)), tuple(range(len(shape)))
        padded = (1, 1, 1, *shape) if isinstance(layer, FLAX_NORMS) else None
        layout.append(StoredParameter(path, shape, (name,), axes, padded, is_trained(layer)))
    return layout


def torch_layout(network: nnx.Module) -> Layout:
    """The layout of official PyTorch files, with names like 'all_modules.7.Conv_0.weight'.

    The order is that of PyTorch's `parameters()`.
    """
    network = check_supported(network, "the official PyTorch code")
    numbered = []
    for path, name, layer in official_layers(network):
        # PyTorch stores resamplers of images without parameters elsewhere.
        is_image_resampler = path[-1] in ("image_down", "image_up")
        is_resampler = isinstance(layer, blocks.Resampler) and layer.conv is None
        if not (is_image_resampler and is_resampler):
            numbered.append(name)
    unconditional = isinstance(network, ncsnpp.NCSNpp) and not network.temb1
    layout = []
    for path, layer_names, layer, shape in parameters(network):
        leaf, axes = TORCH_LEAVES[type(layer)][path[-1]]
        number = numbered.index(layer_names[0])
        block = ".".join(("all_modules", str(number), *layer_names[1:]))
        name = f"{block}.{leaf}"
        layout.append(StoredParameter(path, shape, (name,), axes, trained=is_trained(layer)))
        if unconditional and path[-2:] == ("conv1", "bias"):
            # PyTorch's NCSN++ has a layer for noise levels even if it is unconditional.
            dense = f"{block.rpartition('.')[0]}.Dense_0"
            matrix = (4 * network.nf, *shape)
            layout.append(StoredParameter((), matrix, (f"{dense}.weight",), MATRIX))
            layout.append(StoredParameter((), shape, (f"{dense}.bias",), VECTOR))
    return layout


def check_supported(network: nnx.Module, code_base: str) -> ncsnpp.NCSNpp | ddpm.DDPM:
    """Return the network. Raises InputError if `code_base` does not have it."""
    if not isinstance(network, (ncsnpp.NCSNpp, ddpm.DDPM)):
        raise InputError(
            f"{type(network).__name__} networks have no working counterpart in {code_base}; "
            f"NCSNpp and DDPM networks do."
        )
    check_unconditional(network, code_base)
    return network


def check_unconditional(network: nnx.Module, code_base: str) -> None:
    """Raise InputError for a conditional network, or EDM's embedding: `code_base` has none."""
    embedding, field = getattr(network, "embedding_type", "positional"), ""
    if embedding not in ("fourier", "positional"):
        field = f"model.embedding_type = {embedding!r}"
    for name, attribute in (
        ("num_classes", "class_embedding"),
        ("vector_size", "vector_embedding"),
        ("image_channels", "image_channels"),
    ):
        field = f"data.{name} > 0" if getattr(network, attribute, None) else field
    if field:
        raise InputError(
            f"There are no networks with {field} in {code_base}. Only .safetensors files can store "
            f"them: use --target=NAME.safetensors."
        )
