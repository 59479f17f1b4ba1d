"""Latent codes: whether two networks agree on them, interpolation and temperature."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array

from api.trained import TrainedModel
from benchmarks.claims.quality import (
    Record,
    digits,
    distance,
    held_out,
    images,
    is_digits,
    mean,
)
from commands.latents import slerp

FRAMES = 10  # of an interpolation, with both ends
ROWS = 16  # pairs of images, of which all frames are decoded


def codes(models: Sequence[TrainedModel], seed: int, *, count: int) -> Record:
    """Return the distance of two models' codes of the `same` images and of `other` images.

    Distances are Euclidean, in units of the prior's standard deviation and relative to the square
    root of the dimension: those of independent codes are about sqrt(2).
    """
    first, second = (_encode(model, seed, count) for model in models)
    others = np.roll(second, 1, axis=0)
    return {"same": mean(rms(first - second)), "other": mean(rms(first - others))}


def interpolation(models: Sequence[TrainedModel], seed: int, *, count: int) -> Record:
    """Return how images change between pairs of held-out images.

    `codes` and `pixels` are distances to held-out images: of images halfway between two codes, and
    of means of two images. `ends` is the root mean square difference of the two decoded images, and
    `step` that of the two adjacent frames which differ most.
    """
    (model,) = models
    x, z = np.asarray(_images(model, seed, count)), _encode(model, seed, count)
    half = len(x) // 2
    weights = np.linspace(0, 1, FRAMES)
    rows = min(half, ROWS)
    first, second = z[:rows], z[half : half + rows]
    frames = [_decode(model, slerp(first, second, weight)) for weight in weights]
    middle = _decode(model, slerp(z[:half], z[half:], 0.5))
    steps = np.stack([rms(a - b) for a, b in zip(frames, frames[1:])])
    return {
        "codes": distance(model, middle),
        "pixels": distance(model, (x[:half] + x[half:]) / 2),
        "ends": mean(rms(frames[0] - frames[-1])),
        "step": mean(steps.max(0)),
    }


def temperature(models: Sequence[TrainedModel], seed: int, *, count: int, low: float) -> Record:
    """Return what scaling the codes of held-out images by `low` does.

    `spread` and `spread at low` are the root mean square deviations of images from their mean. For
    digits, `kept` is the share of images that stay in their class, according to a classifier.
    """
    (model,) = models
    z = _encode(model, seed, count)
    plain, scaled = _decode(model, z), _decode(model, low * z)
    found = {
        "spread": mean(rms(plain - plain.mean(0))),
        "spread at low": mean(rms(scaled - scaled.mean(0))),
    }
    if is_digits(model):
        classes = [digits(model).classes(images(model, each)) for each in (plain, scaled)]
        found["kept"] = mean(classes[0] == classes[1])
    return found


def _images(model: TrainedModel, seed: int, count: int) -> Array:
    """Return held-out images, dequantized, in the range of the model and in random order."""
    pixels = held_out(model, count)
    order = np.random.default_rng(seed).permutation(len(pixels))
    return model.from_images(pixels[order], seed)


def _encode(model: TrainedModel, seed: int, count: int) -> np.ndarray:
    """Return the codes of the images of `_images`, in units of the prior's standard deviation."""
    return np.asarray(model.encode(_images(model, seed, count))) / model.sde.prior_std


def _decode(model: TrainedModel, z: np.ndarray) -> np.ndarray:
    return np.asarray(model.decode(jnp.asarray(z * model.sde.prior_std)))


def rms(x: np.ndarray) -> np.ndarray:
    """Return the root mean square (n,) of the entries of each image (n, ...)."""
    return np.sqrt(np.mean(np.square(x.reshape(len(x), -1)), 1))
