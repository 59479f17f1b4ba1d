"""The data sets of scikit-learn, the map to the range of the model, and batches."""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.datasets

import datasets
from datasets import Batches, Images, Scaler
from readers import pictures, scikit_learn
from tests import tiny
from tests.refusal import refused


def load(split="train", **fields):
    return datasets.load(tiny.config(**{f"data.{k}": v for k, v in fields.items()}).data, split)


def test_digits():
    train, test = load("train"), load("test")
    assert (len(train), len(test), datasets.levels(tiny.config().data)) == (1438, 359, 17)
    pixels = np.concatenate([train.pixels, test.pixels])
    assert pixels.shape == (1797, 8, 8, 1)
    assert (pixels.min(), pixels.max()) == (0, 16)
    # Every fifth image is held out, with its label.
    everything = sklearn.datasets.load_digits()
    np.testing.assert_array_equal(test.pixels[..., 0], everything.images[4::5])
    np.testing.assert_array_equal(test.labels, everything.target[4::5])


def test_photos():
    fields = {"dataset": "photos", "image_size": 32, "num_channels": 3}
    train, test = (load(split, **fields) for split in ("train", "test"))
    assert (train.pixels.shape, test.pixels.shape) == ((4500, 32, 32, 3), (130, 32, 32, 3))


def test_held_out_photos_share_no_pixel_with_training(monkeypatch):
    """Tested with a photograph whose pixels have the number of their column as their color."""
    columns = np.broadcast_to(np.arange(640).reshape(-1, 1), (427, 640, 3))
    monkeypatch.setattr(
        "sklearn.datasets.load_sample_images", lambda: argparse.Namespace(images=[columns])
    )
    train, held_out = (
        set(np.unique(scikit_learn.photos(split, None).pixels)) for split in ("train", "test")
    )
    assert train | held_out == set(range(640))
    assert not train & held_out


def test_unknown_data_sets_and_other_shapes_are_errors():
    refused("data.dataset = 'mnist'.*cifar10, dig", load, dataset="mnist")
    refused(r"\(8, 8, 1\); data.image_size = 16", load, image_size=16)
    refused("data.path = '' is empty; set it to the .npy", load, dataset="array", path="")


@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("levels", [17, 256])
def test_scaler(levels, centered):
    scaler, u = Scaler(levels, centered), jnp.arange(levels, dtype=jnp.uint8)
    low = -1.0 if centered else 0.0
    x = scaler.scale(u)
    assert (float(x[0]), float(x[-1])) == (low, 1.0)
    grey = np.round(np.arange(levels) * 255 / (levels - 1))
    np.testing.assert_array_equal(scaler.pixels(x, dequantized=False), grey)
    for truncate in (False, True):
        ends = scaler.pixels(jnp.array([-9.0, 9.0]), dequantized=False, truncate=truncate)
        np.testing.assert_array_equal(ends, [0, 255])
    between = x[:-1] + 0.9 * (x[1:] - x[:-1])
    np.testing.assert_array_equal(scaler.pixels(between, dequantized=False), grey[1:])
    for dequantized in (False, True):
        np.testing.assert_array_equal(
            scaler.pixels(between, dequantized=dequantized, truncate=True), grey[:-1]
        )
    noisy = scaler.dequantize(u, jnp.full(levels, 0.5))
    np.testing.assert_array_equal(scaler.pixels(noisy, dequantized=True), grey)
    assert low < noisy.min()
    assert noisy.max() < 1
    slope = jax.grad(lambda noise: scaler.dequantize(u[3], noise))(0.5)
    assert np.log(slope) == pytest.approx(scaler.log_scale, abs=1e-6)


def test_flips():
    u = jnp.arange(2, dtype=jnp.uint8).reshape(1, 1, 2, 1).repeat(1000, 0)
    x = datasets.augment(
        jax.random.key(0), u, Scaler(2, False), random_flip=True, uniform_dequantization=False
    )
    assert 0.4 < (x[:, 0, 0, 0] == 1).mean() < 0.6
    assert (x.sum((1, 2, 3)) == 1).all()


