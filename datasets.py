"""Images as uint8 grey levels, the batches of a run, and the map between grey levels and what a model sees.

A new data set is one function `(split, config.data) -> Images`, entered in DATASETS; and in LEVELS, if it has fewer
than 256 grey levels. Published sets and images of one's own are read in `readers`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import NamedTuple

import grain
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax import Array
from PIL import Image

from errors import InputError, choose
from readers import arrays, folders, published
from sharding import local_rows


@dataclasses.dataclass(frozen=True)
class Images:
    """Images of one split: `pixels` (N, H, W, C) uint8, or anything else that has a length and takes numbers and arrays
    of numbers as indices; `labels` (N,), their classes 0, 1, ..., or None if these are not known."""

    pixels: np.ndarray
    labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, indices: np.ndarray, *, labelled: bool = False) -> Batch:
        """The images number `indices` (B,), with their labels if asked."""
        return Batch(
            self.pixels[np.asarray(indices)],
            self.labels[indices].astype(np.int32) if labelled else None,
        )


class Batch(NamedTuple):
    """uint8 images (B, H, W, C) and, where they are used, labels (B,) int32; both may have a leading axis of steps."""

    pixels: np.ndarray | Array
    labels: np.ndarray | Array | None = None


def digits(split: str, config: ml_collections.ConfigDict) -> Images:
    """The 1,797 handwritten digits that scikit-learn carries (UCI ML), 8x8x1 with 17 grey levels.

    Every fifth image is held out as 'test' (359 of them), the others are 'train'.
    """
    from sklearn.datasets import load_digits  # Only this data set needs scikit-learn.

    data = load_digits()
    part = (np.arange(len(data.images)) % 5 == 4) == (split == "test")
    return Images(data.images[part].astype(np.uint8)[..., None], data.target[part])


def photos(split: str, config: ml_collections.ConfigDict) -> Images:
    """Colour patches of 32x32 pixels from the two photographs that scikit-learn carries, a temple and a flower.

    Of the 20 tile columns of each photograph (427x640 pixels) every fourth is held out: 'test' is its tiles side by
    side (130 patches), 'train' every patch at multiples of 8 pixels that touches no such column (4,500).
    """
    from sklearn.datasets import (
        load_sample_images,  # Only this data set and the digits need scikit-learn.
    )

    size, stride, period = 32, 8, 128
    step = size if split == "test" else stride
    patches = []
    for photo in load_sample_images().images:
        height, width, _ = photo.shape
        for left in range(0, width - size + 1, step):
            first, last = left % period, left % period + size
            if (first == period - size) if split == "test" else (last <= period - size):
                patches += [
                    photo[top : top + size, left : left + size]
                    for top in range(0, height - size + 1, step)
                ]
    return Images(np.stack(patches))


DATASETS = {
    "digits": digits,
    "photos": photos,
    "folder": lambda split, config: Images(*folders.read(split, config)),
    "array": lambda split, config: Images(*arrays.read(split, config)),
    **dict.fromkeys(
        ("CIFAR10", "SVHN", "CELEBA", "LSUN", "FASHION_MNIST"),
        lambda split, config: Images(*published.read(split, config)),
    ),
    **dict.fromkeys(
        ("FFHQ", "CelebAHQ"), lambda split, config: Images(*published.read_tfrecords(split, config))
    ),
}
LEVELS = {"digits": 17}


def levels(config: ml_collections.ConfigDict) -> int:
    """The number of grey levels of `config.data`; known without its images, as samplers need it."""
    return LEVELS.get(config.dataset.lower(), 256)


def load(config: ml_collections.ConfigDict, split: str) -> Images:
    """The images of a split, 'train' or 'test', of `config.data`.

    Raises InputError for an unknown data set, one whose images are not of the configured size, and for data.num_classes
    that its labels do not fit.
    """
    source = choose(
        {name.lower(): f for name, f in DATASETS.items()}, config.dataset.lower(), "data.dataset"
    )
    images = source(split, config)
    expected = (config.image_size, config.image_size, config.num_channels)
    if images.pixels[0].shape != expected:
        raise InputError(
            f"Images of data.dataset = {config.dataset!r} have shape {images.pixels[0].shape}; data.image_size = "
            f"{config.image_size} and data.num_channels = {config.num_channels} ask for {expected}."
        )
    if config.num_classes:
        check_labels(images, config.num_classes, "data.num_classes")
    return images


def check_labels(images: Images, num_classes: int, field: str) -> None:
    """Raises InputError unless labels are known and in 0 .. num_classes - 1; `field` is where that number stands."""
    if images.labels is None:
        raise InputError(
            f"{field} = {num_classes} needs images with labels; those of data.dataset have none."
        )
    least, largest = int(np.min(images.labels)), int(np.max(images.labels))
    if least < 0 or largest >= num_classes:
        raise InputError(
            f"{field} = {num_classes}, but the labels of data.dataset go from {least} to {largest}."
        )


# --- the map between grey levels and what a model sees ----------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Scaler:
    """Affine map from grey levels u in 0 .. levels-1 to the model's range, [-1, 1] if `centered`, else [0, 1]."""

    levels: int
    centered: bool

    def scale(self, u: Array) -> Array:
        """Grey levels as they are, the last one at 1."""
        return self._center(u.astype(jnp.float32) / (self.levels - 1))

    def dequantize(self, u: Array, noise: Array) -> Array:
        """Grey levels plus noise in [0, 1), which turns their distribution into a density."""
        return self._center((u.astype(jnp.float32) + noise) / self.levels)

    @property
    def log_scale(self) -> float:
        """log dx/du of `dequantize`: what a log-density of x gains per dimension to become one of u + noise."""
        return float(np.log((2.0 if self.centered else 1.0) / self.levels))

    def pixels(self, x: Array, *, dequantized: bool, truncate: bool = False) -> Array:
        """The nearest grey levels of x, spread over 0 .. 255, as uint8; inverts `dequantize` if asked, else `scale`.

        With `truncate`, the next lower ones of `scale` in either case: so the official code made images of samples.
        """
        x = (x + 1) / 2 if self.centered else x
        u = jnp.floor(x * self.levels) if dequantized else jnp.round(x * (self.levels - 1))
        u = jnp.floor(x * (self.levels - 1)) if truncate else u
        return jnp.round(jnp.clip(u, 0, self.levels - 1) * (255 / (self.levels - 1))).astype(
            jnp.uint8
        )

    def _center(self, x: Array) -> Array:
        return 2 * x - 1 if self.centered else x


