"""`--mode=encode` and `--mode=interpolate`: latent codes of images, in `WORKDIR/latents`.

The probability-flow ODE maps an image to a latent code that follows the prior, and a code back to
its image (arXiv:2011.13456, Section 4.3 and Appendix D).
"""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jax import Array

import datasets
import sampling
from api.trained import TrainedModel
from commands.models import open_model
from configs.default import Config
from configs.parts import sampler_name
from errors import InputError
from experiment import Experiment
from runs import write_arrays, write_picture

ENCODED = 64  # images that `encode` encodes
ROW = 8  # pairs in a row of its picture
PAIRS, FRAMES = 8, 10  # rows and columns of the interpolation picture
TEMPERATURES = (0.4, 0.6, 0.8, 0.9, 1.0, 1.1, 1.2)


def encode(config: Config, workdir: str, number: int | None = None) -> dict[str, float]:
    """Encode held-out images, decode their codes, and return errors of the round trip.

    Writes latents.npz with `codes` (N, H, W, C) and `images` uint8, and round_trip.png. Errors are
    in the model's range. Codes are in units of the prior's standard deviation: their mean and
    standard deviation are 0 and 1 for a perfect model and many images. Raises InputError.
    """
    experiment, model, sampler, folder = load_codec(config, workdir, number, ENCODED)
    x = load_images(experiment, ENCODED)
    folder.mkdir(parents=True, exist_ok=True)
    z, nfe = model.encode(x, sampler=sampler, return_nfe=True)
    decoded = model.decode(z, sampler=sampler)
    error, codes = jnp.abs(decoded - x), np.asarray(z / experiment.sde.prior_std)
    result = {
        "largest error": float(error.max()),
        "mean error": float(error.mean()),
        "evaluations": float(nfe.mean()),
        "mean of codes": float(codes.mean()),
        "std of codes": float(codes.std()),
    }
    images = model.to_images(x)
    write_arrays(folder / "latents.npz", {"codes": np.asarray(z), "images": images})
    pairs = np.stack([images, model.to_images(decoded)], 1).reshape(-1, *experiment.image_shape)
    grid = datasets.image_grid(pairs, titles=("image", "decoded") * ROW)
    write_picture(folder / "round_trip.png", grid)
    for name, value in result.items():
        print(f"{name}: {value:.4g}")
    print(f"results: {folder}")
    return result


def interpolate(config: Config, workdir: str, number: int | None = None) -> None:
    """Interpolate between latent codes of held-out images, and scale codes by temperatures.

    Writes interpolation.png, a row for each pair of images, and temperature.png, one for each
    image. If the images cannot be read, samples of the model take their place. Raises InputError.
    """
    experiment, model, sampler, folder = load_codec(config, workdir, number, PAIRS)
    try:
        halves = jnp.split(load_images(experiment, 2 * PAIRS), 2)
    except InputError as error:
        print(f"{error} Samples take the place of test images.")
        keys = sampling.image_keys(experiment.key("sample"), jnp.arange(2 * PAIRS))
        shape = (2 * PAIRS, *experiment.image_shape)
        first, second = np.split(np.asarray(sampling.prior_sample(keys, experiment.sde, shape)), 2)
    else:
        first, second = (np.asarray(model.encode(each, sampler=sampler)) for each in halves)
    folder.mkdir(parents=True, exist_ok=True)
    between = {f"{share:.0%}": slerp(first, second, share) for share in np.linspace(0, 1, FRAMES)}
    scaled = {f"T = {temperature}": temperature * first for temperature in TEMPERATURES}
    for name, columns in (("interpolation", between), ("temperature", scaled)):
        decoded = (model.decode(jnp.asarray(z), sampler=sampler) for z in columns.values())
        images = np.stack([model.to_images(x) for x in decoded], 1)
        grid = datasets.image_grid(np.concatenate(images), titles=[*columns])
        write_picture(folder / f"{name}.png", grid)
        print(f"picture: {folder / name}.png")


def slerp(a: np.ndarray, b: np.ndarray, weight: float) -> np.ndarray:
    """Interpolate spherically between codes a and b (B, ...); weight 0 returns a, weight 1 b.

    Unlike a straight line, the great circle keeps the norm of Gaussian noise.
    """
    flat_a, flat_b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    norms = np.linalg.norm(flat_a, axis=1) * np.linalg.norm(flat_b, axis=1)
    angle = np.arccos(np.clip((flat_a * flat_b).sum(1) / norms, -1, 1))
    angle = np.maximum(angle, 1e-4).reshape(-1, *[1] * (a.ndim - 1))  # sin(0) would divide by 0.
    return (np.sin((1 - weight) * angle) * a + np.sin(weight * angle) * b) / np.sin(angle)


def load_images(experiment: Experiment, count: int) -> Array:
    """Return held-out images (count, H, W, C) in the model's range, repeated if there are fewer."""
    images, scaler = experiment.test, experiment.scaler
    pixels = jnp.asarray(images.batch(np.arange(count) % len(images)).pixels)
    if not experiment.config.data.uniform_dequantization:
        return scaler.scale(pixels)
    keys = sampling.image_keys(experiment.key("encode"), np.arange(count))
    return scaler.dequantize(pixels, sampling.uniform(keys, pixels.shape))


def load_codec(
    config: Config, workdir: str, number: int | None, count: int
) -> tuple[Experiment, TrainedModel, str, Path]:
    """Return a model, the sampler of its flow, and the folder of its results.

    It is given the conditions of the first `count` held-out images, if it has any. The flow is that
    of config.sampling.solver, or has adaptive steps. Raises InputError.
    """
    experiment = Experiment(config)
    is_solver = experiment.config.sampling.method.lower() == "solver"
    sampler = sampler_name(experiment.config) if is_solver else "ode"
    flow = experiment.trained_model({}).make_flow(sampler)  # Checks it before anything is read.
    opened = open_model(experiment, workdir, number)
    condition, classes = experiment.sample_condition(0, count), experiment.guidance["classes"]
    print(f"latent codes by {flow.encoder.title}", flush=True)
    folder = Path(workdir) / "latents" / opened.folder
    return experiment, opened.model.given(condition, classes=classes), sampler, folder
