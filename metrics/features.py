"""Feature extractors: functions from images to the features that sets of images are compared by.

A custom extractor is a function `(uint8 images (B, H, W, C)) -> {"pool": (B, D)}`, optionally with
"logits" (B, K), in any module; `--config.eval.features=module:function` selects it.
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

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import UInt8

import sharding
from errors import InputError, brief
from experiment import Experiment
from metrics import inception_weights
from metrics.inception import Features
from models.building import Params
from readers.files import not_finite
from runs import Arrays, load_rounds, progress, run_rounds

IMAGES_PER_DEVICE = 64  # In one batch of the Inception network.
HIDDEN_UNITS = 32  # Features of the small classifier.
CLASSIFIER_OPTIONS = {"activation": "tanh", "solver": "adam", "max_iter": 200, "random_state": 0}
"""Options of the small classifier; its file name depends on them. ReLU leaves features at 0."""


@dataclasses.dataclass(frozen=True)
class Extractor:
    """A named function from uint8 images (B, H, W, C), on the host, to features.

    The digest is the SHA-256 of the weights or of the source text. `published` states whether these
    are the features of published statistics, whose files do not state their features.
    """

    name: str
    digest: str
    preprocessing: str
    extract: Callable[[np.ndarray], Features]
    published: bool = False

    @property
    def label(self) -> str:
        """Name and digest, for use in file names."""
        return f"{self.name.replace(':', '.')}-{self.digest[:8]}"


def make_extractor(experiment: Experiment, workdir: str | Path) -> Extractor:
    """The extractor that config.eval.features selects."""
    name = experiment.config.eval.features
    if ":" in name:
        return _import_extractor(name)
    return EXTRACTORS[name](experiment, Path(workdir))


# --- Inception ---

RESIZING = {
    "inception": "half-pixel centres; x / 127.5 - 1",
    "inception_tf": "TensorFlow 1's corners; (x - 128) / 128",
}
"""How images are resized and scaled, by config.eval.features. Saved statistics state it."""


def make_inception(experiment: Experiment, workdir: Path) -> Extractor:
    """The Inception network of FID, on all devices; config.eval.inception_path has its weights."""
    del workdir
    config = experiment.config
    name, channels = config.eval.features, config.data.num_channels
    if channels not in (1, 3):
        raise InputError(
            f"eval.features = {name!r} is for images of 1 or 3 channels, but data.num_channels = "
            f"{channels}; use eval.features=module:function."
        )
    weights = inception_weights.read(inception_weights.find(config.eval.inception_path))
    graph, _ = inception_weights.network(half_pixel=name == "inception")
    split, whole = sharding.along_axis(experiment.mesh), sharding.replicated(experiment.mesh)

    @functools.partial(jax.jit, in_shardings=(whole, split), out_shardings=split)
    def apply(params: Params, images: Array) -> Features:
        return nnx.merge(graph, params)(images)

    params = jax.device_put(weights.params, whole)
    size = min(IMAGES_PER_DEVICE * experiment.mesh.size, config.eval.batch_size)

    def extract(images: np.ndarray) -> Features:
        batches = []
        for start in range(0, len(images), size):  # The first images fill up the last batch.
            indices = np.arange(start, start + size) % len(images)
            outputs = sharding.fetch(apply(params, experiment.rows(images[indices])))
            batches.append([array[: len(images) - start] for array in outputs])
        return Features(*(np.concatenate(arrays) for arrays in zip(*batches)))

    return Extractor(
        f"{name}-{'2015-12-05' if weights.standard else 'other-weights'}",
        weights.digest,
        f"grey as RGB; bilinear to 299x299 without antialiasing, {RESIZING[name]}",
        extract,
        published=weights.standard,
    )


# --- a small classifier of the data set ---


def make_classifier(experiment: Experiment, workdir: Path) -> Extractor:
    """The hidden layer of a classifier of the data set, trained once and kept in `workdir`."""
    train = experiment.train
    if train.labels is None:
        raise InputError(
            "eval.features = 'classifier' needs labels, which data.dataset = "
            f"{experiment.config.data.dataset!r} lacks; use eval.features=module:function."
        )
    with progress.waiting("reading the training images for the classifier of eval.features"):
        pixels = np.asarray(train.batch(np.arange(len(train))).pixels)
    images, labels = as_samples(experiment, pixels), np.asarray(train.labels, np.int64)
    parts = (images.tobytes(), labels.tobytes(), repr(CLASSIFIER_OPTIONS).encode())
    content = hashlib.sha256(b"".join(parts)).hexdigest()
    folder = workdir / "statistics"
    folder.mkdir(parents=True, exist_ok=True)

    def fit(index: int) -> Arrays:
        with progress.waiting("training the classifier of eval.features"):
            return _train_classifier(images, labels)

    paths = run_rounds(folder, f"classifier_{content[:8]}", 1, fit, {"content": content})
    layers = load_rounds(paths)
    digest = hashlib.sha256(b"".join(layers[name].tobytes() for name in sorted(layers)))

    def extract(images: np.ndarray) -> Features:
        hidden = np.tanh(_classifier_inputs(images) @ layers["kernel0"] + layers["bias0"])
        logits = hidden @ layers["kernel1"] + layers["bias1"]
        return Features(hidden.astype(np.float32), logits.astype(np.float32))

    return Extractor("classifier", digest.hexdigest(), "x / 255", extract)


def _train_classifier(images: np.ndarray, labels: np.ndarray) -> Arrays:
    from sklearn.exceptions import ConvergenceWarning  # Only this extractor needs scikit-learn.
    from sklearn.neural_network import MLPClassifier

    network = MLPClassifier((HIDDEN_UNITS,), **CLASSIFIER_OPTIONS)
    with warnings.catch_warnings():  # That training stops after max_iter epochs.
        warnings.simplefilter("ignore", ConvergenceWarning)
        network.fit(_classifier_inputs(images), labels)
    kernels = {f"kernel{i}": array for i, array in enumerate(network.coefs_)}
    return kernels | {f"bias{i}": array for i, array in enumerate(network.intercepts_)}


def _classifier_inputs(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1) / 255


def as_samples(experiment: Experiment, images: np.ndarray) -> UInt8[np.ndarray, "b h w c"]:
    """Images of the data set, in its gray levels, in the format of samples: uint8, 0 .. 255."""
    levels = jnp.arange(experiment.scaler.levels, dtype=jnp.uint8)
    pixels = experiment.scaler.pixels(experiment.scaler.scale(levels), dequantized=False)
    return np.asarray(pixels)[images]


# --- custom extractors ---

CONTRACT = (
    "It must map uint8 images (B, H, W, C) to a dictionary of 'pool' (B, D) and optionally "
    "'logits' (B, K)."
)


def _import_extractor(name: str) -> Extractor:
    """The extractor `module:function`; its digest is that of the module's file."""
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
        function = getattr(module, attribute)
        source = Path(inspect.getsourcefile(module) or inspect.getfile(module)).read_bytes()
    except Exception as error:  # The code of a module may raise any.
        raise InputError(f"eval.features = {name!r} cannot be imported: {brief(error)}.") from error

    def extract(images: np.ndarray) -> Features:
        try:
            returned = function(images)
            outputs = {key: np.asarray(value, np.float32) for key, value in returned.items()}
        except Exception as error:  # The function may raise any.
            raise InputError(
                f"eval.features = {name!r} failed for {len(images)} images with "
                f"{type(error).__name__}: {brief(error)}. {CONTRACT}"
            ) from error
        shapes = {key: value.shape for key, value in outputs.items()}
        if (
            shapes.keys() not in ({"pool"}, {"pool", "logits"})
            or any(len(shape) != 2 or shape[0] != len(images) for shape in shapes.values())
            or not_finite(outputs)
        ):
            raise InputError(
                f"eval.features = {name!r} returned arrays of the shapes {shapes} for "
                f"{len(images)} images, or values that are not finite. {CONTRACT}"
            )
        return Features(outputs["pool"], outputs.get("logits"))

    return Extractor(name, hashlib.sha256(source).hexdigest(), "the function's own", extract)


EXTRACTORS = {
    "inception": make_inception,
    "inception_tf": make_inception,
    "classifier": make_classifier,
}
"""Extractors by config.eval.features."""
