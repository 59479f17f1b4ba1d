"""`--mode=encode` and `--mode=interpolate`: latent codes by the probability flow (arXiv:2011.13456, Sec. 4.3, App. D).

The flow is a map with an inverse: it encodes an image as what would be noise, and decodes the code to the image.
Results lie in `WORKDIR/latents/checkpoint_K/`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import datasets
import sampling
import sharding
from configs.default import Config
from errors import InputError
from experiment import Experiment
from factory import make_flow
from models.building import Params
from workdir import write_atomically, write_picture

ENCODED = 64  # images to encode
PAIRS, FRAMES = 8, 10  # of pictures
TEMPERATURES = (0.4, 0.6, 0.8, 0.9, 1.0, 1.1, 1.2)

Map = Callable[[Params, Array], tuple[Array, Array]]


def encode(config: Config, workdir: str, number: int | None = None) -> dict[str, float]:
    """Encodes test images, decodes the codes, and tells how far this is from the identity.

    Writes latents.npz with `codes` z (N, H, W, C) and `images` uint8, and round_trip.png: images above what became of
    them. Returns the largest and the mean absolute error in the range of the data, evaluations, and the moments of z
    in units of the prior's standard deviation, 0 and 1 for a perfect model and many images.

    Raises InputError for a bad config, a stochastic solver, or images or a checkpoint that are not there.
    """
    experiment, params, folder, (to_codes, to_images) = _prepare(config, workdir, number)
    x = data(experiment, ENCODED)
    z, nfe = to_codes(params, x)
    again, _ = to_images(params, z)
    error = jnp.abs(again - x)
    z, again, images = sharding.fetch((z, experiment.pixels(again), experiment.pixels(x)))
    scaled = z / experiment.sde.prior_std
    result = {"largest error": error.max(), "mean error": error.mean(), "evaluations": nfe.mean()}
    result |= {"mean of codes": scaled.mean(), "std of codes": scaled.std()}
    result = {name: float(value) for name, value in result.items()}
    write_atomically(folder / "latents.npz", lambda file: np.savez(file, codes=z, images=images))
    rows = [rows[i : i + 16] for i in range(0, ENCODED, 16) for rows in (images, again)]
    write_picture(folder / "round_trip.png", datasets.image_grid(np.concatenate(rows), columns=16))
    print(
        "\n".join(
            [*(f"{name}: {value:.4g}" for name, value in result.items()), f"results: {folder}"]
        )
    )
    return result


def interpolate(config: Config, workdir: str, number: int | None = None) -> None:
    """Draws ways between the codes of images, and codes at other temperatures.

    Writes interpolation.png, a row for each pair of images with what lies between their codes on a great circle, and
    temperature.png, a row for each image with its code scaled. The images are test images or, where these cannot be
    read, samples.

    Raises InputError for a bad config, a stochastic solver, or no such checkpoint.
    """
    experiment, params, folder, (to_codes, to_images) = _prepare(config, workdir, number)
    try:
        codes, _ = to_codes(params, data(experiment, 2 * PAIRS))
    except InputError as error:
        print(f"{error} Samples take the place of test images.")
        keys = sampling.image_keys(experiment.key("sample"), jnp.arange(2 * PAIRS))
        codes = sampling.prior_sample(keys, experiment.sde, (2 * PAIRS, *experiment.image_shape))
    codes = sharding.fetch(codes)
    between = [slerp(codes[:PAIRS], codes[PAIRS:], weight) for weight in np.linspace(0, 1, FRAMES)]
    scaled = [temperature * codes[:PAIRS] for temperature in TEMPERATURES]
    for name, columns in (("interpolation", between), ("temperature", scaled)):
        images = [
            sharding.fetch(experiment.pixels(to_images(params, experiment.rows(z))[0]))
            for z in columns
        ]
        grid = datasets.image_grid(np.concatenate(np.stack(images, 1)), columns=len(columns))
        write_picture(folder / f"{name}.png", grid)
        print(f"picture: {folder / name}.png")


def slerp(a: np.ndarray, b: np.ndarray, weight: float) -> np.ndarray:
    """Points between codes a and b (B, ...) along a great circle, on which they keep the norm of noise."""
    flat_a, flat_b = (each.reshape(len(each), -1) for each in (a, b))
    cosine = (
        (flat_a * flat_b).sum(1) / np.linalg.norm(flat_a, axis=1) / np.linalg.norm(flat_b, axis=1)
    )
    angle = np.arccos(np.clip(cosine, -1, 1)).reshape(-1, *[1] * (a.ndim - 1))
    line = angle < 1e-4
    angle = np.where(line, 1.0, angle)
    weights = [np.where(line, w, np.sin(w * angle) / np.sin(angle)) for w in (1 - weight, weight)]
    return weights[0] * a + weights[1] * b


def data(experiment: Experiment, count: int) -> Array:
    """The first test images (count, H, W, C), over again if there are not as many, as the model sees them."""
    indices = np.arange(count) % len(experiment.test)
    keys = sampling.image_keys(experiment.key("bpd"), np.arange(count))
    u, scaler = experiment.rows(experiment.test.pixels[indices]), experiment.scaler
    if experiment.config.data.uniform_dequantization:
        return scaler.dequantize(u, sampling.uniform(keys, u.shape))
    return scaler.scale(u)


def _prepare(
    config: Config, workdir: str, number: int | None
) -> tuple[Experiment, Params, Path, tuple[Map, Map]]:
    experiment = Experiment(config)
    flows = make_flow(experiment.config, experiment.sde)
    found, params = experiment.trained(workdir, number)
    folder = Path(workdir) / "latents" / f"checkpoint_{found.number}"
    folder.mkdir(parents=True, exist_ok=True)
    split, whole = sharding.along_axis(experiment.mesh), sharding.replicated(experiment.mesh)
    compiled = functools.partial(jax.jit, in_shardings=(whole, split), out_shardings=(split, split))
    forth, back = (
        compiled(lambda params, x, flow=flow: flow(experiment.score(params), x)) for flow in flows
    )
    return experiment, params, folder, (forth, back)