@dataclasses.dataclass(frozen=True)
class RealScaler:
    """As Scaler, for real numbers in [low, high]: there is nothing to dequantize, and densities are those of the data.

    Its `pixels` are the data's own values, float32.
    """

    low: float
    high: float
    centered: bool

    def scale(self, u: Array) -> Array:
        """Values as the model sees them."""
        return (u.astype(jnp.float32) - self.low) / self._step - self.centered

    def dequantize(self, u: Array, noise: Array) -> Array:
        """The same: no noise is added."""
        return self.scale(u)

    @property
    def log_scale(self) -> float:
        """log dx/du of `scale`."""
        return -math.log(self._step)

    @property
    def levels(self) -> int:
        """There are none: raises InputError, for dequantization and measures of bytes, which want to know."""
        raise InputError(
            f"data.value_range = {(self.low, self.high)}: real numbers have no grey levels."
        )

    def pixels(self, x: Array, *, dequantized: bool, truncate: bool = False) -> Array:
        """The values of x, whatever is said of rounding."""
        return self.low + self._step * (x + self.centered)

    @property
    def _step(self) -> float:
        return (self.high - self.low) / (1 + self.centered)


def make_scaler(config: ml_collections.ConfigDict) -> Scaler | RealScaler:
    """The map that `config.data` describes. Raises InputError for a range that is none, or of dequantized values."""
    if not config.value_range:
        return Scaler(levels(config), config.centered)
    if len(config.value_range) != 2 or not config.value_range[0] < config.value_range[1]:
        raise InputError(
            f"data.value_range = {config.value_range} must be (least, largest), or () for bytes."
        )
    if config.uniform_dequantization:
        raise InputError(
            f"data.value_range = {config.value_range}: real numbers need no dequantization; set "
            f"--noconfig.data.uniform_dequantization."
        )
    return RealScaler(*map(float, config.value_range), config.centered)


