"""`--mode=restore`: reconstruct images from incomplete, blurred or noisy measurements of them.

The prior is an unconditional score model. Results are written to
`WORKDIR/restore/checkpoint_K/NAME/`; NAME is TASK-METHOD, or --eval_folder if given. They are
measurements.npz; answers_*.npz, one file of reconstructions for each round; grid.png, one row for
each image (the image if known, the measurement, its reconstructions as `sample 1` and so on, their
mean and their standard deviation as `spread`); each reconstruction by itself; and results.json.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax import Array
from PIL import Image

import datasets
import sampling
import sharding
from configs import remedies
from configs.default import Config, complete
from controllable.measurements import Measurement
from controllable.methods import METHODS, posterior_loop
from controllable.operators import Operator
from errors import InputError, choose
from experiment import Experiment, InParts
from models.building import Params
from modes import restoration_images
from modes.restoration_images import image_range
from modes.restoration_tasks import BLUR_TASKS, TASKS
from readers.files import read_npz
from solvers import Loop
from workdir import (
    Depends,
    dependencies,
    load_rounds,
    owned,
    results_folder,
    run_rounds,
    write_arrays,
    write_json,
    write_picture,
)


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


def restore(
    config: Config,
    workdir: str,
    number: int | None = None,
    folder: str | None = None,
    given: Collection[str] | None = None,
) -> dict[str, Any]:
    """Run the task of config.restore; return the content of results.json.

    These are the root mean square of y - A x per measured entry, in units of the range of images,
    the number of score evaluations and, if the images are known, PSNR (dB) and SSIM of the
    reconstructions, of their mean and of the pseudo-inverse, each averaged over images. The sampler
    is that of config.sampling, as `with_sampler` changes it with the fields `given`.

    Raises InputError for invalid values in config.restore, and for images, a workdir or a
    checkpoint that cannot be read.
    """
    experiment = Experiment(with_sampler(config, given), mode="restore")
    config, options = experiment.config, experiment.config.restore
    if METHODS[options.method].uses_predictor:
        experiment.sampler.check_stable()
    problem = build_problem(experiment)
    found, params = experiment.trained(workdir, number)
    name = folder or f"{options.task}-{options.method}"
    parent = Path(workdir) / "restore" / f"checkpoint_{found.number}"
    output = results_folder(parent, name, taken=())
    depends = dependencies("answers", config) | experiment.identity(workdir, found)
    depends["measurements"] = zlib.crc32(np.ascontiguousarray(problem.y).data)
    results = {"task": options.task, "method": options.method, "images": len(problem.y)}
    say_sampler(config)
    with owned(output, config, "restoration"):
        save_measurements(problem, output)
        reconstructions, results["nfe"] = solve(experiment, problem, params, output, depends)
        results |= measure_quality(experiment, problem, reconstructions)
        write_pictures(experiment, problem, reconstructions, output)
        write_json(output / "results.json", results)
    for key, value in results.items():
        print(f"{key}: {value}")
    print(f"results: {output}")
    return results


def with_sampler(config: Config, given: Collection[str] | None = None) -> Config:
    """Return the complete config with a sampler that suits config.restore.method.

    That is, without a corrector if the method allows none. A method that works with every sampler
    gets a few-step solver, unless sampling.method is among the fields `given` on the command line;
    None states that all fields are.
    """
    config = complete(config)
    method = METHODS.get(config.restore.method)
    if method and not method.allows_corrector:
        config.sampling.corrector = "none"
    chosen = given is not None and "sampling.method" not in given
    if method and not method.requires_pc and chosen:
        config.sampling.method = "solver"
    return config


def say_sampler(config: Config) -> None:
    """Print the method and the sampler of config.restore, and how to choose another one."""
    line = f"{config.restore.method} with the sampler {remedies.describe(config)}"
    if not METHODS[config.restore.method].requires_pc:
        line += "; --config.sampling.method=pc, ode or solver selects another one"
    print(line, flush=True)


# --- measurements ---


def build_problem(experiment: Experiment) -> Problem:
    """Build the inverse problem of config.restore.

    Raises InputError if the operator does not fit the images, or an image cannot be read.
    """
    options, shape = experiment.config.restore, experiment.image_shape
    operator = choose(TASKS, options.task, "restore.task")(options, shape)
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
    low, high = image_range(experiment)
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


# --- reconstructions ---


def solve(
    experiment: Experiment, problem: Problem, params: Params, folder: Path, depends: Depends
) -> tuple[np.ndarray, float]:
    """Draw restore.samples reconstructions of each image in rounds, and resume finished rounds.

    `depends` describes everything that the reconstructions are made from.

    Returns reconstructions (N, S, H, W, C) in the model's range, S = restore.samples, and the mean
    number of score evaluations for one of them. Raises NotFiniteError if one is not finite.
    """
    config = experiment.config
    count, devices = len(problem.y), experiment.mesh.size
    size = min(config.eval.batch_size, -(-count // devices) * devices)
    batches = -(-count // size)
    run = compile_solver(experiment, problem.operator)

    def compute(index: int) -> dict[str, np.ndarray]:
        sample, batch = divmod(index, batches)
        first = batch * size
        indices = np.arange(first, first + size)
        inputs = experiment.rows((problem.y[indices % count], indices))
        valid = min(size, count - first)  # The rest of the last batch is padding.
        text = f"reconstruction {sample + 1} of {config.restore.samples}, {valid} images"
        x, nfe, bad_step = sharding.fetch(run(text, params, *inputs, sample))
        remedies.check_samples(config, bad_step[:valid], experiment.sampler.steps, mode="restore")
        return {"x": x[:valid], "nfe": nfe[:valid]}

    paths = run_rounds(folder, "answers", config.restore.samples * batches, compute, depends)
    rounds = load_rounds(paths)
    reconstructions = rounds["x"].reshape(-1, count, *experiment.image_shape).swapaxes(0, 1)
    return reconstructions, float(rounds["nfe"].mean())


def compile_solver(experiment: Experiment, operator: Operator) -> InParts:
    """Return the compiled, sharded solver for one reconstruction of each image of a batch.

    (params, y (B, ...), image indices (B,), index of the reconstruction) -> x (B, H, W, C), score
    evaluations (B,) and `Samples.bad_step` (B,).
    """
    options, std = experiment.config.restore, noise_std(experiment)
    split, whole = sharding.along_axis(experiment.mesh), sharding.replicated(experiment.mesh)

    def prepare(params: Params, y: Array, indices: Array, sample: Array) -> tuple[Loop, Array]:
        root = jax.random.fold_in(experiment.key("restore"), sample)
        loop, start = posterior_loop(
            options.method,
            options,
            experiment.sampler,
            sampling.image_keys(root, indices),
            experiment.score(params),
            experiment.sde,
            Measurement(operator, y, std),
            experiment.image_shape,
            support=image_range(experiment),
        )
        return loop.then(lambda samples: (samples.x, samples.nfe, samples.bad_step)), start

    inputs = (whole, split, split, whole)
    return InParts(prepare, experiment.sampler.steps, experiment.mesh, inputs, split)


# --- results ---


def measure_quality(
    experiment: Experiment, problem: Problem, reconstructions: np.ndarray
) -> dict[str, float]:
    """Return misfit, PSNR and SSIM, see `restore`, of reconstructions (N, S, H, W, C)."""
    count, samples = reconstructions.shape[:2]
    low, high = image_range(experiment)
    measurement = Measurement(problem.operator, jnp.asarray(problem.y))
    residual = jax.jit(measurement.residual)
    squares = [np.abs(residual(reconstructions[:, s])) ** 2 for s in range(samples)]
    measured = np.broadcast_to(problem.operator.measured, squares[0].shape)
    results = {"misfit": float(np.sqrt(np.mean(squares, 0)[measured].mean()) / (high - low))}
    if problem.truth is None:
        return results

    def scale(x: np.ndarray) -> np.ndarray:
        return (np.clip(x, low, high) - low) / (high - low)

    window = min(11, *experiment.image_shape[:2])
    candidates = {
        "answers": reconstructions.reshape(-1, *experiment.image_shape),
        "mean": reconstructions.mean(1),
        "pseudo_inverse": np.asarray(problem.operator.pseudo_inverse(jnp.asarray(problem.y))),
    }
    for name, x in candidates.items():
        pair = scale(np.repeat(problem.truth, len(x) // count, 0)), scale(x)
        ssim = dm_pix.ssim(*pair, filter_size=window)  # Its convolutions are exact.
        results[f"psnr_{name}"] = float(np.mean(dm_pix.psnr(*pair)))
        results[f"ssim_{name}"] = float(np.mean(ssim))
    return results


def write_pictures(
    experiment: Experiment, problem: Problem, reconstructions: np.ndarray, folder: Path
) -> None:
    """Write grid.png, and the measurement and reconstructions of each image as separate files.

    Measurements are shown as their pseudo-inverse, except for blurred images.
    """

    def pixels(x: np.ndarray) -> np.ndarray:
        return np.asarray(experiment.pixels(jnp.asarray(x)))

    measured = problem.y
    if experiment.config.restore.task not in BLUR_TASKS:
        measured = np.asarray(problem.operator.pseudo_inverse(jnp.asarray(problem.y)))
    std = reconstructions.std(1, ddof=min(1, reconstructions.shape[1] - 1))
    low, high = image_range(experiment)
    std_image = low + (high - low) * std / max(std.max(), 1e-6)
    columns = {} if problem.truth is None else {"image": problem.truth}
    columns["measurement"] = measured
    for s, reconstruction in enumerate(reconstructions.swapaxes(0, 1)):
        columns[f"sample {s + 1}"] = reconstruction
    columns |= {"mean": reconstructions.mean(1), "spread": std_image}
    grid = pixels(np.stack([*columns.values()], 1)).reshape(-1, *experiment.image_shape)
    write_picture(folder / "grid.png", datasets.image_grid(grid, titles=[*columns]))
    for name, image, own_reconstructions in zip(
        problem.names, pixels(measured), pixels(reconstructions)
    ):
        _write_image(folder / f"{name}_measured.png", image)
        for s, reconstruction in enumerate(own_reconstructions):
            _write_image(folder / f"{name}_answer_{s}.png", reconstruction)


def _write_image(path: Path, image: np.ndarray) -> None:
    """Write a uint8 image (H, W, C); Pillow expects (H, W) for grey ones."""
    write_picture(path, Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image))
