"""Held-out images beside the samples, which images have requested classes, and trajectories."""

import numpy as np
import pytest

import datasets
from datasets import Images
from experiment import Experiment
from metrics import samples_stage, splits
from readers import pictures
from tests import tiny
from tests.refusal import refused


def labelled(*labels):
    """Images that are their own numbers, with these labels."""
    return Images(np.arange(len(labels), dtype=np.uint8), np.array(labels))


def test_rows_of_classes():
    """Images alternate as the classes do, as many as there are; those of a class are spread out."""
    images = labelled(*[0] * 6, *[1] * 4, *[2] * 9)
    assert splits.rows_of_classes(images, ()).tolist() == list(range(19))
    assert splits.rows_of_classes(images, (1, 0)).tolist() == [6, 0, 7, 2, 8, 3, 9, 5]
    twice = splits.rows_of_classes(images, (2, 2, 1))
    assert images.labels[twice].tolist() == [2, 2, 1] * 4
    assert len(set(twice.tolist())) == 12
    whole = labelled(2, 0, 1, 1, 0, 2)
    assert sorted(splits.rows_of_classes(whole, (0, 1, 2))) == list(range(6))
    for images, classes in ((Images(np.zeros(3)), (0,)), (labelled(1, 2), (1, 7))):
        with pytest.raises(splits.NoReferenceError, match="guidance.classes"):
            splits.rows_of_classes(images, classes)


def held_out(count, **changes):
    return samples_stage.held_out(Experiment(tiny.config(**changes)), count)[..., 0]


def grey(pixels):
    """The pixels (N, 8, 8, 1) of digits as they are shown."""
    return np.round(pixels[..., 0] * np.float32(255 / 16))


def test_held_out_images():
    """They are evenly spaced in the test split, and of the classes of the samples."""
    test = datasets.load(tiny.config().data, "test")
    pixels = grey(test.pixels)
    chosen = np.linspace(0, len(test) - 1, 10).round().astype(int)
    np.testing.assert_array_equal(held_out(10), pixels[chosen])
    for i, image in enumerate(held_out(10, **{"guidance.classes": (3, 1)})):
        (row,) = np.flatnonzero((pixels == image).all((1, 2)))
        assert test.labels[row] == (3, 1)[i % 2]
    for changes in (
        {"data.dataset": "CIFAR10", "data.image_size": 32},
        {"data.dataset": "noise", "guidance.classes": (3, 1)},
    ):
        refused("data.dataset|data.path", held_out, 9, **changes)


def test_titles_of_trajectories(monkeypatch):
    """They are the noise levels of the frames, if the sampler states them."""
    titles, original = [], pictures.image_grid
    monkeypatch.setattr(
        *(pictures, "image_grid"),
        lambda *args, **options: titles.append(options["titles"]) or original(*args, **options),
    )
    frames = np.zeros((4, 9, 8, 8, 1), np.uint8)
    picture = datasets.trajectory_grid(frames, (151.7, 9.54, 0.0123, 0.0))
    datasets.trajectory_grid(frames, ())
    assert titles == [["152", "9.5", "0.012", "0"], []]
    assert picture.size == (4 + 4 * 68, 22 + 8 * 68)
