"""Input images of `--mode=restore`: files that the config names, or held-out images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from configs.default import Config
from controllable.tasks import read_image
from errors import InputError, expand_home
from experiment import Experiment
from readers import folders, image_files, preprocessing
from readers.files import check_regular

Shape = tuple[int, int, int]

MAX_NAME = 255  # bytes of a file's name, on most file systems


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


def _load_files(options: Config, shape: Shape) -> tuple[list[str], np.ndarray]:
    """Load the first images of a file or folder; return names and uint8 images (N, *shape)."""
    root = expand_home(options.input, "restore.input")
    if os.path.lexists(root) and not root.is_dir():
        check_regular(root, "restore.input")
        paths, stems = [root], [root.stem]
    else:
        found = folders.walk(root) if root.is_dir() else []
        relative = [Path(name) for name in sorted(name for name, _ in found)[: options.count]]
        paths = [root / path for path in relative]
        stems = [str(path.with_suffix("")).replace("/", "_") for path in relative]
    if not paths:
        raise InputError(
            f"restore.input = {options.input!r} is neither an image file nor a folder of image "
            f"files ({', '.join(sorted(folders.SUFFIXES))})."
        )
    images = [preprocessing.crop_resize(read_image(path, shape[-1]), shape[:2]) for path in paths]
    names = _result_names(stems, options.samples)
    return names, np.stack([image_files.to_array(image) for image in images])


def _result_names(stems: Sequence[str], samples: int) -> list[str]:
    """Return unique names for the results of files with these stems.

    They are shortened where a picture of `restoration_results` would have a longer name than file
    systems allow, and numbered where two of them are equal, such as for a.png beside a.jpg.
    """
    endings = ("_measured.png", f"_answer_{samples - 1}.png")
    room = MAX_NAME - max(map(len, endings))
    names = [_shorten(stem, room) for stem in stems]
    if len(set(names)) < len(names):
        names = [_shorten(f"{number}_{stem}", room) for number, stem in enumerate(stems)]
    return names


def _shorten(name: str, size: int) -> str:
    """Return the start of a name that has at most `size` bytes."""
    while len(os.fsencode(name)) > size:
        name = name[:-1]
    return name
