"""Image files as arrays of bytes: decoding, and the crops and resizes of the official release.

Pillow's resize has the antialiased kernels of `tf.image.resize(..., antialias=True)`. It is done in floating point and
rounded to bytes once, where the official code keeps floats (LSUN of 256 pixels: truncates them to bytes).
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from errors import InputError

FORMATS = ("PNG", "JPEG", "WEBP")
MODES = {1: "L", 3: "RGB"}
MEMORY = 2**31  # bytes: smaller sets stay in the host's memory once they are decoded.

# --- decoding ---------------------------------------------------------------------------------------------------------


def decode(source: bytes | Path, channels: int) -> Image.Image:
    """An image file, or what it holds, upright and in 8 bits: grey for 1 channel, RGB for 3.

    EXIF orientation is applied, transparency laid on white, 16-bit grey rounded to 8 bits, CMYK converted without
    colour profiles. Raises whatever Pillow raises for a file that it cannot read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of odd metadata and of large images, which are no errors.
        with Image.open(
            io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS
        ) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith("I"):
                image = Image.fromarray(
                    np.round(np.asarray(image).clip(0, 65535) / 257).astype(np.uint8)
                )
            elif image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return image.convert(MODES[channels])


def to_array(image: Image.Image) -> np.ndarray:
    """The pixels (H, W, C) uint8."""
    array = np.asarray(image)
    return array[..., None] if array.ndim == 2 else array


# --- crops and resizes: (image, side in pixels) -> image --------------------------------------------------------------


def resize(image: Image.Image, size: int) -> Image.Image:
    """The whole image as a square, by linear interpolation: CIFAR-10 and SVHN."""
    return _resize(image, (size, size), Image.Resampling.BILINEAR)


def resize_small(image: Image.Image, size: int) -> Image.Image:
    """The image with its shorter side of this length, by linear interpolation."""
    ratio = size / min(image.size)
    return _resize(
        image, tuple(round(side * ratio) for side in image.size), Image.Resampling.BILINEAR
    )


def central_crop(image: Image.Image, size: int) -> Image.Image:
    """The middle square."""
    left, top = ((side - size) // 2 for side in image.size)
    return image.crop((left, top, left + size, top + size))


def celeba(image: Image.Image, size: int) -> Image.Image:
    """The middle 140x140 pixels of an aligned face, resized."""
    return resize_small(central_crop(image, 140), size)


def small_crop(image: Image.Image, size: int) -> Image.Image:
    """Resized, then cropped: LSUN of 128 pixels."""
    return central_crop(resize_small(image, size), size)


def crop_resize(image: Image.Image, size: int) -> Image.Image:
    """The largest middle square, by cubic interpolation: LSUN of other sizes, and images of one's own."""
    return _resize(central_crop(image, min(image.size)), (size, size), Image.Resampling.BICUBIC)


def _resize(image: Image.Image, shape: tuple[int, int], kernel: Image.Resampling) -> Image.Image:
    if image.size == shape:
        return image
    floats = (np.asarray(channel.convert("F").resize(shape, kernel)) for channel in image.split())
    return Image.merge(
        image.mode, [Image.fromarray(np.round(f).clip(0, 255).astype(np.uint8)) for f in floats]
    )


# --- sequences --------------------------------------------------------------------------------------------------------


class Decoded(Sequence):
    """Images (N, H, W, C) uint8 that are decoded when asked for; indexed along N like an array.

    Several at once are decoded by as many threads as there are cores: Pillow lets go of Python's lock while it decodes
    and resizes. Sets of up to MEMORY bytes are kept once decoded.

    Raises InputError if there are not 1 or 3 channels.
    """

    dtype = np.dtype(np.uint8)

    def __init__(
        self, decode: Callable[[int], np.ndarray], count: int, shape: tuple[int, int, int]
    ) -> None:
        if shape[-1] not in MODES:
            raise InputError(
                f"data.num_channels = {shape[-1]} must be 1 (grey) or 3 (colour) for files of images."
            )
        self.shape = (count, *shape)
        self._decode, self._numbers = decode, np.arange(count)
        self._pool: ThreadPoolExecutor | None = None
        keep = np.prod(self.shape) <= MEMORY
        self._kept, self._known = (
            (np.empty(self.shape, np.uint8), np.zeros(count, bool)) if keep else (None, None)
        )

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int | slice | Sequence[int] | np.ndarray) -> np.ndarray:
        numbers = self._numbers[index]
        if numbers.ndim == 0:
            return self._one(int(numbers))
        if self._kept is not None and self._known[numbers].all():
            return self._kept[numbers]
        self._pool = self._pool or ThreadPoolExecutor(os.cpu_count())
        images = list(self._pool.map(self._one, numbers.tolist()))
        return np.stack(images) if images else np.empty((0, *self.shape[1:]), np.uint8)

    def _one(self, index: int) -> np.ndarray:
        if self._kept is None:
            return self._decode(index)
        if not self._known[index]:
            self._kept[index] = self._decode(index)
            self._known[index] = True
        return self._kept[index]
