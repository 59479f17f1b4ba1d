"""Distances of samples to images and mixtures: sliced Wasserstein-2, and a classifier of digits."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.stats import norm
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

import datasets
from configs.default_digits_configs import get_default_configs
from controllable.operators import Operator
from score_sde import TrainedModel
from studies import common
from studies.common import Estimate
from studies.posterior_priors import Mixture

RESAMPLINGS, FLOORS = 40, 20
HELD_OUT = 1000  # images of larger data sets that samples are compared with


@functools.cache
def directions(dims: int) -> np.ndarray:
    """Return unit vectors (dims, 2 dims): the pixels and as many random directions."""
    u = np.random.default_rng(1).normal(size=(dims, dims))
    return np.concatenate([np.eye(dims), u / np.linalg.norm(u, axis=0)], 1)


def levels(n: int) -> np.ndarray:
    """Return the probabilities (i + 1/2) / n of the quantiles of n images."""
    return (np.arange(n) + 0.5) / n


def sliced_distance(quantiles: np.ndarray, x: np.ndarray) -> float:
    """Return the root mean square over `directions` of the Wasserstein-2 distance.

    `quantiles` (n, 2 dims) are those of the distribution along the directions, `x` (m, ...)
    samples.
    """
    flat = np.asarray(x, np.float64).reshape(len(x), -1)
    projected = np.sort(flat @ directions(flat.shape[1]), 0)
    if len(x) != len(quantiles):
        projected = np.quantile(projected, levels(len(quantiles)), axis=0)
    return float(np.sqrt(np.mean((projected - quantiles) ** 2)))


def weighted_quantiles(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the quantiles along `directions` of images x (n, ...) with weights (n,)."""
    flat = x.reshape(len(x), -1)
    projected = flat @ directions(flat.shape[1])
    order = np.argsort(projected, 0)
    middle = (np.cumsum(weights[order], 0) - weights[order] / 2) / weights.sum()
    values = np.take_along_axis(projected, order, 0)
    return np.stack([np.interp(levels(len(x)), m, v) for m, v in zip(middle.T, values.T)], 1)


def scale(images: np.ndarray | Array) -> np.ndarray:
    """Scale uint8 images to [-1, 1]."""
    return np.asarray(images, np.float64) / 127.5 - 1


def evenly_spaced(model: TrainedModel, count: int, split: str) -> np.ndarray:
    """Return at most `count` images of a split, evenly spaced in their order; grey levels."""
    images = common.images(model, split)
    chosen = np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(int)
    return np.asarray(images.batch(chosen).pixels)


held_out = functools.partial(evenly_spaced, split="test")


def nearest(images: np.ndarray, operator: Operator, y: np.ndarray | Array) -> np.ndarray:
    """Return the images (N, ...) of a set (M, ...) whose measurements are nearest to y (N, ...)."""
    measured = np.asarray(operator.forward(images)).reshape(len(images), -1)
    gaps = np.square(np.asarray(y).reshape(len(y), 1, -1) - measured).sum(-1)
    return images[gaps.argmin(1)]


def is_digits(model: TrainedModel) -> bool:
    return model.config.data.dataset == "digits"


@functools.cache
def reference(model: TrainedModel, split: str = "test") -> tuple[np.ndarray, np.ndarray]:
    """Return images of a split of a model's data set in [-1, 1], and their weights.

    The classes of digits are weighted as in training.
    """
    if not is_digits(model):
        images = scale(evenly_spaced(model, HELD_OUT, split))
        return images, np.ones(len(images))
    train, used = (common.images(model, each) for each in ("train", split))
    known, drawn = (np.bincount(np.asarray(each.labels)) / len(each) for each in (train, used))
    return scale(digits(np.asarray(used.pixels))), (known / drawn)[np.asarray(used.labels)]


@functools.cache
def quantiles(model: TrainedModel, split: str = "test") -> np.ndarray:
    """Return the quantiles of the images of a split."""
    return weighted_quantiles(*reference(model, split))


