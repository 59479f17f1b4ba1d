"""Decoding of unusual image files; the official crops and resizes, against JAX's resize."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from readers import image_files, preprocessing
from readers.preprocessing import Decoded
from tests.examples import encoded

PHOTO = Image.fromarray(load_sample_images().images[0])


def pixels(data: bytes, channels: int = 3) -> np.ndarray:
    return image_files.to_array(image_files.decode(data, channels))


# --- decoding ---

RED = Image.new("RGB", (4, 4), (255, 0, 0))


@pytest.mark.parametrize(
    ("data", "colour"),
    [
        (encoded(Image.new("L", (4, 4), 77)), (77, 77, 77)),
        (encoded(Image.new("LA", (4, 4), (0, 0))), (255, 255, 255)),
        (encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 51))), (255, 204, 204)),
        (encoded(Image.new("1", (4, 4), 1)), (255, 255, 255)),
        (encoded(RED.convert("P")), (255, 0, 0)),
        (encoded(RED.convert("P"), transparency=15), (255, 255, 255)),
        (encoded(Image.fromarray(np.full((4, 4), 257 * 9 + 100, np.uint16))), (9, 9, 9)),
        (encoded(Image.fromarray(np.full((4, 4), 257 * 200 + 100, np.uint16))), (200, 200, 200)),
        (encoded(RED, "WEBP", lossless=True), (255, 0, 0)),
    ],
    ids=["grey", "grey+alpha", "RGBA", "bits", "palette", "transparent palette"]
    + ["16 bits, dark", "16 bits, bright", "webp"],
)
def test_modes_of_images(data, colour):
    assert (pixels(data) == colour).all()
    assert pixels(data, 1).shape == (4, 4, 1)


def test_cmyk_colours():
    """Adobe's JPEG files contain inverted CMYK values, which Pillow inverts back."""
    data = encoded(RED.convert("CMYK"), "JPEG", quality=95)
    assert np.abs(pixels(data).astype(int) - (255, 0, 0)).max() <= 3


def test_exif_orientation():
    upright = PHOTO.resize((6, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # To display the image, rotate it clockwise by 90 degrees.
    data = encoded(upright.transpose(Image.Transpose.ROTATE_90), exif=exif)
    np.testing.assert_array_equal(pixels(data), np.asarray(upright))


@pytest.mark.parametrize(
    "data", [b"", b"no image", encoded(PHOTO)[:-2000], encoded(PHOTO, "JPEG")[:-9000]]
)
def test_broken_files_raise(data):
    with pytest.raises((OSError, ValueError), match="."):
        image_files.decode(data, 3)


# --- crops and resizes ---


def exact(image: np.ndarray, height: int, width: int, method: str) -> np.ndarray:
    """Resize in floating point with antialiasing; `jax.image` has the kernels of `tf.image`."""
    shape = (height, width, image.shape[-1])
    return np.asarray(
        jax.image.resize(jnp.asarray(image, jnp.float32), shape, method, antialias=True)
    )


def crop(image: np.ndarray, size: int) -> np.ndarray:
    top, left = ((side - size) // 2 for side in image.shape[:2])
    return image[top : top + size, left : left + size]


FACE = PHOTO.resize((178, 218))  # The size of aligned CelebA.
SMALL = PHOTO.crop((0, 0, 32, 32))


@pytest.mark.parametrize(
    ("ours", "image", "size", "theirs"),
    [
        (preprocessing.celeba, FACE, 64, lambda u: exact(crop(u, 140), 64, 64, "linear")),
        (preprocessing.small_crop, PHOTO, 128, lambda u: crop(exact(u, 128, 192, "linear"), 128)),
        (preprocessing.crop_resize, PHOTO, 256, lambda u: exact(crop(u, 427), 256, 256, "cubic")),
        (preprocessing.resize, SMALL, 16, lambda u: exact(u, 16, 16, "linear")),
    ],
    ids=["CelebA", "LSUN 128", "LSUN 256", "CIFAR-10 at 16"],
)
def test_official_preprocessing(ours, image, size, theirs):
    """The only difference is the rounding to bytes."""
    error = image_files.to_array(ours(image, size)) - theirs(np.asarray(image)).clip(0, 255)
    assert error.shape == (size, size, 3)
    assert np.abs(error).max() < 0.501


def test_images_of_the_configured_size_are_unchanged():
    assert preprocessing.resize(SMALL, 32) is SMALL
    np.testing.assert_array_equal(preprocessing.crop_resize(SMALL, 32), SMALL)


# --- sequences ---


@pytest.mark.parametrize("memory", [0, 2**31])
def test_decoded_images_are_indexed_like_an_array(monkeypatch, memory):
    monkeypatch.setattr(preprocessing, "MEMORY", memory)
    array = np.arange(5 * 12, dtype=np.uint8).reshape(5, 2, 2, 3)
    calls = []
    images = Decoded(lambda i: calls.append(i) or array[i], 5, (2, 2, 3))
    indices = [0, -1, np.int64(3), [4, 1], np.array([[0, 1]])[0], np.arange(5) > 2]
    for index in (*indices, slice(1, None, 2), slice(5, 5)):
        np.testing.assert_array_equal(images[index], array[index])
    assert (len(images), images.shape, images[slice(5, 5)].shape) == (5, array.shape, (0, 2, 2, 3))
    assert (len(calls) == len(set(calls))) == (memory > 0)
    with pytest.raises(IndexError):
        images[5]
