"""Data sets of uint8 gray levels, and the map between gray levels and model inputs.

A data set is a function `(split, config.data) -> Images` in DATASETS. If it has fewer than 256 gray
levels, their number is in LEVELS. `readers` reads files and published data sets, and defines the
batches of their images.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax import Array

from errors import InputError, brief
from options import GIVEN, choose
from readers import arrays, authors, emoji, files, folders, published, scikit_learn
from readers.batches import Batch, Batches, Images, rounds
from readers.image_sizes import image_shape
from readers.pictures import image_grid, to_picture, trajectory_grid

__all__ = [
    "DATASETS",
    "LEVELS",
    "Batch",
    "Batches",
    "Images",
    "RealScaler",
    "Scaler",
    "augment",
    "check_labels",
    "image_grid",
    "image_shape",
    "levels",
    "load",
    "make_scaler",
    "rounds",
    "to_picture",
    "trajectory_grid",
]

BYTE_LEVELS = 256


def _not_stored(split: str, config: ml_collections.ConfigDict) -> Images:
    raise InputError(
        f"data.dataset = {GIVEN!r}: the data were passed to score_sde.train and are not stored. "
        "Set data.dataset and data.path to read the same data from a file."
    )


DATASETS: dict[str, Callable[[str, ml_collections.ConfigDict], Images]] = {
    "digits": scikit_learn.digits,
    "photos": scikit_learn.photos,
    "folder": folders.read,
    "array": arrays.read,
    "emoji": emoji.read,
    GIVEN: _not_stored,
    "CIFAR10": published.read,
    "SVHN": published.read,
    "CELEBA": published.read,
    "LSUN": published.read,
    "FASHION_MNIST": published.read,
    "FFHQ": authors.read_faces,
    "CelebAHQ": authors.read_faces,
}
LEVELS = {"digits": 17}


def levels(config: ml_collections.ConfigDict) -> int:
    """Return the number of gray levels of `config.data`, without loading its images."""
    return LEVELS.get(config.dataset.lower(), BYTE_LEVELS)


def load(config: ml_collections.ConfigDict, split: str) -> Images:
    """Load the images of a split, 'train' or 'test', of `config.data`.

    Raises InputError if the data set is unknown, its images do not have the configured shape, or
    its labels are not classes 0 .. data.num_classes - 1.
    """
    by_name = {name.lower(): data_set for name, data_set in DATASETS.items()}
    data_set = choose(by_name, config.dataset.lower(), "data.dataset")
    try:
        images = data_set(split, config)
    except OSError as error:  # Such as no permission, or a file that vanished.
        raise InputError(f"data.path = {config.path!r} cannot be read: {brief(error)}.") from error
    expected = image_shape(config)
    if not len(images):
        raise InputError(
            f"data.dataset = {config.dataset!r} has no images of the split {split!r}. Give more "
            f"images, or another share than data.held_out = {config.held_out}."
        )
    first = images.pixels[0]
    if first.dtype != np.uint8 and not (config.value_range or config.std):
        raise InputError(
            f"Images of data.dataset = {config.dataset!r} are {first.dtype}; they must be uint8, "
            "unless data.value_range states the range of their values."
        )
    if first.shape != expected:
        raise InputError(
            f"Images of data.dataset = {config.dataset!r} have shape {first.shape}; "
            f"data.image_size = {config.image_size} and data.num_channels = {config.num_channels} "
            f"require {expected}."
        )
    if config.num_classes:
        check_labels(images, config.num_classes, "data.num_classes")
    _check_condition(images, config)
    return images


def _check_condition(images: Images, config: ml_collections.ConfigDict) -> None:
    """Raise InputError unless the condition has the shape that config.data states."""
    for field, found, leading in (
        ("vector_size", images.vector, ()),
        ("image_channels", images.image, image_shape(config)[:2]),
    ):
        expected = (*leading, config[field])
        shape = (*leading, 0) if found is None else found[0].shape
        if shape != expected:
            raise InputError(
                f"data.{field} = {config[field]} requires conditions of shape {expected}, but "
                f"those that data.condition = {tuple(config.condition)} names have {shape}. Set "
                f"--config.data.{field}={shape[-1]}, or name others; see docs/data.md."
            )


def in_turn(images: Images, first: int, count: int) -> Batch:
    """Return `count` images from number `first` on, cyclically; row i % count is image i."""
    numbers = first + (np.arange(count) - first) % count
    return images.batch(numbers % len(images), labelled=True)


def check_labels(images: Images, num_classes: int, field: str) -> None:
    """Raise InputError, naming `field`, unless all labels are in 0 .. num_classes - 1."""
    if images.labels is None:
        raise InputError(
            f"{field} = {num_classes} needs images with labels; those of data.dataset have none."
        )
    files.check_labels(images.labels, len(images), num_classes, f"{field} = {num_classes}")


def model_range(config: ml_collections.ConfigDict) -> tuple[float, float]:
    """Return the smallest and the largest value that images of `config.data` have in the model."""
    if config.std:
        return -math.inf, math.inf
    return (-1.0, 1.0) if config.centered else (0.0, 1.0)


def model_std(config: ml_collections.ConfigDict) -> float:
    """Return the typical standard deviation of an entry of `config.data` in the model."""
    low, high = model_range(config)
    return 1.0 if config.std else (high - low) / 4


@dataclasses.dataclass(frozen=True)
class Scaler:
    """Affine map from gray levels 0 .. levels - 1 to [0, 1] or, if `centered`, to [-1, 1]."""

    levels: int
    centered: bool

    def scale(self, u: Array) -> Array:
        """Map gray levels of any shape to the model's range; the largest level becomes 1."""
        return self._center(u.astype(jnp.float32) / (self.levels - 1))

    def dequantize(self, u: Array, noise: Array) -> Array:
        """Map u + noise, with noise in [0, 1), to the model's range.

        The noise turns the distribution of the gray levels into a density.
        """
        return self._center((u.astype(jnp.float32) + noise) / self.levels)

    @property
    def log_scale(self) -> float:
        """log dx/du of `dequantize`: log p(u + noise) = log p(x) + log_scale, per dimension."""
        return float(np.log((2.0 if self.centered else 1.0) / self.levels))

    def pixels(self, x: Array, *, dequantized: bool, truncate: bool = False) -> Array:
        """Return the gray levels nearest to x, of any shape, scaled to 0 .. 255, as uint8.

        It inverts `scale`, or `dequantize` if `dequantized`. With `truncate` it rounds the inverse
        of `scale` down, as the official code does for samples. Values out of range are clipped.
        """
        if self.centered:
            x = (x + 1) / 2
        u = x * (self.levels if dequantized and not truncate else self.levels - 1)
        u = jnp.floor(u) if dequantized or truncate else jnp.round(u)
        u = jnp.clip(u, 0, self.levels - 1)
        return jnp.round(u * (255 / (self.levels - 1))).astype(jnp.uint8)

    def _center(self, x: Array) -> Array:
        return 2 * x - 1 if self.centered else x