IMAGES = Images(np.arange(50, dtype=np.uint8).reshape(50, 1, 1, 1), np.arange(50) % 7)


def test_batches_are_functions_of_seed_and_number():
    one, five = Batches(IMAGES, 10, seed=3), Batches(IMAGES, 10, seed=3, steps=5)
    np.testing.assert_array_equal(five[1].pixels, [one[n].pixels[0] for n in range(5, 10)])
    # One epoch contains every image once.
    assert sorted(five[0].pixels.reshape(50).tolist()) == list(range(50))
    assert not np.array_equal(five[0].pixels, five[1].pixels)
    assert not np.array_equal(one[0].pixels, Batches(IMAGES, 10, seed=4)[0].pixels)
    stream = one.iterate(7)
    np.testing.assert_array_equal(next(stream).pixels, one[7].pixels)
    np.testing.assert_array_equal(next(stream).pixels, one[8].pixels)
    assert one[0].labels is None


def test_chosen_rows_and_labels_of_batches():
    """A process loads its rows alone; they are those of the whole batch, with their labels."""
    rows = np.array([0, 3, 8])
    whole, mine = (Batches(IMAGES, 10, 3, 2, True, each) for each in (None, rows))
    for n in (0, 4):
        np.testing.assert_array_equal(mine[n].pixels, whole[n].pixels[:, rows])
        np.testing.assert_array_equal(mine[n].labels, whole[n].labels[:, rows])
        np.testing.assert_array_equal(whole[n].labels, whole[n].pixels[..., 0, 0, 0] % 7)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "needs images with labels"),
        (np.arange(4), "data.num_classes = 3: labels are from 0 to 3"),
    ],
)
def test_labels_that_do_not_fit_are_errors(monkeypatch, labels, message):
    images = Images(np.zeros((4, 8, 8, 1), np.uint8), labels)
    monkeypatch.setitem(datasets.DATASETS, "four", lambda split, config: images)
    load(dataset="four")
    refused(message, load, dataset="four", num_classes=3)


def test_rounds_contain_every_image_once():
    images = Images(np.zeros((7, 1, 1, 1), np.uint8))
    rounds = datasets.rounds(images, 4)
    assert [count for _, count in rounds] == [4, 3]
    assert np.concatenate([indices[:count] for indices, count in rounds]).tolist() == list(range(7))
    assert rounds[1][0].tolist() == [4, 5, 6, 0]
    # A batch may be larger than the set.
    ((indices, count),) = datasets.rounds(images, 16)
    assert (indices.tolist(), count) == ([*range(7), *range(7), 0, 1], 7)


def test_image_grid():
    """Rows of images in order, with gutters of 4 pixels, which also fill up the last row."""
    grid = datasets.image_grid(np.full((5, 8, 8, 1), 255, np.uint8))
    assert grid.size == (4 + 3 * 68, 4 + 2 * 68)
    white, blue = (255, 255, 255), pictures.BACKGROUND
    centers = [grid.getpixel((36 + 68 * i, 36 + 68 * j)) for j in range(2) for i in range(3)]
    assert centers == [white] * 5 + [blue]
    assert {grid.getpixel((70, y)) for y in range(grid.height)} == {blue}
    assert {grid.getpixel((x, 70)) for x in range(grid.width)} == {blue}
    grey = np.arange(1, 7, dtype=np.uint8).reshape(6, 1, 1, 1)
    grid = np.asarray(datasets.image_grid(grey, min_side=1, columns=2))
    assert grid[4::5, 4::5, 0].tolist() == [[1, 2], [3, 4], [5, 6]]
    assert datasets.image_grid(np.zeros((4, 128, 128, 3), np.uint8)).size == (4 + 264, 4 + 264)
    assert datasets.image_grid(np.zeros((1, 28, 28, 1), np.uint8)).size == (4 + 88, 4 + 88)
