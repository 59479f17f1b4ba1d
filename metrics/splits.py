"""The splits of a data set that evaluation can use, and their images of some classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from datasets import Images
from errors import InputError, advice
from experiment import Experiment


def images_of(experiment: Experiment, split: str) -> Images:
    """The images of a split. Raise InputError if they cannot be read."""
    return experiment.train if split == "train" else experiment.test


def check_images(experiment: Experiment, split: str) -> None:
    """Raise InputError if the images of a split cannot be read; name the stages that need them."""
    with advice(
        "eval.enable_loss and eval.enable_bpd need the images of the data set; "
        "eval.enable_sampling does not."
    ):
        len(images_of(experiment, split))


class NoReferenceError(InputError):
    """There are no images of the requested classes to compare samples with."""


def rows_of_classes(images: Images, classes: Sequence[int]) -> np.ndarray:
    """Return the numbers of as many images as possible such that image i has class classes[i % k].

    Those of a class are evenly spaced in the split. All images, in order, if `classes` is empty.
    Raises NoReferenceError if the images have no labels, or none have one of the classes.
    """
    if not classes:
        return np.arange(len(images))
    if images.labels is None:
        raise NoReferenceError(
            "guidance.classes needs images with labels; those of data.dataset have none."
        )
    shares = Counter(classes)
    of_class = {each: np.flatnonzero(images.labels == each) for each in shares}
    cycles = min(len(of_class[each]) // share for each, share in shares.items())
    if not cycles:
        missing = [each for each, share in shares.items() if len(of_class[each]) < share]
        raise NoReferenceError(
            f"guidance.classes requests class {missing[0]}, of which data.dataset has too few "
            "images."
        )
    rows = np.empty((cycles, len(classes)), int)
    for each, share in shares.items():
        found = of_class[each]
        spaced = np.linspace(0, len(found) - 1, cycles * share).round().astype(int)
        rows[:, np.equal(classes, each)] = found[spaced].reshape(cycles, share)
    return rows.ravel()
