"""The inverse problem of `--mode=restore`: images, their measurements, and the file of these."""

from __future__ import annotations

import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import sampling
from configs.default import Config
from controllable.operators import Operator
from controllable.tasks import TASKS, read_image
from errors import InputError, advice, choose, expand_home
from experiment import Experiment
from readers import folders, image_files, preprocessing
from readers.files import check_regular
from runs.checkpoints import tree_checksum

Shape = tuple[int, ...]


class Problem(NamedTuple):
    """Measurements y (N, ...) = A x + noise of N images with unique names.

    `truth` are the images x (N, H, W, C), or None if they are unknown.
    """

    operator: Operator
    y: np.ndarray
    names: list[str]
    truth: np.ndarray | None


def operator_checksum(operator: Operator, shape: Shape) -> int:
    """Return the CRC-32 of a measurement, which differs for another mask or blur in a file."""
    return tree_checksum(operator.forward(jax.random.normal(jax.random.key(0), (1, *shape))))


def build_operator(experiment: Experiment) -> Operator:
    """Return the operator of config.restore. Raises InputError if it does not fit the images."""
    options = experiment.config.restore
    task = choose(TASKS, options.task, "restore.task")
    chosen = {name: options[name] for name in task.options}
    with advice(f"See restore.{' and restore.'.join(task.options)}." if task.options else ""):
        return task.make(experiment.image_shape, **chosen)


def build_problem(experiment: Experiment, operator: Operator) -> Problem:
    """Return the measurements of config.restore. Raises InputError if an image cannot be read."""
    options, shape = experiment.config.restore, experiment.image_shape
    if options.observed:
        image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
        names, y = load_images(experiment, jax.eval_shape(operator.forward, image).shape[1:])
        if options.task == "inpaint":
            y = np.asarray(operator.forward(y))
        return Problem(operator, y, names, None)
    names, truth = load_images(experiment, shape)
    keys = sampling.image_keys(experiment.key("measure"), jnp.arange(len(truth)))
    noise = sampling.standard_normal(keys, truth.shape)
    y = np.asarray(operator.observe(truth, noise, noise_std(experiment)))
    return Problem(operator, y, names, truth)


def noise_std(experiment: Experiment) -> float:
    """Return the standard deviation of the measurement noise in the model's range.

    restore.noise states it for images in [0, 1].
    """
    low, high = experiment.image_range
    return experiment.config.restore.noise * (high - low)


# --- images ---------------------------------------------------------------------------------------


def load_images(experiment: Experiment, shape: Shape) -> tuple[list[str], np.ndarray]:
    """Load the first restore.count images of restore.input, or of the held-out images without it.

    Returns names for output files, and images (N, *shape) float32. Raises InputError.
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
        levels = experiment.test.pixels[np.arange(min(options.count, len(experiment.test)))]
        names = [f"test_{i}" for i in range(len(levels))]
    if experiment.config.data.uniform_dequantization:
        middle = jnp.float32(0.5)  # of the interval that dequantization assigns to a gray level
        return names, np.asarray(scaler.dequantize(jnp.asarray(levels), middle))
    return names, np.asarray(scaler.scale(jnp.asarray(levels)))


def _load_files(options: Config, shape: Shape) -> tuple[list[str], np.ndarray]:
    """Load the first images of a file or folder; return unique names, and uint8 (N, *shape)."""
    root = expand_home(options.input, "restore.input")
    if os.path.lexists(root) and not root.is_dir():
        check_regular(root, "restore.input")
        paths, stems = [root], [root.stem]
    else:
        found = sorted(name for name, _ in folders.walk(root)) if root.is_dir() else []
        paths = [root / name for name in found[: options.count]]
        stems = [str(path.relative_to(root).with_suffix("")).replace("/", "_") for path in paths]
    if not paths:
        raise InputError(
            f"restore.input = {options.input!r} is neither an image file nor a folder of image "
            f"files ({', '.join(sorted(folders.SUFFIXES))})."
        )
    images = [preprocessing.crop_resize(read_image(path, shape[-1]), shape[:2]) for path in paths]
    if len(set(stems)) < len(stems):  # Such as for a.png beside a.jpg.
        stems = [f"{number}_{stem}" for number, stem in enumerate(stems)]
    return stems, np.stack([image_files.to_array(image) for image in images])
