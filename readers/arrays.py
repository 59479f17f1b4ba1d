"""Arrays of one's own, .npy or .npz: images in bytes, or real numbers on a grid."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import ml_collections
import numpy as np

from errors import InputError, brief
from readers import cache
from readers.folders import members


class Chosen(Sequence):
    """Some entries of an array (N, ...), read when asked for; real numbers become float32."""

    def __init__(self, array: np.ndarray, chosen: np.ndarray) -> None:
        self._array, self._chosen = array, chosen
        self.dtype = array.dtype if array.dtype == np.uint8 else np.dtype(np.float32)
        self.shape = (len(chosen), *array.shape[1:])

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int | slice | np.ndarray) -> np.ndarray:
        return np.asarray(self._array[self._chosen[index]], self.dtype)


def read(split: str, config: ml_collections.ConfigDict) -> tuple[Chosen, np.ndarray | None]:
    """Pixels and labels of a split of the file data.path; .npy is not read into memory.

    An .npz holds `images`, or `train_images` and `test_images`, and perhaps `labels`, named alike; without such names
    data.held_out of the images are 'test'. Shapes are (N, H, W, C) or (N, H, W). Bytes are grey levels; of other
    numbers data.value_range must say between which values they lie.

    Raises InputError if the file cannot be read, holds something else, or values that are not finite or out of range.
    """
    path = Path(config.path).expanduser()
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        arrays = {"images": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"data.path = {config.path!r} cannot be read as .npy or .npz: {brief(error)}."
        ) from error
    if len(arrays) == 1:
        arrays = {"images": next(iter(arrays.values()))}
    prefix = f"{split}_" if f"{split}_images" in arrays else ""
    if f"{prefix}images" not in arrays:
        names = ", ".join(arrays) or "nothing"
        raise InputError(
            f"{path} holds {names}; name the array 'images', or 'train_images' and 'test_images'."
        )
    pixels, labels = arrays[f"{prefix}images"], arrays.get(f"{prefix}labels")
    pixels = pixels[..., None] if pixels.ndim == 3 else pixels
    _check(pixels, labels, path, prefix, config)
    everything = np.arange(len(pixels))
    chosen = (
        everything
        if prefix
        else members([str(number) for number in everything], split, config.held_out)
    )
    return Chosen(pixels, chosen), None if labels is None else labels[chosen].astype(np.int32)


def _check(
    pixels: np.ndarray,
    labels: np.ndarray | None,
    path: Path,
    prefix: str,
    config: ml_collections.ConfigDict,
) -> None:
    if pixels.ndim != 4 or not len(pixels) or pixels.dtype.kind not in "uif":
        raise InputError(
            f"{path} holds {pixels.dtype} of shape {pixels.shape}; images are numbers (N, H, W, C) or (N, H, W)."
        )
    if labels is not None and (labels.shape != pixels.shape[:1] or labels.dtype.kind not in "iu"):
        raise InputError(
            f"{path}: labels are {labels.dtype} of shape {labels.shape}, not one integer for each image."
        )
    if pixels.dtype == np.uint8 and not config.value_range:
        return
    measure = lambda: {
        "range": np.array([pixels.min(), pixels.max()], np.float64)
    }  # NaN if there is any.
    low, high = cache.arrays(f"range_{prefix}", path, cache.fingerprint(path), measure)["range"]
    if not (np.isfinite(low) and np.isfinite(high)):
        raise InputError(f"{path} holds values that are not finite.")
    if not config.value_range:
        raise InputError(
            f"{path} holds {pixels.dtype} from {low:.6g} to {high:.6g}: say between which values data lie, as in "
            f"--config.data.value_range='({float(low)}, {float(high)})'. Only uint8 goes without."
        )
    if low < config.value_range[0] or high > config.value_range[1]:
        raise InputError(
            f"{path} holds values from {low:.6g} to {high:.6g}, beyond data.value_range = {config.value_range}."
        )
