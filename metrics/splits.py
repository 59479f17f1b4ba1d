"""The splits of a data set that evaluation can use."""

from __future__ import annotations

from datasets import Images
from errors import InputError
from experiment import Experiment


def images_of(experiment: Experiment, split: str) -> Images:
    """The images of a split. Raise InputError if they cannot be read."""
    return experiment.train if split == "train" else experiment.test


def check_images(experiment: Experiment, split: str) -> None:
    """Raise InputError if the images of a split cannot be read; name the stages that need them."""
    try:
        len(images_of(experiment, split))
    except InputError as error:
        raise InputError(
            f"{error} eval.enable_loss and eval.enable_bpd need the images of the data set; "
            "eval.enable_sampling does not."
        ) from error