@functools.cache
def floor(model: TrainedModel, count: int) -> Estimate:
    """Return the distance of `count` training images, drawn with replacement, to held-out ones.

    Its error is the standard deviation over FLOORS draws.
    """
    train, found = common.images(model, "train"), []
    for seed in range(FLOORS):
        chosen = np.random.default_rng(seed).integers(0, len(train), count)
        pixels = np.asarray(train.batch(chosen).pixels)
        drawn = scale(digits(pixels) if is_digits(model) else pixels)
        found.append(sliced_distance(quantiles(model), drawn))
    return Estimate(float(np.mean(found)), float(np.std(found, ddof=1)))


def estimated_distance(quantiles: np.ndarray, x: np.ndarray) -> Estimate:
    """Return `sliced_distance`; its error is the standard deviation over resampled samples."""
    rng, count = np.random.default_rng(0), len(x)
    found = [
        sliced_distance(quantiles, x[rng.integers(0, count, count)]) for _ in range(RESAMPLINGS)
    ]
    return Estimate(sliced_distance(quantiles, x), float(np.std(found, ddof=1)))


def distance(model: TrainedModel, x: Array | np.ndarray) -> Estimate:
    """Return the distance of samples x (n, H, W, C) of a model to held-out images, in [-1, 1].

    With its floor, and the distances to resampled held-out images. These have more noise, so the
    mean of their squares is that of the distance, to first order.
    """
    images, rng = scale(model.to_images(jnp.asarray(x))), np.random.default_rng(0)
    found, (known, weights) = estimated_distance(quantiles(model), images), reference(model)
    squares = []
    for _ in range(RESAMPLINGS):
        chosen = rng.integers(0, len(known), len(known))
        resampled = weighted_quantiles(known[chosen], weights[chosen])
        squares.append(sliced_distance(resampled, images) ** 2)
    others = found.value + (np.array(squares) - np.mean(squares)) / (2 * found.value)
    return found._replace(floor=floor(model, len(images)).value, resampled=others.tolist())


def digits(pixels: np.ndarray) -> np.ndarray:
    """Return digits of 17 grey levels as uint8 images (n, 8, 8, 1)."""
    return np.round(pixels * (255 / 16)).astype(np.uint8)


@functools.cache
def classifier() -> LogisticRegression:
    """Return a logistic regression on the training digits, scaled to [-1, 1]."""
    train = datasets.load(get_default_configs().data, "train")
    x = scale(digits(np.asarray(train.pixels))).reshape(len(train), -1)
    return LogisticRegression(max_iter=2000).fit(x, np.asarray(train.labels))


def classes(images: np.ndarray) -> np.ndarray:
    """Return the most probable classes (n,) of uint8 images of digits (n, 8, 8, 1)."""
    return classifier().predict_proba(scale(images).reshape(len(images), -1)).argmax(1)


def quantiles_of_mixture(mixture: Mixture, n: int) -> np.ndarray:
    """Return the quantiles of a mixture along `directions`, (n, 2 D)."""
    vectors = directions(len(mixture.means.T))
    mean = mixture.means @ vectors
    std = np.sqrt(np.einsum("di,kde,ei->ki", vectors, mixture.covariances, vectors, optimize=True))
    grid = np.linspace((mean - 6 * std).min(0), (mean + 6 * std).max(0), 4000)
    columns = []
    for j, points in enumerate(grid.T):
        cdf = norm.cdf((points[:, None] - mean[:, j]) / std[:, j]) @ mixture.weights
        columns.append(np.interp(levels(n), cdf, points))
    return np.stack(columns, 1)


def mixture_of_digits() -> Mixture:
    """Return ten Gaussians with the pixel means and variances of the classes of the digits.

    They are equally likely. The digits are dequantized and scaled to [-1, 1].
    """
    grey, labels = map(np.asarray, load_digits(return_X_y=True))
    x = 2 * (grey + 0.5) / 17 - 1
    groups = [x[labels == k] for k in range(10)]
    dequantization_var = (2 / 17) ** 2 / 12
    covariances = [np.diag(group.var(0) + dequantization_var) for group in groups]
    means = np.stack([group.mean(0) for group in groups])
    return Mixture(np.full(10, 0.1), means, np.stack(covariances))
