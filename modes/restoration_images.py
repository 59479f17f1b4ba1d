"""Input images of `--mode=restore`: files that the config names, or held-out images."""

from __future__ import annotations

import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from PIL import Image

from configs.default import Config
from errors import InputError, brief, printable
from experiment import Experiment
from readers import folders, preprocessing
from readers.files import check_regular

Shape = tuple[int, int, int]


def load(experiment: Experiment, shape: Shape) -> tuple[list[str], np.ndarray]:
    """Load the first restore.count images of restore.input, or of the held-out images without it.

    Returns names for output files, and images (N, *shape) float32 in the model's range. Raises
    InputError if there are no such images or one of them cannot be read.
    """
    options, scaler = experiment.config.restore, experiment.scaler
    if options.input:
        names, images = _load_files(options, shape)
        levels = np.round(images / 255 * (scaler.levels - 1)).astype(np.uint8)
    elif options.observed:
        raise InputError(
            "restore.observed = True needs restore.input, the file or folder of measured images."
        )
    else:
        count = min(options.count, len(experiment.test))
        names = [f"test_{i}" for i in range(count)]
        levels = experiment.test.pixels[np.arange(count)]
    if experiment.config.data.uniform_dequantization:
        middle = jnp.float32(0.5)  # of the interval that dequantization assigns to a grey level
        return names, np.asarray(scaler.dequantize(jnp.asarray(levels), middle))
    return names, np.asarray(scaler.scale(jnp.asarray(levels)))


def decode(path: Path, channels: int) -> Image.Image:
    """Decode an image file. Raises InputError if it cannot be read."""
    try:
        return preprocessing.decode(path, channels)
    except InputError:
        raise
    except Exception as error:  # Decoders raise many exception types for damaged files.
        raise InputError(
            f"The image '{printable(path)}' cannot be read: {brief(error)}. Replace or remove it."
        ) from error


def _load_files(options: Config, shape: Shape) -> tuple[list[str], np.ndarray]:
    """Load the first images of a file or folder; return names and uint8 images (N, *shape)."""
    root = Path(options.input).expanduser()
    if os.path.lexists(root) and not root.is_dir():
        check_regular(root, "restore.input")
        paths, names = [root], [root.stem]
    else:
        found = folders.walk(root) if root.is_dir() else []
        relative = [Path(name) for name in sorted(name for name, _ in found)[: options.count]]
        paths = [root / path for path in relative]
        names = [str(path.with_suffix("")).replace("/", "_") for path in relative]
        if len(set(names)) < len(names):  # Such as a.png beside a.jpg.
            names = [f"{number}_{name}" for number, name in enumerate(names)]
    if not paths:
        raise InputError(
            f"restore.input = {options.input!r} is neither an image file nor a folder of image "
            f"files ({', '.join(sorted(folders.SUFFIXES))})."
        )
    images = [preprocessing.crop_resize(decode(path, shape[-1]), shape[:2]) for path in paths]
    return names, np.stack([preprocessing.to_array(image) for image in images])
