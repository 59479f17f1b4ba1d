"""The crops and resizes of the official code, and sequences of decoded images.

Pillow's resize has the same antialiased kernels as `tf.image.resize(..., antialias=True)`. Here it
is computed in floating point and rounded to bytes once. The official code keeps floats, except that
it truncates LSUN at 256 pixels to bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import ml_collections
import numpy as np
from PIL import Image

from errors import InputError
from readers import image_files
from readers.files import reading
from readers.image_files import MODES, Source, to_array
from readers.image_sizes import ImageSize, image_shape, sides, square_side

MAX_RESIZED = 4096**2  # pixels: the largest data.image_size
MEMORY = 2**31  # Bytes. Smaller data sets stay in memory once they are decoded.


def resize(image: Image.Image, size: int) -> Image.Image:
    """Resize to a square by linear interpolation: CIFAR-10 and SVHN."""
    return _resize(image, (size, size), Image.Resampling.BILINEAR)


def resize_small(image: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side to `size` by linear interpolation."""
    ratio = size / min(image.size)
    width, height = (round(side * ratio) for side in image.size)
    return _resize(image, (width, height), Image.Resampling.BILINEAR)


def central_crop(image: Image.Image, size: ImageSize) -> Image.Image:
    """Crop to the central pixels: a square, or (H, W)."""
    height, width = sides(size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def celeba(image: Image.Image, size: int) -> Image.Image:
    """Crop an aligned face to its central 140x140 pixels, and resize: CelebA."""
    return resize_small(central_crop(image, 140), size)


def small_crop(image: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side, then crop: LSUN at 128 pixels."""
    return central_crop(resize_small(image, size), size)


def crop_resize(image: Image.Image, size: ImageSize) -> Image.Image:
    """Crop to a square, then resize by cubic interpolation: LSUN at other sizes, custom images.

    For a size (H, W), the crop is the largest one with sides in this ratio, rounded to pixels.
    """
    height, width = sides(size)
    scale = min(Fraction(image.height, height), Fraction(image.width, width))
    crop = max(1, round(scale * height)), max(1, round(scale * width))
    return _resize(central_crop(image, crop), (width, height), Image.Resampling.BICUBIC)


def lsun(image: Image.Image, size: int) -> Image.Image:
    """Crop and resize as the official code does LSUN, which depends on the size."""
    return small_crop(image, size) if size == 128 else crop_resize(image, size)


def _resize(image: Image.Image, shape: tuple[int, int], kernel: Image.Resampling) -> Image.Image:
    if image.size == shape:
        return image
    if shape[0] * shape[1] > MAX_RESIZED:
        raise ValueError(f"the image of {image.width}x{image.height} pixels is too narrow")
    channels = []
    for number in range(len(image.getbands())):
        floats = np.asarray(image.getchannel(number).convert("F").resize(shape, kernel))
        channels.append(Image.fromarray(np.round(floats).clip(0, 255).astype(np.uint8)))
    return Image.merge(image.mode, channels)


class Pixels(Protocol):
    """Images (N, H, W, C), indexed along N like an array."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> np.ndarray: ...


class Decoded(Sequence):
    """Images (N, H, W, C) uint8 that are decoded on access, indexed along N like an array.

    `decode` returns the image at an index, of `shape` (H, W, C); C must be 1 or 3. One thread per
    core decodes, as Pillow releases Python's lock. Data sets of up to MEMORY bytes are kept in
    memory once decoded.
    """

    dtype = np.dtype(np.uint8)

    def __init__(
        self, decode: Callable[[int], np.ndarray], count: int, shape: tuple[int, ...]
    ) -> None:
        if shape[-1] not in MODES:
            raise InputError(
                f"data.num_channels = {shape[-1]} must be 1 (gray) or 3 (color) for image files."
            )
        self.shape = (count, *shape)
        self._decode = decode
        self._indices = np.arange(count)
        self._pool: ThreadPoolExecutor | None = None
        is_kept = np.prod(self.shape) <= MEMORY
        self._images = np.empty(self.shape, np.uint8) if is_kept else None
        self._is_decoded = np.zeros(count, bool)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int | slice | Sequence[int] | np.ndarray) -> np.ndarray:
        indices = self._indices[index]
        if indices.ndim == 0:
            return self._image(int(indices))
        if self._images is not None and self._is_decoded[indices].all():
            return self._images[indices]
        if self._pool is None:
            self._pool = ThreadPoolExecutor(os.cpu_count())
        images = list(self._pool.map(self._image, indices.tolist()))
        return np.stack(images) if images else np.empty((0, *self.shape[1:]), np.uint8)

    def _image(self, index: int) -> np.ndarray:
        if self._images is None:
            return self._decode(index)
        if not self._is_decoded[index]:
            self._images[index] = self._decode(index)
            self._is_decoded[index] = True
        return self._images[index]


Resize = Callable[[Image.Image, int], Image.Image]


class Files(NamedTuple):
    """Encoded images: their number, the content or path of each, and their source for errors."""

    count: int
    encoded: Callable[[int], Source]
    source: object


def prepared(
    images: np.ndarray | Files, config: ml_collections.ConfigDict, resize: Resize
) -> Pixels:
    """Return images, files or (N, H, W, C) uint8, in the square shape that `config.data` states."""
    size, shape = square_side(config), image_shape(config)
    if isinstance(images, Files):
        files = images

        def decode(index: int) -> np.ndarray:
            name: object = f"{files.source}: image {index}"
            with reading(name):
                source = files.encoded(index)
            with reading(source if isinstance(source, Path) else name):
                return image_files.load(source, config.num_channels, resize, size)

        return Decoded(decode, files.count, shape)
    if images.shape[1:] == shape:
        return images
    array = images[..., 0] if images.shape[-1] == 1 else images

    def convert(index: int) -> np.ndarray:
        return to_array(resize(Image.fromarray(array[index]).convert(MODES[shape[-1]]), size))

    return Decoded(convert, len(array), shape)