def augment(
    key: Array,
    u: Array,
    scaler: Scaler | RealScaler,
    *,
    random_flip: bool,
    uniform_dequantization: bool,
) -> Array:
    """A training batch for the model: u (B, H, W, C) uint8, at random mirrored and dequantized, in float32."""
    flip_key, noise_key = jax.random.split(key)
    if random_flip:
        flip = jax.random.bernoulli(flip_key, shape=(u.shape[0], 1, 1, 1))
        u = jnp.where(flip, u[:, :, ::-1], u)
    if uniform_dequantization:
        return scaler.dequantize(u, jax.random.uniform(noise_key, u.shape))
    return scaler.scale(u)


def image_grid(images: np.ndarray, min_side: int = 64, columns: int | None = None) -> Image.Image:
    """A picture of images (N, H, W, C) in rows, small ones enlarged to at least `min_side` pixels.

    Real numbers are spread over the grey levels; of other channels than grey or three colours the first is shown.
    """
    if images.dtype != np.uint8:
        low, high = np.min(images), np.max(images)
        images = np.round((images - low) * (255 / ((high - low) or 1))).astype(np.uint8)
    images = images if images.shape[-1] == 3 else images[..., :1]
    zoom = max(1, min_side // images.shape[1])
    images = np.pad(images.repeat(zoom, 1).repeat(zoom, 2), ((0, 0), (1, 1), (1, 1), (0, 0)))
    columns = columns or math.ceil(math.sqrt(len(images)))
    images = np.pad(images, ((0, -len(images) % columns), (0, 0), (0, 0), (0, 0)))
    _, height, width, channels = images.shape
    grid = images.reshape(-1, columns, height, width, channels).swapaxes(1, 2)
    grid = grid.reshape(-1, columns * width, channels)
    return Image.fromarray(grid[..., 0] if channels == 1 else grid)


# --- batches ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Batches:
    """Batches of shuffled training images for ever: number n depends on (seed, n) alone, not on hosts or restarts.

    Item n holds `steps` consecutive batches, of which this process loads its rows: (steps, rows, H, W, C) uint8 and, if
    `labelled`, labels (steps, rows).
    """

    images: Images
    batch_size: int
    seed: int
    steps: int = 1
    labelled: bool = False

    def __len__(self) -> int:
        return 2**62 // (self.batch_size * self.steps)

    def __getitem__(self, n: int) -> Batch:
        order = grain.MapDataset.range(len(self.images)).seed(self.seed).shuffle().repeat()
        starts = [(n * self.steps + k) * self.batch_size for k in range(self.steps)]
        indices = [
            np.array([order[s + row] for row in local_rows(self.batch_size)]) for s in starts
        ]
        batches = [self.images.batch(each, labelled=self.labelled) for each in indices]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *batches)

    def iterate(self, start: int) -> Iterator[Batch]:
        """Items from number `start` on, read ahead in a background thread."""
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
        return iter(grain.MapDataset.source(self)[start:].to_iter_dataset(options))


def rounds(images: Images, batch_size: int) -> list[tuple[np.ndarray, int]]:
    """All images once, in order: [(indices (batch_size,), how many of them count), ...]; the last one is filled up."""
    indices = np.arange(-(-len(images) // batch_size) * batch_size)
    counts = [min(batch_size, len(images) - s) for s in range(0, len(images), batch_size)]
    return [
        (row % len(images), count) for row, count in zip(indices.reshape(-1, batch_size), counts)
    ]
