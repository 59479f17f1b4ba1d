"""`--mode=encode` and `--mode=interpolate`: latent codes of images.

The probability-flow ODE maps an image to a latent code that follows the prior, and a code back to
its image (arXiv:2011.13456, Section 4.3 and Appendix D). Results are written to
`WORKDIR/latents/checkpoint_K/`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import datasets
import sampling
import sharding
from configs import remedies
from configs.default import Config
from errors import InputError
from experiment import Experiment
from factory import Sampler, make_flow
from models.building import Params
from runs import write_arrays, write_picture

ENCODED = 64  # images that `encode` encodes
ROW = 8  # pairs in a row of its picture
PAIRS, FRAMES = 8, 10  # rows and columns of the interpolation picture
TEMPERATURES = (0.4, 0.6, 0.8, 0.9, 1.0, 1.1, 1.2)

Flow = Callable[[Params, np.ndarray | Array], tuple[Array, Array]]
"""(params, states (B, H, W, C)) -> states (B, H, W, C), score evaluations (B,).

Raises NotFiniteError if a state is not finite."""


class Codec(NamedTuple):
    """The flow of a checkpoint in both directions, and the folder of its results.

    The folder need not exist yet.
    """

    experiment: Experiment
    params: Params
    folder: Path
    encode: Flow
    decode: Flow


def encode(config: Config, workdir: str, number: int | None = None) -> dict[str, float]:
    """Encode held-out images, decode their codes and measure the error of the round trip.

    Writes latents.npz with `codes` (N, H, W, C) and `images` uint8, and round_trip.png, in which
    each image is followed by its reconstruction. Returns the largest and the
    mean absolute error in the model's range, the number of score evaluations, and mean and
    standard deviation of the codes in units of the prior's standard deviation: 0 and 1 for a
    perfect model and many images.

    Raises InputError for an invalid config, a stochastic solver, and images or a checkpoint that
    cannot be read.
    """
    codec = load_codec(config, workdir, number)
    experiment = codec.experiment
    x = load_images(experiment, ENCODED)
    codec.folder.mkdir(parents=True, exist_ok=True)
    z, nfe = codec.encode(codec.params, x)
    decoded, _ = codec.decode(codec.params, z)
    error = jnp.abs(decoded - x)
    z, reconstructions, images = sharding.fetch(
        (z, experiment.pixels(decoded), experiment.pixels(x))
    )
    codes = z / experiment.sde.prior_std
    result = {
        "largest error": float(error.max()),
        "mean error": float(error.mean()),
        "evaluations": float(nfe.mean()),
        "mean of codes": float(codes.mean()),
        "std of codes": float(codes.std()),
    }
    path = codec.folder / "latents.npz"
    write_arrays(path, {"codes": z, "images": images})
    pairs = np.stack([images, reconstructions], 1).reshape(-1, *experiment.image_shape)
    grid = datasets.image_grid(pairs, titles=("image", "decoded") * ROW)
    write_picture(codec.folder / "round_trip.png", grid)
    for name, value in result.items():
        print(f"{name}: {value:.4g}")
    print(f"results: {codec.folder}")
    return result


def interpolate(config: Config, workdir: str, number: int | None = None) -> None:
    """Interpolate between latent codes of held-out images, and scale codes by temperatures.

    Writes interpolation.png, one row for each pair of images with spherical interpolations between
    their codes, from 0 to 100 % of the way, and temperature.png, one row for each image with its
    code scaled. If the images cannot be read, samples of the model take their place.

    Raises InputError for an invalid config, a stochastic solver and a missing checkpoint.
    """
    codec = load_codec(config, workdir, number)
    codes = sharding.fetch(_codes_to_interpolate(codec, 2 * PAIRS))
    codec.folder.mkdir(parents=True, exist_ok=True)
    first, second = codes[:PAIRS], codes[PAIRS:]
    between = {
        f"{weight:.0%}": slerp(first, second, weight) for weight in np.linspace(0, 1, FRAMES)
    }
    scaled = {f"T = {temperature}": temperature * first for temperature in TEMPERATURES}
    for name, columns in (("interpolation", between), ("temperature", scaled)):
        images = np.stack([_decode_pixels(codec, z) for z in columns.values()], 1)
        grid = datasets.image_grid(np.concatenate(images), titles=[*columns])
        write_picture(codec.folder / f"{name}.png", grid)
        print(f"picture: {codec.folder / name}.png")


def slerp(a: np.ndarray, b: np.ndarray, weight: float) -> np.ndarray:
    """Interpolate spherically between codes a and b (B, ...); weight 0 returns a, weight 1 b.

    Unlike a straight line, the great circle keeps the norm of Gaussian noise.
    """
    flat_a, flat_b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    norms = np.linalg.norm(flat_a, axis=1), np.linalg.norm(flat_b, axis=1)
    cosine = (flat_a * flat_b).sum(1) / norms[0] / norms[1]
    angle = np.arccos(np.clip(cosine, -1, 1)).reshape(-1, *[1] * (a.ndim - 1))
    parallel = angle < 1e-4  # Interpolate linearly, where sin(angle) would divide by 0.
    angle = np.where(parallel, 1.0, angle)

    def circular(w: float) -> np.ndarray:
        return np.where(parallel, w, np.sin(w * angle) / np.sin(angle))

    return circular(1 - weight) * a + circular(weight) * b


def load_images(experiment: Experiment, count: int) -> Array:
    """Return held-out images (count, H, W, C) in the model's range, repeated if there are fewer."""
    indices = np.arange(count) % len(experiment.test)
    pixels = jnp.asarray(experiment.rows(experiment.test.batch(indices).pixels))
    scaler = experiment.scaler
    if not experiment.config.data.uniform_dequantization:
        return scaler.scale(pixels)
    keys = sampling.image_keys(experiment.key("encode"), np.arange(count))
    return scaler.dequantize(pixels, sampling.uniform(keys, pixels.shape))


