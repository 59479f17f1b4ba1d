"""Custom images or other data on a grid, as an array in a .npy or .npz file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import ml_collections
import numpy as np

from errors import InputError, expand_home, printable
from options import LARGEST
from readers.batches import Images
from readers.files import check_labels, check_regular, read_header, read_npz, reading
from readers.folders import members
from readers.image_sizes import sides

MAX_CLASSES = 2**31
MAX_IMAGES = 10**7  # Splits need 100 bytes for each; compressed, a pixel needs less than one.
MAGIC = b"\x93NUMPY"  # The first bytes of a .npy file.


class Selection(Sequence):
    """Selected entries of an array (N, ...), read on access; real numbers become float32."""

    def __init__(self, array: np.ndarray, selected: np.ndarray) -> None:
        self._array, self._selected = array, selected
        self.dtype = array.dtype if array.dtype == np.uint8 else np.dtype(np.float32)
        self.shape = (len(selected), *array.shape[1:])

    def __len__(self) -> int:
        return len(self._selected)

    def __getitem__(self, index: int | slice | np.ndarray) -> np.ndarray:
        return np.asarray(self._array[self._selected[index]], self.dtype)


def read(split: str, config: ml_collections.ConfigDict) -> Images:
    """Return the images of a split, 'train' or 'test', of the file data.path.

    A .npy file contains images and is not read into memory. A .npz file contains `images`, or
    `train_images` and `test_images`; optional labels are named likewise. Without given splits,
    data.held_out of the images are in 'test'. Images have the shape (N, H, W, C) or (N, H, W), and
    vectors (N, D), if data.image_size is (). uint8 values are gray levels; for other types,
    data.value_range states the range of values, unless data.mean and data.std standardize them.
    data.condition names arrays that the images are conditioned on; see `_conditions`.

    Raises InputError if the file cannot be read, or contains other arrays or values that are not
    finite or out of range.
    """
    if not config.path:  # It would be taken for the current folder.
        raise InputError("data.path = '' is empty; set it to the .npy or .npz file with the data.")
    path = expand_home(config.path, "data.path")
    arrays = _load(path)
    has = ", ".join(f"{printable(name)} {array.shape}" for name, array in arrays.items())[:200]
    prefix = f"{split}_" if f"{split}_images" in arrays else ""
    if f"{prefix}images" not in arrays:
        raise InputError(
            f"{path} contains {has or 'nothing'}; name the array 'images', or 'train_images' and "
            f"'test_images'."
        )
    pixels = _check_images(arrays[f"{prefix}images"], path, sides(config.image_size))
    if pixels.dtype != np.uint8 or config.value_range:
        _check_values(pixels, path, (-LARGEST, LARGEST) if config.std else config.value_range)
    named = {name: arrays.get(f"{prefix}{name}", np.zeros(0)) for name in config.condition}
    conditions = _conditions(named, len(pixels), f"{path} has {has}")
    selected, labels = np.arange(len(pixels)), arrays.get(f"{prefix}labels")
    if not prefix:
        selected = members([str(number) for number in selected], split, config.held_out)
    if labels is not None:
        labels = check_labels(labels, len(pixels), MAX_CLASSES, path)[selected]
    conditions = {kind: Selection(each, selected) for kind, each in conditions.items()}
    return Images(Selection(pixels, selected), labels, **conditions)


def read_condition(path: str) -> dict[str, np.ndarray] | np.ndarray:
    """Return the arrays of guidance.condition by name, or the array in it."""
    found = _load(expand_home(path, "guidance.condition"), "guidance.condition")
    return found["images"] if found.keys() == {"images"} else found


def _conditions(arrays: dict[str, np.ndarray], count: int, has: str) -> dict[str, np.ndarray]:
    """Return the arrays that data.condition names, as `vector` (N, d) and `image` (N, H, W, C).

    An array (N,) is a vector of one entry, and one (N, H, W) an image of one channel.
    """
    found: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        kind = "vector" if array.ndim < 3 else "image"
        fits = array.ndim in (1, 2, 3, 4) and len(array) == count and array.dtype.kind in "uif"
        if not fits or kind in found or not np.isfinite(array).all():
            raise InputError(
                f"data.condition: {name!r} must be an array of {count} vectors (N, d) or images "
                f"(N, H, W, C) of finite numbers, one for each image, and the only {kind}; {has}."
            )
        is_byte = kind == "image" and array.dtype == np.uint8
        array = array if is_byte else array.astype(np.float32)
        found[kind] = array[..., None] if array.ndim in (1, 3) else array
    return found


def _load(path: Path, field: str = "data.path") -> dict[str, np.ndarray]:
    """Return the arrays of a file by name; a single array is named 'images'."""
    check_regular(path, field)
    with reading(f"{field} = {str(path)!r}", kind=" as .npy or .npz"), open(path, "rb") as file:
        if file.read(len(MAGIC)) == MAGIC:
            file.seek(0)
            shape, dtype, order = read_header(file)
            return {"images": np.memmap(file, dtype, "r", file.tell(), shape, order)}
        arrays = read_npz(path)
    return arrays if len(arrays) != 1 else {"images": next(iter(arrays.values()))}


def _check_images(pixels: np.ndarray, path: Path, size: tuple[int, ...]) -> np.ndarray:
    """Return images as (N, H, W, C). Raise InputError for other shapes and types."""
    axes = (3, 4) if len(size) == 2 else (len(size) + 2,)
    is_valid = pixels.ndim in axes and pixels.size and pixels.dtype.kind in "uif"
    if not is_valid or len(pixels) > MAX_IMAGES:
        expected = "shape (N, H, W, C) or (N, H, W)" if len(size) == 2 else f"{axes[0]} axes"
        raise InputError(
            f"{path} contains {pixels.dtype} of shape {pixels.shape}; with data.image_size = "
            f"{size} it must contain numbers of {expected}, N at most {MAX_IMAGES:,}."
        )
    return pixels[..., None] if pixels.ndim < axes[-1] else pixels


def _check_values(pixels: np.ndarray, path: Path, value_range: tuple[float, ...]) -> None:
    """Raise InputError for values that are not finite or not in `value_range`."""
    low, high = float(pixels.min()), float(pixels.max())  # NaN propagates.
    if not np.isfinite([low, high]).all():
        raise InputError(f"{path} contains values that are not finite.")
    if not value_range or low < value_range[0] or high > value_range[1]:
        raise InputError(
            f"{path} contains {pixels.dtype} values from {low:.6g} to {high:.6g}; data.value_range "
            f"= {tuple(value_range)} must be the range of the data, as in "
            f"--config.data.value_range='({low}, {high})'."
        )
