"""Distances of samples to images: sliced Wasserstein-2, and a classifier of digits."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from score_sde import Prior, TrainedModel
from studies import common
from studies.common import Estimate

RESAMPLINGS = 40
HELD_OUT = 1000  # images of larger data sets that samples are compared with

# --- the sliced distance --------------------------------------------------------------------------


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
    middle = np.cumsum(weights[order], 0) - weights[order] / 2
    values = np.take_along_axis(projected, order, 0)
    total = weights.sum()
    columns = [np.interp(levels(len(x)), m / total, v) for m, v in zip(middle.T, values.T)]
    return np.stack(columns, 1)


def scale(images: np.ndarray | Array) -> np.ndarray:
    """Scale uint8 images to [-1, 1]."""
    return np.asarray(images, np.float64) / 127.5 - 1


# --- held-out images ------------------------------------------------------------------------------


class HeldOut:
    """Distances of samples to images in [-1, 1] (n, ...), with weights (n,), equal by default."""

    def __init__(self, images: np.ndarray, weights: np.ndarray | None = None) -> None:
        self.quantiles = weighted_quantiles(
            images, np.ones(len(images)) if weights is None else weights
        )

    def distance(self, x: np.ndarray) -> Estimate:
        """Return the distance of samples x (m, ...), and its standard deviation by resampling."""
        rng = np.random.default_rng(0)
        resampled = [
            sliced_distance(self.quantiles, x[rng.integers(0, len(x), len(x))])
            for _ in range(RESAMPLINGS)
        ]
        return Estimate(sliced_distance(self.quantiles, x), float(np.std(resampled, ddof=1)))


class Digits(HeldOut):
    """The held-out digits, whose classes are weighted as in training.

    Attributes:
      frequencies: those of the classes in training (10,).
      classifier: a logistic regression on the training digits.
    """

    def __init__(self, model: TrainedModel) -> None:
        _, labels = load_digits(return_X_y=True)
        is_test = np.arange(len(labels)) % 5 == 4  # the split of datasets.digits
        self.frequencies = np.bincount(labels[~is_test]) / (~is_test).sum()
        test_frequencies = np.bincount(labels[is_test]) / is_test.sum()
        train, test = (
            scale(np.round(np.asarray(images.pixels) * (255 / 16)).astype(np.uint8))
            for images in (common.experiment_of(model).train, common.experiment_of(model).test)
        )
        super().__init__(test, (self.frequencies / test_frequencies)[labels[is_test]])
        x = train.reshape(len(train), -1)
        self.classifier = LogisticRegression(max_iter=2000).fit(x, labels[~is_test])

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Return the probabilities of the classes (n, 10) of uint8 images (n, ...)."""
        return self.classifier.predict_proba(scale(images).reshape(len(images), -1))


def is_digits(model: TrainedModel) -> bool:
    """Return whether a model draws digits, whose reference has a classifier."""
    return model.config.data.dataset == "digits"


def reference(model: TrainedModel) -> HeldOut:
    """Return the held-out images of the model's data set as a reference."""
    name = model.config.data.dataset
    if name not in _references:
        known = Digits(model) if is_digits(model) else HeldOut(scale(held_out(model, HELD_OUT)))
        _references[name] = known
    return _references[name]


_references: dict[str, HeldOut] = {}


def distance(model: TrainedModel, x: Array | np.ndarray) -> Estimate:
    """Return the distance of samples x (n, H, W, C) of a model to held-out images, in [-1, 1]."""
    return reference(model).distance(scale(model.to_images(jnp.asarray(x))))


def classes(model: TrainedModel, images: np.ndarray) -> np.ndarray:
    """Return the most probable classes (n,) of uint8 images (n, 8, 8, 1) of a model of digits."""
    digits = reference(model)
    if not isinstance(digits, Digits):
        raise TypeError(f"{model.config.data.dataset} has no classifier")
    return digits.probabilities(images).argmax(1)


def held_out(model: TrainedModel, count: int) -> np.ndarray:
    """Return at most `count` held-out images, evenly spaced in their order; grey levels."""
    test = common.experiment_of(model).test
    chosen = np.linspace(0, len(test) - 1, min(count, len(test))).round().astype(int)
    return np.asarray(test.batch(chosen).pixels)


# --- samples with their evaluations ---------------------------------------------------------------


def draw(
    prior: Prior,
    count: int,
    *,
    sampler: str | None = None,
    steps: int | None = None,
    batch_size: int = 500,
    **options: Any,
) -> tuple[np.ndarray, float]:
    """Return samples (count, ...) as `Prior.sample` draws them, and their mean evaluations."""
    chosen = prior.make_sampler(sampler, steps, **options)
    found = prior.draw(chosen, count, jax.random.key(0), batch_size=batch_size)
    return np.asarray(found.x), float(np.mean(found.nfe))
