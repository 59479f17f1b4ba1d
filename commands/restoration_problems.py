"""The inverse problem of `--mode=restore`: measurements of images, and their file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

import sampling
from commands import restoration_images
from controllable.operators import Operator
from controllable.tasks import TASKS
from errors import InputError, advice, choose
from experiment import Experiment
from readers.files import read_npz
from runs import write_arrays
from runs.checkpoints import tree_checksum


class Problem(NamedTuple):
    """Measurements of N images.

    Attributes:
      operator: the linear map A of the measurement y = A x + noise.
      y: measurements (N, ...).
      names: names of the images, used in file names.
      truth: the measured images x (N, H, W, C), or None if they are unknown.
    """

    operator: Operator
    y: np.ndarray
    names: list[str]
    truth: np.ndarray | None


def operator_checksum(operator: Operator, shape: tuple[int, ...]) -> int:
    """Return the CRC-32 of a measurement, which differs for another mask or blur in a file."""
    x = jax.random.normal(jax.random.key(0), (1, *shape))
    return tree_checksum(operator.forward(x))


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
        measured = jax.eval_shape(operator.forward, image)
        names, y = restoration_images.load(experiment, measured.shape[1:])
        if options.task == "inpaint":
            y = np.asarray(operator.forward(y))
        return Problem(operator, y, names, None)
    names, truth = restoration_images.load(experiment, shape)
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


def save_measurements(problem: Problem, folder: Path) -> None:
    """Write measurements.npz with the arrays `y` and `names`, also in place of a damaged one.

    Raises InputError if the file exists and holds other measurements.
    """
    path = folder / "measurements.npz"
    arrays = {"y": problem.y, "names": np.array(problem.names)}
    saved = {}
    if os.path.lexists(path):
        try:
            saved = read_npz(path)
        except InputError as error:
            logging.warning("%s It is written again.", error)
    if saved.keys() != arrays.keys():
        write_arrays(path, arrays)
    elif not all(np.array_equal(saved[name], array) for name, array in arrays.items()):
        raise InputError(
            f"{folder} holds reconstructions of other measurements; choose another folder "
            "with --eval_folder."
        )
