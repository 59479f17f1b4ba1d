"""What turns images into the features that their sets are compared by; each kind has a name that results carry.

A new kind is a function `(images uint8 (B, H, W, C)) -> {"pool": (B, D)}`, perhaps with "logits" (B, K) besides, in any
module; `--config.eval.features=module:function` uses it.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from jax import Array

import sharding
from errors import InputError, brief, check_name
from experiment import Experiment
from metrics import inception_weights
from models.building import Params
from models.inception import Outputs
from workdir import write_atomically

PER_DEVICE = 64  # images that Inception sees at once on each device
HIDDEN = 32  # features of the small classifier
RECIPE = {
    "activation": "tanh",
    "solver": "adam",
    "max_iter": 200,
    "random_state": 0,
}  # ReLU leaves features at 0.


class Features(NamedTuple):
    """`pool` (B, D), float32, and `logits` (B, K) or None."""

    pool: np.ndarray
    logits: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Extractor:
    """A named function from uint8 images (B, H, W, C), on the host, to features.

    Attributes:
      name: of the kind. digest: SHA-256 of what it computes with: weights, or source text.
      preprocessing: what it does to images first, in words.
      published: whether the statistics that other code bases publish, which do not say so, are of these features.
    """

    name: str
    digest: str
    preprocessing: str
    extract: Callable[[np.ndarray], Features]
    published: bool = False

    @property
    def label(self) -> str:
        """Name and digest, for use in the names of files."""
        return f"{self.name.replace(':', '.')}-{self.digest[:8]}"


def make(experiment: Experiment, workdir: str | Path) -> Extractor:
    """The extractor that config.eval.features names; `workdir` keeps the small classifier, once it is trained.

    Raises InputError for an unknown name, missing weights, and images that the kind is not made for.
    """
    name = experiment.config.eval.features
    if ":" in name:
        return _imported(name)
    check_name(name, (*KINDS, "module:function"), "eval.features")
    return KINDS[name](experiment, Path(workdir))


# --- Inception --------------------------------------------------------------------------------------------------------


def inception(experiment: Experiment, workdir: Path, *, half_pixel: bool) -> Extractor:
    """The Inception network of FID, on all devices, with the weights at config.eval.inception_path."""
    del workdir
    channels = experiment.config.data.num_channels
    if channels not in (1, 3):
        raise InputError(
            f"Inception is for images of 1 or 3 channels, but data.num_channels = {channels}."
        )
    weights = inception_weights.read(inception_weights.find(experiment.config.eval.inception_path))
    graph, _ = inception_weights.network(half_pixel=half_pixel)
    split, whole = sharding.along_axis(experiment.mesh), sharding.replicated(experiment.mesh)

    @functools.partial(jax.jit, in_shardings=(whole, split), out_shardings=split)
    def run(params: Params, images: Array) -> Outputs:
        return nnx.merge(graph, params)(images)

    params = jax.device_put(weights.params, whole)
    size = min(PER_DEVICE * experiment.mesh.size, experiment.config.eval.batch_size)
    extract = lambda images: Features(*sharding.fetch(run(params, experiment.rows(images))))
    name = ("inception-" if half_pixel else "inception_tf-") + (
        "2015-12-05" if weights.standard else "other-weights"
    )
    return Extractor(
        name,
        weights.digest,
        "grey as RGB; bilinear to 299x299 without antialiasing, "
        + (
            "half-pixel centres; x / 127.5 - 1"
            if half_pixel
            else "TensorFlow 1's corners; (x - 128) / 128"
        ),
        functools.partial(in_batches, extract, size=size),
        published=weights.standard,
    )


def in_batches(
    extract: Callable[[np.ndarray], Features], images: np.ndarray, size: int
) -> Features:
    """`extract` of batches of exactly `size` images, of which the last is filled up."""
    filled = np.concatenate([images, np.repeat(images[-1:], -len(images) % size, 0)])
    parts = zip(*(extract(filled[start : start + size]) for start in range(0, len(filled), size)))
    return Features(
        *(None if part[0] is None else np.concatenate(part)[: len(images)] for part in parts)
    )


# --- a small classifier of the data themselves ------------------------------------------------------------------------


def classifier(experiment: Experiment, workdir: Path) -> Extractor:
    """The hidden layer of a multilayer perceptron that learned the labels of the training images; on the host.

    Trained when first asked for, then kept in `workdir`, since another machine's training would differ in rounding.
    """
    train = experiment.train
    if train.labels is None:
        raise InputError(
            f"eval.features = 'classifier' needs labels, which data.dataset = {experiment.config.data.dataset!r} lacks."
        )
    images = spread(experiment, train.pixels[np.arange(len(train))])
    data = hashlib.sha256(
        images.tobytes() + np.asarray(train.labels, np.int64).tobytes() + repr(RECIPE).encode()
    )
    path = workdir / "statistics" / f"classifier_{data.hexdigest()[:8]}.npz"
    if path.exists():
        layers = dict(np.load(path))
    else:
        layers = _train_classifier(images, train.labels)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: np.savez(file, **layers))
    digest = hashlib.sha256(b"".join(layers[name].tobytes() for name in sorted(layers))).hexdigest()

    def extract(images: np.ndarray) -> Features:
        hidden = np.tanh(_flat(images) @ layers["kernel0"] + layers["bias0"])
        return Features(
            hidden.astype(np.float32),
            (hidden @ layers["kernel1"] + layers["bias1"]).astype(np.float32),
        )

    return Extractor("classifier", digest, "x / 255", extract)


def _train_classifier(images: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    from sklearn.exceptions import ConvergenceWarning  # Only this kind needs scikit-learn.
    from sklearn.neural_network import MLPClassifier

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # It stops after a number of epochs.
        network = MLPClassifier((HIDDEN,), **RECIPE).fit(_flat(images), labels)
    kernels = {f"kernel{i}": array for i, array in enumerate(network.coefs_)}
    return kernels | {f"bias{i}": array for i, array in enumerate(network.intercepts_)}


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1) / 255


def spread(experiment: Experiment, images: np.ndarray) -> np.ndarray:
    """Images of a data set, in its grey levels, as samples are: uint8, 0 .. 255."""
    levels = np.arange(experiment.scaler.levels, dtype=np.uint8)
    return np.asarray(experiment.scaler.pixels(experiment.scaler.scale(levels), dequantized=False))[
        images
    ]


# --- the user's own ---------------------------------------------------------------------------------------------------


def _imported(name: str) -> Extractor:
    module, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
        source = Path(inspect.getsourcefile(importlib.import_module(module))).read_bytes()
    except (ImportError, AttributeError, TypeError) as error:
        raise InputError(f"eval.features = {name!r} cannot be imported: {brief(error)}.") from error

    def extract(images: np.ndarray) -> Features:
        outputs = {key: np.asarray(value, np.float32) for key, value in function(images).items()}
        for key, value in outputs.items():
            if key not in ("pool", "logits") or value.ndim != 2 or len(value) != len(images):
                raise InputError(
                    f"eval.features = {name!r} returned {key!r} of shape {value.shape} for {len(images)} images; it "
                    "should return 'pool' and perhaps 'logits', a row for each."
                )
        if "pool" not in outputs:
            raise InputError(
                f"eval.features = {name!r} returned {', '.join(outputs) or 'nothing'} for {len(images)} images, but no "
                "'pool'."
            )
        return Features(outputs["pool"], outputs.get("logits"))

    return Extractor(name, hashlib.sha256(source).hexdigest(), "the function's own", extract)


KINDS = {
    "inception": functools.partial(inception, half_pixel=True),
    "inception_tf": functools.partial(inception, half_pixel=False),
    "classifier": classifier,
}
"""By `config.eval.features`."""
