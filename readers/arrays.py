"""Custom images or other data on a grid, as an array in a .npy or .npz file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import ml_collections
import numpy as np

from errors import InputError, brief, expand_home, printable
from readers import cache
from readers.files import check_regular, read_header, read_npz
from readers.folders import members
from readers.image_sizes import sides

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


def read(split: str, config: ml_collections.ConfigDict) -> tuple[Selection, np.ndarray | None]:
    """Return pixels and labels of a split, 'train' or 'test', of the file data.path.

    A .npy file contains images and is not read into memory. A .npz file contains `images`, or
    `train_images` and `test_images`; optional labels are named likewise. Without given splits,
    data.held_out of the images are in 'test'. Images have the shape (N, H, W, C) or (N, H, W).
    uint8 values are grey levels; for other types, data.value_range states the range of values.

    Raises InputError if the file cannot be read, or contains other arrays or values that are not
    finite or out of range.
    """
    path = expand_home(config.path, "data.path")
    arrays = _load(path)
    prefix = f"{split}_" if f"{split}_images" in arrays else ""
    if f"{prefix}images" not in arrays:
        names = ", ".join(map(printable, arrays)) or "nothing"
        raise InputError(
            f"{path} contains {names}; name the array 'images', or 'train_images' and "
            f"'test_images'."
        )
    pixels, labels = arrays[f"{prefix}images"], arrays.get(f"{prefix}labels")
    is_expected = pixels.shape[1:] == sides(config.image_size)
    if pixels.ndim == 3 and not is_expected and pixels.shape[1] != pixels.shape[2] in (1, 3):
        raise InputError(
            f"{path} contains a single image of shape {pixels.shape}; the first axis must count "
            f"the images, as in (N, H, W, C) or (N, H, W)."
        )
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    _check_arrays(pixels, labels, path)
    if pixels.dtype != np.uint8 or config.value_range:
        _check_values(pixels, path, prefix, config.value_range)
    selected = np.arange(len(pixels))
    if not prefix:
        selected = members([str(number) for number in selected], split, config.held_out)
    if labels is not None:
        labels = labels[selected].astype(np.int32)
    return Selection(pixels, selected), labels


def _load(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a file by name; a single array is named 'images'."""
    check_regular(path, "data.path")
    try:
        with open(path, "rb") as file:
            is_npy = file.read(len(MAGIC)) == MAGIC
            file.seek(0)
            if is_npy:
                read_header(file)
        arrays = {"images": np.load(path, "r")} if is_npy else read_npz(path)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            f"data.path = {str(path)!r} cannot be read as .npy or .npz: {brief(error)}"
        ) from error
    if len(arrays) == 1:
        arrays = {"images": next(iter(arrays.values()))}
    return arrays


def _check_arrays(pixels: np.ndarray, labels: np.ndarray | None, path: Path) -> None:
    """Raise InputError for other shapes and types than those of images and labels."""
    if pixels.ndim != 4 or not len(pixels) or pixels.dtype.kind not in "uif":
        raise InputError(
            f"{path} contains {pixels.dtype} of shape {pixels.shape}; images must be numbers of "
            f"shape (N, H, W, C) or (N, H, W)."
        )
    if labels is not None and (labels.shape != pixels.shape[:1] or labels.dtype.kind not in "iu"):
        raise InputError(
            f"{path}: labels are {labels.dtype} of shape {labels.shape}; they must be one integer "
            f"for each image, of shape {pixels.shape[:1]}."
        )
    if labels is not None and not -(2**31) <= labels.min() <= labels.max() < 2**31:
        raise InputError(
            f"{path}: labels go from {labels.min()} to {labels.max()}; they must be integers of 32 "
            f"bits. Number the classes from 0."
        )


def _check_values(
    pixels: np.ndarray, path: Path, prefix: str, value_range: tuple[float, ...]
) -> None:
    """Raise InputError for values that are not finite or not in `value_range`."""

    def measure() -> dict[str, np.ndarray]:
        return {"range": np.array([pixels.min(), pixels.max()], np.float64)}  # NaN propagates.

    def is_valid(entry: dict[str, np.ndarray]) -> bool:
        return entry.get("range", np.array([])).shape == (2,)

    key = cache.fingerprint(path)
    low, high = cache.arrays(f"range_{prefix}", path, key, measure, is_valid)["range"]
    if not (np.isfinite(low) and np.isfinite(high)):
        raise InputError(f"{path} contains values that are not finite.")
    if not value_range:
        raise InputError(
            f"{path} contains {pixels.dtype} values from {low:.6g} to {high:.6g}. Types other than "
            f"uint8 require the range of the data, as in "
            f"--config.data.value_range='({float(low)}, {float(high)})'."
        )
    if low < value_range[0] or high > value_range[1]:
        raise InputError(
            f"{path} contains values from {low:.6g} to {high:.6g}, beyond data.value_range = "
            f"{value_range}."
        )