def load_codec(config: Config, workdir: str, number: int | None) -> Codec:
    """Load a checkpoint and compile its flow in both directions.

    Raises InputError for an invalid config, a stochastic solver and a missing checkpoint.
    """
    experiment = Experiment(config)
    encoder, decoder = make_flow(experiment.config, experiment.sde)
    found, params = experiment.trained(workdir, number)
    folder = Path(workdir) / "latents" / f"checkpoint_{found.number}"
    method = "" if experiment.config.sampling.method.lower() == "solver" else "ode"
    print(f"latent codes by {remedies.describe(experiment.config, method)}", flush=True)
    split, whole = sharding.along_axis(experiment.mesh), sharding.replicated(experiment.mesh)

    def compile_flow(flow: Sampler) -> Flow:
        @functools.partial(jax.jit, in_shardings=(whole, split), out_shardings=split)
        def run(params: Params, x: Array) -> tuple[Array, Array, Array]:
            y, nfe, _, bad_step = flow(experiment.score(params), x)
            return y, nfe, bad_step

        def checked(params: Params, x: np.ndarray | Array) -> tuple[Array, Array]:
            y, nfe, bad_step = run(params, x)
            found = sharding.fetch(bad_step)
            remedies.check_samples(experiment.config, found, flow.steps, flow.unit, codes=True)
            return y, nfe

        return checked

    return Codec(experiment, params, folder, compile_flow(encoder), compile_flow(decoder))


def _codes_to_interpolate(codec: Codec, count: int) -> Array:
    """Return the codes (count, H, W, C) of held-out images, or samples of the prior."""
    experiment = codec.experiment
    try:
        images = load_images(experiment, count)
    except InputError as error:
        print(f"{error} Samples take the place of test images.")
    else:
        return codec.encode(codec.params, images)[0]
    keys = sampling.image_keys(experiment.key("sample"), jnp.arange(count))
    return sampling.prior_sample(keys, experiment.sde, (count, *experiment.image_shape))


def _decode_pixels(codec: Codec, z: np.ndarray) -> np.ndarray:
    """Decode codes (B, H, W, C) to uint8 images."""
    x, _ = codec.decode(codec.params, codec.experiment.rows(z))
    return sharding.fetch(codec.experiment.pixels(x))
