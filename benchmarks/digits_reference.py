"""Held-out images as a reference for samples: a distance to them, and a classifier of digits."""

from __future__ import annotations

import numpy as np
from jax import Array
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from benchmarks.digit_mixture import sliced_distance, weighted_quantiles
from experiment import Experiment

RESAMPLINGS = 40


class HeldOut:
    """Distances of samples to held-out images.

    Attributes:
      quantiles: those of the images, see `digit_mixture.sliced_distance`.
    """

    def __init__(self, images: np.ndarray, weights: np.ndarray | None = None) -> None:
        """Use images (n, ...) in [-1, 1], with weights (n,) that are equal by default."""
        self.quantiles = weighted_quantiles(
            images, np.ones(len(images)) if weights is None else weights
        )

    def distance(self, x: np.ndarray) -> tuple[float, float]:
        """Return the distance of samples x (m, ...), and its standard deviation by resampling."""
        rng = np.random.default_rng(0)
        resampled = [
            sliced_distance(self.quantiles, x[rng.integers(0, len(x), len(x))])
            for _ in range(RESAMPLINGS)
        ]
        return sliced_distance(self.quantiles, x), float(np.std(resampled, ddof=1))


class DigitsReference(HeldOut):
    """The held-out digits, whose classes are weighted as in training.

    Attributes:
      frequencies: those of the classes in training (10,).
      classifier: a logistic regression on the training digits.
    """

    def __init__(self, experiment: Experiment) -> None:
        _, labels = load_digits(return_X_y=True)
        is_test = np.arange(len(labels)) % 5 == 4  # the split of datasets.digits
        self.frequencies = np.bincount(labels[~is_test]) / (~is_test).sum()
        test_frequencies = np.bincount(labels[is_test]) / is_test.sum()
        weights = (self.frequencies / test_frequencies)[labels[is_test]]
        super().__init__(grey_levels(np.asarray(experiment.test.pixels)), weights)
        train = grey_levels(np.asarray(experiment.train.pixels))
        x = train.reshape(len(train), -1)
        self.classifier = LogisticRegression(max_iter=2000).fit(x, labels[~is_test])

    def probabilities(self, x: np.ndarray) -> np.ndarray:
        """Return the probabilities of the classes (n, 10) of images x (n, ...) in [-1, 1]."""
        return self.classifier.predict_proba(x.reshape(len(x), -1))

    def classes(self, images: np.ndarray) -> np.ndarray:
        """Return the most probable classes (n,) of images (n, ...), uint8 from 0 to 255."""
        return self.probabilities(scale(images)).argmax(1)


def scale(images: np.ndarray | Array) -> np.ndarray:
    """Scale uint8 images to [-1, 1]."""
    return np.asarray(images, np.float64) / 127.5 - 1


def grey_levels(digits: np.ndarray) -> np.ndarray:
    """Scale digits of levels 0 .. 16 to [-1, 1], rounded to uint8 as samples are."""
    return scale(np.round(digits * (255 / 16)).astype(np.uint8))
