"""`--mode=restore`: images from incomplete, blurred or noisy measurements of them, by an unconditional model.

Results lie in `WORKDIR/restore/checkpoint_K/NAME/`, NAME being the task and the method unless --eval_folder says
otherwise: measurements.npz, a file for each finished round, grid.png (a row for each image: the image, if known; what
was measured; the answers; their mean and standard deviation), each answer by itself, and results.json.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from PIL import Image

import datasets
import sampling
import sharding
from configs.default import Config, complete
from controllable import inverse_problems, operators
from controllable.inverse_problems import Measurement
from controllable.operators import Operator
from errors import InputError, brief, check_name
from experiment import Experiment
from models.building import Params
from readers import folders, preprocessing
from sde_lib import SDE, Score
from workdir import claim, load_rounds, run_rounds, write_atomically, write_picture

Shape = tuple[int, int, int]


class Problem(NamedTuple):
    """Measurements y (N, ...) of N images, whose names are for files; the images x (N, H, W, C), if they are known."""

    operator: Operator
    y: np.ndarray
    names: list[str]
    truth: np.ndarray | None


def restore(
    config: Config, workdir: str, number: int | None = None, folder: str | None = None
) -> dict[str, Any]:
    """Answers a task for the images that config.restore names; returns what results.json holds.

    That is, of the answers: |y - A x| per entry, evaluations of the score and, if the images are known, PSNR (dB) and
    SSIM of the answers, of their mean over answers, and of the pseudo-inverse, each a mean over images. The sampler is
    that of config.sampling, but that the methods 'dps' and 'ddrm' have no corrector.

    Raises InputError for bad values in config.restore, a method that the sampler has no steps for, and for images, a
    workdir or a checkpoint that cannot be read.
    """
    config = complete(config)
    check(config)
    if not METHODS[config.restore.method].corrected:
        config.sampling.corrector = "none"
    experiment = Experiment(config)
    options = config.restore
    problem = pose(experiment)
    found, ema = experiment.trained(workdir, number)
    here = (
        Path(workdir)
        / "restore"
        / f"checkpoint_{found.number}"
        / (folder or f"{options.task}-{options.method}")
    )
    claim(here, config, "restoration")
    keep_measurements(problem, here)
    answers, nfe = answer(experiment, problem, ema, here)
    results = {"task": options.task, "method": options.method, "images": len(problem.y), "nfe": nfe}
    results |= judge(experiment, problem, answers)
    draw(experiment, problem, answers, here)
    write_atomically(
        here / "results.json", lambda file: file.write(json.dumps(results, indent=2).encode())
    )
    print("\n".join([*(f"{name}: {value}" for name, value in results.items()), f"results: {here}"]))
    return results


# --- tasks and methods ------------------------------------------------------------------------------------------------


def _inpaint(options: Config, shape: Shape) -> Operator:
    if options.mask == "box":
        known = operators.box(shape, options.share)
    elif options.mask == "random":
        known = operators.random_pixels(shape, options.share)
    else:
        image = _decode(Path(options.mask).expanduser(), 1, shape[:2])
        known = np.broadcast_to(image > 127, shape)
    if known.all() or not known.any():
        raise InputError(
            f"restore.mask = {options.mask!r} leaves {'nothing' if known.all() else 'all'} unknown; with 'box' "
            f"and 'random' that depends on restore.share = {options.share}, with a file on where it is bright."
        )
    return operators.mask(known)


def _share_of(shape: Shape, share: float) -> int:
    return max(1, round(share * int(np.prod(shape))))


TASKS: dict[str, Callable[[Config, Shape], Operator]] = {
    "inpaint": _inpaint,
    "colorize": lambda options, shape: operators.channel_mean(shape),
    "super_resolution": lambda options, shape: operators.block_mean(shape, options.factor),
    "deblur": lambda options, shape: operators.convolution(
        shape, operators.gaussian_kernel(options.blur)
    ),
    "motion_deblur": lambda options, shape: operators.convolution(
        shape, operators.motion_kernel(options.length, options.angle)
    ),
    "compressed_sensing": lambda options, shape: operators.compressed_sensing(
        shape, _share_of(shape, options.share)
    ),
    "fourier": lambda options, shape: operators.fourier_mask(
        operators.columns_of_frequencies(shape, options.share)
    ),
}
NO_IMAGES = ("compressed_sensing", "fourier")  # whose measurements are not
BLURS = ("deblur", "motion_deblur")

Approach = tuple[Score, Array, dict[str, Any]]
"""The score, the first state, and what else the sampler is to be given."""


def _projection(
    options: Config, score: Score, sde: SDE, measurement: Measurement, x: Array
) -> Approach:
    official = {"official": options.official}
    constraint = inverse_problems.projection(sde, measurement, **official)
    return (
        score,
        inverse_problems.projection_start(measurement, x, **official),
        {"constraint": constraint},
    )


def _dps(options: Config, score: Score, sde: SDE, measurement: Measurement, x: Array) -> Approach:
    return (
        score,
        x,
        {"exchange": lambda each: inverse_problems.dps(each, measurement, scale=options.scale)},
    )


def _ddrm(options: Config, score: Score, sde: SDE, measurement: Measurement, x: Array) -> Approach:
    return (
        score,
        x,
        {
            "exchange": lambda _: inverse_problems.ddrm(
                measurement, eta=options.eta, eta_b=options.eta_b
            )
        },
    )


def _pigdm(options: Config, score: Score, sde: SDE, measurement: Measurement, x: Array) -> Approach:
    return inverse_problems.pigdm(score, sde, measurement, prior_std=options.prior_std), x, {}


def _moment_matching(
    options: Config, score: Score, sde: SDE, measurement: Measurement, x: Array
) -> Approach:
    return (
        inverse_problems.moment_matching(score, sde, measurement, iterations=options.iterations),
        x,
        {},
    )


class Method(NamedTuple):
    """approach: (config.restore, score, SDE, measurement, samples of the prior) -> Approach. of_the_steps: whether it
    needs those of sampling.method = 'pc'; else it is a guided score. corrected: whether correctors go with it."""

    approach: Callable[..., Approach]
    of_the_steps: bool = False
    corrected: bool = True


METHODS = {
    "projection": Method(_projection, of_the_steps=True),
    "dps": Method(
        _dps, of_the_steps=True, corrected=False
    ),  # A corrector would lead back towards any image.
    "ddrm": Method(_ddrm, of_the_steps=True, corrected=False),
    "pigdm": Method(_pigdm),
    "moment_matching": Method(_moment_matching),
}
POSITIVE = (
    "count",
    "samples",
    "factor",
    "iterations",
    "share",
    "blur",
    "length",
    "prior_std",
    "scale",
)


def check(config: Config) -> None:
    """Raises InputError for what is wrong in config.restore, whatever the images."""
    options = config.restore
    check_name(options.task, TASKS, "restore.task")
    check_name(options.method, METHODS, "restore.method")
    for field in POSITIVE:
        if not options[field] > 0:
            raise InputError(f"restore.{field} = {options[field]} must be above 0.")
    for field, most in (("noise", np.inf), ("share", 1), ("eta", 1), ("eta_b", 1)):
        if not 0 <= options[field] <= most:
            raise InputError(
                f"restore.{field} = {options[field]} must not be negative, nor above {most}."
            )
    if METHODS[options.method].of_the_steps and config.sampling.method.lower() != "pc":
        guided = ", ".join(name for name, method in METHODS.items() if not method.of_the_steps)
        raise InputError(
            f"restore.method = {options.method!r} works on the steps of sampling.method = 'pc' and does not go with "
            f"{config.sampling.method!r}; methods for any sampler: {guided}."
        )
    if options.official and (
        options.method != "projection" or options.task not in ("inpaint", "colorize")
    ):
        raise InputError(
            "restore.official = True is for restore.method = 'projection' that inpaints or colorizes."
        )
    if options.task == "colorize" and config.data.num_channels == 1:
        raise InputError(
            "restore.task = 'colorize' needs a model of colours; that of data.num_channels = 1 is grey."
        )
    if options.observed and options.task in NO_IMAGES:
        raise InputError(
            f"restore.observed = True: measurements of restore.task = {options.task!r} are no images."
        )
    if config.guidance.classes:
        raise InputError(
            f"guidance.classes = {config.guidance.classes} does not go with --mode=restore; leave it empty, ()."
        )


# --- images and their measurements ------------------------------------------------------------------------------------


def pose(experiment: Experiment) -> Problem:
    """The problem of config.restore. Raises InputError if the operator does not fit, or an image cannot be read."""
    options, shape = experiment.config.restore, experiment.image_shape
    operator = TASKS[options.task](options, shape)
    noise_std = options.noise * unit(experiment)
    if options.observed:
        expected = jax.eval_shape(
            operator.forward, jax.ShapeDtypeStruct((1, *shape), jnp.float32)
        ).shape[1:]
        names, images = read(experiment, expected)
        y = images if options.task != "inpaint" else np.asarray(operator.forward(images))
        return Problem(operator, y, names, None)
    names, truth = read(experiment, shape)
    keys = sampling.image_keys(experiment.key("restore"), jnp.arange(len(truth)))
    noise = sampling.standard_normal(keys, truth.shape)
    return Problem(operator, np.asarray(operator.observe(truth, noise, noise_std)), names, truth)


def keep_measurements(problem: Problem, folder: Path) -> None:
    """Writes measurements.npz, y and names. Raises InputError if there is one of other measurements."""
    path, arrays = folder / "measurements.npz", {"y": problem.y, "names": np.array(problem.names)}
    if not path.exists():
        write_atomically(path, lambda file: np.savez(file, **arrays))
        return
    with np.load(path) as kept:
        if not all(np.array_equal(kept[name], array) for name, array in arrays.items()):
            raise InputError(
                f"{folder} holds answers for other images; name another folder, with --eval_folder."
            )


def unit(experiment: Experiment) -> float:
    """What 1 in images from 0 to 1 is in the range of the model."""
    return 2.0 if experiment.config.data.centered else 1.0


def read(experiment: Experiment, shape: Shape) -> tuple[list[str], np.ndarray]:
    """Names of the first images, and images of this shape in the range of the model, (N, H, W, C) float32."""
    options, scaler = experiment.config.restore, experiment.scaler
    if options.input:
        root = Path(options.input).expanduser()
        found = [
            path for path in sorted(root.rglob("*")) if path.suffix.lower() in folders.SUFFIXES
        ]
        paths = ([root] if root.is_file() else found)[: options.count]
        if not paths:
            raise InputError(
                f"restore.input = {options.input!r} is no image file, and no folder with one."
            )
        names = [
            str(path.relative_to(root).with_suffix("")).replace("/", "_")
            if path != root
            else path.stem
            for path in paths
        ]
        images = np.stack([_decode(path, shape[-1], shape[:2]) for path in paths])
        levels = np.round(images / 255 * (scaler.levels - 1)).astype(np.uint8)
    elif options.observed:
        raise InputError(
            "restore.observed = True needs restore.input, the file or folder of what was measured."
        )
    else:
        count = min(options.count, len(experiment.test))
        names, levels = (
            [f"test_{i}" for i in range(count)],
            experiment.test.pixels[np.arange(count)],
        )
    if experiment.config.data.uniform_dequantization:
        return names, np.asarray(
            scaler.dequantize(jnp.asarray(levels), 0.5)
        )  # The middle of each grey level.
    return names, np.asarray(scaler.scale(jnp.asarray(levels)))


def _decode(path: Path, channels: int, size: tuple[int, int]) -> np.ndarray:
    """An image file as (H, W, channels) uint8; its middle square, in another resolution if need be."""
    try:
        return preprocessing.to_array(
            preprocessing.crop_resize(preprocessing.decode(path, channels), size[0])
        )
    except Exception as error:  # Decoders raise whatever they like on damaged files.
        raise InputError(f"The image {str(path)!r} cannot be read: {brief(error)}") from error


# --- answers ----------------------------------------------------------------------------------------------------------


def answer(
    experiment: Experiment, problem: Problem, ema: Params, folder: Path
) -> tuple[np.ndarray, float]:
    """Answers in the range of the model, (N, S, H, W, C), and evaluations of the score for one; in resumable rounds."""
    config = experiment.config
    count, mesh = len(problem.y), experiment.mesh.size
    size = min(config.eval.batch_size, -(-count // mesh) * mesh)
    chunks = -(-count // size)
    run = compile_answers(experiment, problem.operator)

    def compute(index: int) -> dict[str, np.ndarray]:
        sample, chunk = divmod(index, chunks)
        indices = np.arange(chunk * size, (chunk + 1) * size)
        x, nfe = sharding.fetch(
            run(ema, *experiment.rows((problem.y[indices % count], indices)), sample)
        )
        return {"x": x[: count - chunk * size], "nfe": nfe[: count - chunk * size]}

    rounds = load_rounds(
        run_rounds(folder, "answers", config.restore.samples * chunks, compute, {})
    )
    return rounds["x"].reshape(-1, count, *experiment.image_shape).swapaxes(0, 1), float(
        rounds["nfe"].mean()
    )


def compile_answers(
    experiment: Experiment, operator: Operator
) -> Callable[..., tuple[Array, Array]]:
    """(params, y (B, ...), numbers of the images (B,), number of the answer) -> x (B, H, W, C), evaluations (B,).

    Without noise in y, what is measured of x is set to y in the end.
    """
    options, sde = experiment.config.restore, experiment.sde
    method = METHODS[options.method]
    split, whole = sharding.along_axis(experiment.mesh), sharding.replicated(experiment.mesh)
    noise_std = options.noise * unit(experiment)

    @functools.partial(jax.jit, in_shardings=(whole, split, split, whole), out_shardings=split)
    def run(params: Params, y: Array, indices: Array, sample: Array) -> tuple[Array, Array]:
        measurement = Measurement(operator, y, noise_std)
        keys = sampling.image_keys(
            jax.random.fold_in(experiment.key("restore"), sample + 1), indices
        )
        prior = sampling.prior_sample(keys, sde, (len(y), *experiment.image_shape))
        score, start, changes = method.approach(
            options, experiment.score(params), sde, measurement, prior
        )
        if not method.of_the_steps:
            score = inverse_problems.within(score, sde, *bounds(experiment))
        x, nfe, _ = experiment.sampler(keys, score, start, **changes)
        return measurement.enforce(x) if noise_std == 0 and not options.official else x, nfe

    return run


# --- what came of it --------------------------------------------------------------------------------------------------


def judge(experiment: Experiment, problem: Problem, answers: np.ndarray) -> dict[str, float]:
    """See `restore`."""
    count, samples = answers.shape[:2]
    forward = jax.jit(problem.operator.forward)
    misfit = np.stack([np.asarray(forward(answers[:, s])) - problem.y for s in range(samples)])
    results = {"misfit": float(np.sqrt(np.mean(misfit**2)) / unit(experiment))}
    if problem.truth is None:
        return results
    to_unit = lambda x: np.clip(x, *bounds(experiment)) / unit(experiment)
    window = min(11, *experiment.image_shape[:2])
    candidates = {
        "answers": answers.reshape(-1, *experiment.image_shape),
        "mean": answers.mean(1),
        "pseudo_inverse": np.asarray(problem.operator.pseudo_inverse(jnp.asarray(problem.y))),
    }
    for name, x in candidates.items():
        truth = np.repeat(problem.truth, len(x) // count, 0)
        results[f"psnr_{name}"] = float(np.mean(dm_pix.psnr(to_unit(truth), to_unit(x))))
        results[f"ssim_{name}"] = float(
            np.mean(dm_pix.ssim(to_unit(truth), to_unit(x), filter_size=window))
        )
    return results


def bounds(experiment: Experiment) -> tuple[float, float]:
    """The range of the model's images."""
    return (-1.0, 1.0) if experiment.config.data.centered else (0.0, 1.0)


def draw(experiment: Experiment, problem: Problem, answers: np.ndarray, folder: Path) -> None:
    """Writes the pictures."""
    pixels = lambda x: np.asarray(experiment.pixels(jnp.asarray(x)))
    seen = problem.y
    if experiment.config.restore.task not in BLURS:
        seen = problem.operator.pseudo_inverse(jnp.asarray(problem.y))
    spread = answers.std(1, ddof=min(1, answers.shape[1] - 1))
    low, high = bounds(experiment)
    spread = low + (high - low) * spread / max(spread.max(), 1e-6)
    columns = [] if problem.truth is None else [problem.truth]
    columns += [seen, *answers.swapaxes(0, 1), answers.mean(1), spread]
    grid = pixels(np.stack(columns, 1)).reshape(-1, *experiment.image_shape)
    write_picture(folder / "grid.png", datasets.image_grid(grid, columns=len(columns)))
    for name, image, of_image in zip(problem.names, pixels(seen), pixels(answers)):
        parts = {"measured": image} | {f"answer_{s}": each for s, each in enumerate(of_image)}
        for part, each in parts.items():
            write_picture(
                folder / f"{name}_{part}.png",
                Image.fromarray(each[..., 0] if each.shape[-1] == 1 else each),
            )