@dataclasses.dataclass(frozen=True)
class RealScaler:
    """The counterpart of Scaler for real numbers u: (u - loc) / unit, without dequantization.

    `loc` and `unit` have one value, or one for each entry of vectors. `pixels` returns float32.
    """

    loc: tuple[float, ...]
    unit: tuple[float, ...]

    def scale(self, u: Array) -> Array:
        """Map values (..., *event shape) to the model's range."""
        return (u.astype(jnp.float32) - jnp.float32(self.loc)) / jnp.float32(self.unit)

    def dequantize(self, u: Array, noise: Array) -> Array:
        """Return `scale(u)`; the noise is ignored."""
        del noise
        return self.scale(u)

    @property
    def log_scale(self) -> float:
        """log dx/du of `scale`, on average over the entries."""
        return -float(np.mean(np.log(self.unit)))

    @property
    def levels(self) -> int:
        """Raises InputError: real numbers have no gray levels, which some metrics require."""
        raise InputError(
            f"data.value_range or data.std = {self.unit[:3]}: real numbers have no gray levels."
        )

    def pixels(self, x: Array, *, dequantized: bool, truncate: bool = False) -> Array:
        """Invert `scale`; nothing is rounded."""
        del dequantized, truncate
        return jnp.float32(self.loc) + jnp.float32(self.unit) * x


def make_scaler(config: ml_collections.ConfigDict) -> Scaler | RealScaler:
    """Return the map that `config.data` of a valid config describes."""
    if config.std:
        return RealScaler(tuple(config.mean), tuple(config.std))
    if not config.value_range:
        return Scaler(levels(config), config.centered)
    low, high = map(float, config.value_range)
    if config.centered:
        return RealScaler(((low + high) / 2,), ((high - low) / 2,))
    return RealScaler((low,), (high - low,))


def augment(
    key: Array,
    u: Array,
    scaler: Scaler | RealScaler,
    *,
    random_flip: bool,
    uniform_dequantization: bool,
) -> Array:
    """Return training images u (B, H, W, C) as model inputs: randomly flipped and dequantized."""
    flip_key, noise_key = jax.random.split(key)
    if random_flip:
        u = flipped(flip_key, u)
    if uniform_dequantization:
        return scaler.dequantize(u, jax.random.uniform(noise_key, u.shape))
    return scaler.scale(u)


def flipped(key: Array, images: Array) -> Array:
    """Return images (B, H, W, C), of which those that the key selects are flipped."""
    flip = jax.random.bernoulli(key, shape=(images.shape[0], 1, 1, 1))
    return jnp.where(flip, images[:, :, ::-1], images)
