"""`--mode=restore`: reconstruct images from incomplete, blurred or noisy measurements of them.

`WORKDIR/restore/checkpoint_K/NAME/` gets measurements.npz; the rounds samples_*.npz; grid.png, one
row for each image (`spread` is the standard deviation); each reconstruction; and results.json.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import datasets
import sampling
from api.posterior import Posterior
from api.trained import TrainedModel
from commands.models import open_model
from configs.default import Config
from configs.folders import dependencies, owned
from configs.parts import sampler_name
from controllable.measurements import Measurement
from controllable.methods import METHODS
from controllable.operators import Operator
from controllable.tasks import TASKS, read_image
from errors import InputError, advice, expand_home
from experiment import Experiment
from options import choose
from readers import folders, image_files, preprocessing
from readers.files import check_regular
from runs import load_rounds, results_folder, run_rounds, write_arrays, write_json, write_picture
from runs.checkpoints import tree_checksum
from sampling import Sampler

Shape = tuple[int, ...]

Given = Collection[str] | None
"""The config fields that are set on the command line; None for a config that is complete."""


def set_up(
    mode: str, config: Config, workdir: str, number: int | None, folder: str | None, given: Given
) -> tuple[Experiment, Problem | None, Posterior, Sampler, Path, dict[str, Any]]:
    """Validate everything, then load checkpoint `number`, for the mode "restore" or "calibrate".

    Returns the experiment; the measurements, or None for "calibrate"; the posterior and its
    sampler; the folder of results; and what samples are made from. Prints the method and the
    sampler.
    """
    experiment = Experiment(config, mode=mode)
    config, options = experiment.config, experiment.config.restore
    operator = build_operator(experiment)
    problem = build_problem(experiment, operator) if mode == "restore" else None
    y = problem.y if problem else None
    experiment.load_guidance(workdir)
    count = len(problem.y) if problem else config.calibrate.simulations
    condition = experiment.sample_condition(0, count)

    def solve(model: TrainedModel) -> tuple[Posterior, Sampler]:
        model = model.given(condition, **experiment.guidance)
        return make_posterior(experiment, model, operator, given, y)

    solve(experiment.trained_model({}))  # Checks the condition and the sampler.
    opened = open_model(experiment, workdir, number)
    posterior, sampler = solve(opened.model)
    parent = Path(workdir) / ("restore" if problem else "calibration") / opened.folder
    output = results_folder(parent, folder or f"{options.task}-{options.method}", taken=())
    depends = dependencies("reconstructions" if problem else "ranks", config) | opened.identity
    depends |= experiment.sample_inputs() | {"sampler": sampler.title}
    depends["operator"] = operator_checksum(operator, experiment.image_shape)
    line = f"{options.method} with the sampler {sampler.title}"
    method = METHODS[options.method]
    if method.condition is not None and not method.requires_pc:
        line += "; --config.sampling.method=pc, ode or solver selects another one"
    print(line, flush=True)
    return experiment, problem, posterior, sampler, output, depends


def restore(
    config: Config,
    workdir: str,
    number: int | None = None,
    folder: str | None = None,
    given: Given = None,
) -> dict[str, Any]:
    """Run the task of config.restore; return the content of results.json.

    These are the root mean square of y - A x per measured entry, in units of the range of images,
    the number of score evaluations and, if the images are known, PSNR (dB) and SSIM. The sampler is
    that of config.sampling if sampling.method is among the fields `given` on the command line, and
    otherwise one that suits the method; None states that all fields are given. Raises InputError.
    """
    experiment, problem, posterior, sampler, output, depends = set_up(
        "restore", config, workdir, number, folder, given
    )
    assert problem is not None
    config, options = experiment.config, experiment.config.restore
    depends["measurements"] = zlib.crc32(np.ascontiguousarray(problem.y).data)
    count, samples, size = len(problem.y), options.samples, config.eval.batch_size
    total, key = count * samples, experiment.key("restore")

    def compute(index: int) -> dict[str, np.ndarray]:
        first = index * size
        drawn = posterior.draw(
            sampler, samples, key, first=first, count=min(size, total - first), batch_size=size
        )
        return {"x": np.asarray(drawn.x), "nfe": np.asarray(drawn.nfe)}

    results = {"task": options.task, "method": options.method, "images": count}
    with owned(output, config, "restoration"):
        measured = {"y": problem.y, "names": np.array(problem.names)}
        write_arrays(output / "measurements.npz", measured)
        paths = run_rounds(output, "samples", -(-total // size), compute, depends)
        rounds = load_rounds(paths, x=(total, *experiment.image_shape), nfe=(total,))
        reconstructions = rounds["x"].reshape(count, samples, *experiment.image_shape)
        results["nfe"] = float(rounds["nfe"].mean())
        results |= measure_quality(experiment, problem, reconstructions)
        write_pictures(experiment, problem, reconstructions, output)
        write_json(output / "results.json", results)
    for name, value in results.items():
        print(f"{name}: {value}")
    print(f"results: {output}")
    return results


def make_posterior(
    experiment: Experiment,
    model: TrainedModel,
    operator: Operator,
    given: Given,
    y: np.ndarray | None = None,
) -> tuple[Posterior, Sampler]:
    """Return the posterior of config.restore and its sampler; see `restore`."""
    options = experiment.config.restore
    method = METHODS[options.method]
    of_method = {name: options[name] for name in method.options}
    noise = noise_std(experiment)
    posterior = model.posterior(y, operator, noise=noise, method=options.method, **of_method)
    is_chosen = given is None or "sampling.method" in given
    name = sampler_name(experiment.config) if is_chosen and method.condition is not None else None
    return posterior, posterior.make_sampler(name)


def measure_quality(
    experiment: Experiment, problem: Problem, reconstructions: np.ndarray
) -> dict[str, float]:
    """Return misfit, PSNR and SSIM, see `restore`, of reconstructions (N, S, H, W, C)."""
    # Its import fails if no folder for temporary files is writable, and other modes need no such.
    import dm_pix

    count, samples = reconstructions.shape[:2]
    low, high = experiment.image_range
    operator, y = problem.operator, jnp.asarray(problem.y)
    residual = jax.jit(Measurement(operator, y).residual)
    squares = [np.abs(residual(reconstructions[:, s])) ** 2 for s in range(samples)]
    measured = np.broadcast_to(operator.measured, squares[0].shape)
    results = {"misfit": float(np.sqrt(np.mean(squares, 0)[measured].mean()) / (high - low))}
    if problem.truth is None:
        return results

    def scale(x: np.ndarray) -> np.ndarray:
        return (np.clip(x, low, high) - low) / (high - low)

    window = min(11, *experiment.image_shape[:2])
    candidates = {
        "samples": reconstructions.reshape(-1, *experiment.image_shape),
        "mean": reconstructions.mean(1),
        "pseudo_inverse": np.asarray(operator.pseudo_inverse(y)),
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
    if not TASKS[experiment.config.restore.task].is_shown:
        measured = np.asarray(problem.operator.pseudo_inverse(jnp.asarray(problem.y)))
    std = reconstructions.std(1, ddof=min(1, reconstructions.shape[1] - 1))
    low, high = experiment.image_range
    columns = {} if problem.truth is None else {"image": problem.truth}
    columns["measurement"] = measured
    columns |= {f"sample {s}": x for s, x in enumerate(reconstructions.swapaxes(0, 1), 1)}
    columns["mean"] = reconstructions.mean(1)
    columns["spread"] = low + (high - low) * std / max(std.max(), 1e-6)
    grid = pixels(np.stack([*columns.values()], 1)).reshape(-1, *experiment.image_shape)
    write_picture(folder / "grid.png", datasets.image_grid(grid, titles=[*columns]))
    for name, image, own in zip(problem.names, pixels(measured), pixels(reconstructions)):
        write_picture(folder / f"{name}_measured.png", datasets.to_picture(image))
        for s, x in enumerate(own):
            write_picture(folder / f"{name}_sample_{s}.png", datasets.to_picture(x))


# --- the inverse problem --------------------------------------------------------------------------


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
