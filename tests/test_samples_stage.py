"""Pictures of samples and of held-out images, and which images have requested classes."""

import numpy as np
import pytest
from PIL import Image

import datasets
from datasets import Images
from experiment import Experiment
from metrics import samples_stage, splits
from metrics.stage import Context
from readers import pictures
from tests import tiny


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
    rows = splits.rows_of_classes(images, (0, 1, 2))
    assert images.labels[rows].tolist() == [0, 1, 2] * 4
    whole = labelled(2, 0, 1, 1, 0, 2)
    assert sorted(splits.rows_of_classes(whole, (0, 1, 2))) == list(range(6))


def test_classes_without_images():
    with pytest.raises(splits.NoReferenceError, match="needs images with labels; those of"):
        splits.rows_of_classes(Images(np.zeros(3)), (0,))
    with pytest.raises(
        splits.NoReferenceError, match="requests class 7, of which data.dataset has too few"
    ):
        splits.rows_of_classes(labelled(1, 2), (1, 7))


def write(folder, count, **changes):
    """Write the picture of held-out images; return the images that it shows, or None."""
    experiment = Experiment(tiny.config(**changes))
    samples_stage._write_held_out(Context(experiment, {}, folder), count)
    if not (folder / "real.png").exists():
        return None
    picture = np.asarray(Image.open(folder / "real.png"))[..., 0]
    columns = picture.shape[1] // 68
    cells = [(4 + 68 * (i // columns), 4 + 68 * (i % columns)) for i in range(count)]
    return np.stack([picture[y : y + 64 : 8, x : x + 64 : 8] for y, x in cells])


def grey(pixels):
    """The pixels (N, 8, 8, 1) of digits as they are shown."""
    return np.round(pixels[..., 0] * np.float32(255 / 16))


def test_held_out_images(tmp_path):
    """They are evenly spaced in the test split."""
    test = datasets.load(tiny.config().data, "test")
    shown = write(tmp_path, 10)
    chosen = np.linspace(0, len(test) - 1, 10).round().astype(int)
    np.testing.assert_array_equal(shown, grey(test.pixels[chosen]))


def test_held_out_images_of_the_requested_classes(tmp_path):
    """Their classes are those of the samples in the same places."""
    test = datasets.load(tiny.config().data, "test")
    shown = write(tmp_path, 10, **{"guidance.classes": (3, 1)})
    pixels = grey(test.pixels)
    for i, image in enumerate(shown):
        (row,) = np.flatnonzero((pixels == image).all((1, 2)))
        assert test.labels[row] == (3, 1)[i % 2]


def test_samples_need_no_data(tmp_path):
    """Without held-out images, or without their labels, there is no picture and no error."""
    assert write(tmp_path, 9, **{"data.dataset": "CIFAR10", "data.image_size": 32}) is None
    unlabelled = {"data.dataset": "noise", "guidance.classes": (3, 1)}
    assert write(tmp_path, 9, **unlabelled) is None


def test_titles_of_trajectories(monkeypatch):
    """They are the noise levels of the frames, if the sampler states them."""
    titles = []
    original = pictures.image_grid

    def recording(*arguments, **options):
        titles.append(options["titles"])
        return original(*arguments, **options)

    monkeypatch.setattr(pictures, "image_grid", recording)
    frames = np.zeros((4, 9, 8, 8, 1), np.uint8)
    picture = datasets.trajectory_grid(frames, (151.7, 9.54, 0.0123, 0.0))
    datasets.trajectory_grid(frames, ())
    assert titles == [["152", "9.5", "0.012", "0"], []]
    assert picture.size == (4 + 4 * 68, 22 + 8 * 68)
