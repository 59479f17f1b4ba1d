"""Ways from a network's output to bytes, and what happens to images in files: right and wrong ones.

`ROUNDINGS` map samples in the range of the model, float32 (N, H, W, C), to images 0 .. 255. `FILES`
map images to what is read again from a file. `benchmarks.wrong_fid` compares them.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from experiment import Experiment

Rounding = Callable[[Experiment, np.ndarray], np.ndarray]
"""(experiment, samples (N, H, W, C)) -> images 0 .. 255 (N, H, W, C), uint8 or float32."""

File = Callable[[np.ndarray], np.ndarray]
"""images (N, H, W, C) -> images (N, H, W, C)."""


# --- from samples to bytes ---

STEPS = 1000  # of the predictor, in the paper


def _nearest(experiment: Experiment, x: np.ndarray) -> np.ndarray:
    return np.asarray(experiment.pixels(jnp.asarray(x)))


def _truncated(experiment: Experiment, x: np.ndarray) -> np.ndarray:
    scaler = experiment.scaler
    return np.asarray(scaler.pixels(jnp.asarray(x), dequantized=True, truncate=True))


def _not_dequantized(experiment: Experiment, x: np.ndarray) -> np.ndarray:
    return np.asarray(experiment.scaler.pixels(jnp.asarray(x), dequantized=False))


def _unit(experiment: Experiment, x: np.ndarray) -> np.ndarray:
    """Return samples in [0, 1], up to errors of the network."""
    return (x + 1) / 2 if experiment.config.data.centered else x


def _not_clipped(experiment: Experiment, x: np.ndarray) -> np.ndarray:
    """As a cast to uint8 does it: values out of range wrap around."""
    return (np.floor(_unit(experiment, x) * 255).astype(np.int64) % 256).astype(np.uint8)


def _stretched(experiment: Experiment, x: np.ndarray) -> np.ndarray:
    """Map the smallest value of each image to 0 and the largest to 255."""
    low, high = x.min((1, 2, 3), keepdims=True), x.max((1, 2, 3), keepdims=True)
    return np.round((x - low) / (high - low) * 255).astype(np.uint8)


def _not_shifted(experiment: Experiment, x: np.ndarray) -> np.ndarray:
    """Take the range [-1, 1] for [0, 1]."""
    return np.round(np.clip(x, 0, 1) * 255).astype(np.uint8)


def _floats(experiment: Experiment, x: np.ndarray) -> np.ndarray:
    return np.clip(_unit(experiment, x), 0, 1) * 255


def _noised(experiment: Experiment, x: np.ndarray) -> np.ndarray:
    """Add the noise that the last of STEPS reverse steps adds, of standard deviation g sqrt(dt)."""
    sde = experiment.sde
    std = float(sde.diffusion(jnp.float32(sde.t_end))) * math.sqrt(sde.T / STEPS)
    noise = np.random.default_rng(0).normal(size=x.shape).astype(np.float32)
    return _nearest(experiment, x + std * noise)


ROUNDINGS: dict[str, Rounding] = {
    "nearest": _nearest,
    "truncated": _truncated,
    "not dequantized": _not_dequantized,
    "not clipped": _not_clipped,
    "stretched": _stretched,
    "not shifted": _not_shifted,
    "floats": _floats,
    "noised": _noised,
}


# --- files ---


def _jpeg(quality: int) -> File:
    """Return the function that stores each grey image as JPEG and reads it again."""

    def store(image: np.ndarray) -> np.ndarray:
        file = io.BytesIO()
        Image.fromarray(image[..., 0]).save(file, "JPEG", quality=quality)
        return np.asarray(Image.open(file))[..., None]

    return lambda images: np.stack([store(image) for image in images])


def _halved(antialias: bool) -> File:
    """Return the function that reduces images to half their size and enlarges them again."""

    def resize(images: np.ndarray) -> np.ndarray:
        n, height, width, channels = images.shape
        shape = (n, height // 2, width // 2, channels)
        x = jnp.asarray(images, jnp.float32)
        small = jax.image.resize(x, shape, "cubic", antialias=antialias)
        large = jax.image.resize(small, images.shape, "cubic")
        return np.asarray(jnp.clip(jnp.round(large), 0, 255).astype(jnp.uint8))

    return resize


def _dequantized(images: np.ndarray) -> np.ndarray:
    """Add uniform noise and truncate, as a loader for training does."""
    noise = np.random.default_rng(0).random(images.shape)
    return np.floor((images + noise) / 256 * 255).astype(np.uint8)


FILES: dict[str, File] = {
    "unchanged": lambda images: images,
    "JPEG 75": _jpeg(75),
    "JPEG 95": _jpeg(95),
    "halved": _halved(antialias=True),
    "halved, aliased": _halved(antialias=False),
    "dequantized": _dequantized,
}
