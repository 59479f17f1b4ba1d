"""Decoding of unusual image files; the official crops and resizes, against JAX's resize."""

import io
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images

from readers import image_files, preprocessing
from readers.preprocessing import Decoded
from tests.examples import encoded

PHOTO = Image.fromarray(load_sample_images().images[0])


def pixels(data: bytes, channels: int = 3) -> np.ndarray:
    return image_files.to_array(image_files.decode(data, channels))


# --- decoding ---

RED, PART = Image.new("RGB", (4, 4), (255, 0, 0)), PHOTO.crop((300, 100, 330, 120))
EXIF = Image.Exif()
EXIF[0x0112] = 6  # To display the image, rotate it clockwise by 90 degrees.
TURNED = PART.rotate(180)
MODES = {
    **{f"PNG {mode}": encoded(PART.convert(mode)) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")},
    **{f"JPEG {mode}": encoded(PART.convert(mode), "JPEG") for mode in ("L", "RGB", "CMYK")},
    "JPEG progressive": encoded(PART, "JPEG", progressive=True, exif=EXIF, comment=b"\xff\xda"),
    "JPEG restart": encoded(PART, "JPEG", restart_marker_blocks=1),
    "JPEG profile": encoded(PART, "JPEG", icc_profile=bytes(100_000)),
    "PNG EXIF": encoded(PART, exif=EXIF, icc_profile=bytes(999)),
    "PNG animated": encoded(PART, save_all=True, append_images=[TURNED]),
    "WEBP lossy": encoded(PART, "WEBP", exif=EXIF),
    "WEBP alpha": encoded(PART.convert("RGBA"), "WEBP", lossless=True),
    "WEBP animated": encoded(PART, "WEBP", save_all=True, append_images=[TURNED]),
}


@pytest.mark.parametrize("content", MODES.values(), ids=MODES)
def test_removed_parts_do_not_affect_pixels(content, monkeypatch):
    """The whole file in Pillow has the same pixels; strips are joined without a seam."""
    monkeypatch.setattr(image_files, "STRIP", 100)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    np.testing.assert_array_equal(image_files.decode(content, 3), expected)
    assert pixels(content, 1).shape == (*expected.size[::-1], 1)


COLORS = {
    (255, 255, 255): encoded(Image.new("LA", (4, 4), (0, 0))),
    (255, 204, 204): encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 51))),
    (255, 255, 254): encoded(RED.convert("P"), transparency=15),
    (255, 0, 0): encoded(RED.convert("CMYK"), "JPEG", quality=95),  # Adobe's are inverted.
}


@pytest.mark.parametrize(("color", "content"), COLORS.items())
def test_transparency_and_cmyk(color, content):
    assert np.abs(pixels(content).astype(int) - color).max() <= 3


def test_rounding_of_16_bits():
    values = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    found = image_files.decode(encoded(Image.fromarray(values)), 1)
    np.testing.assert_array_equal(found, np.round(values / 257))


def test_all_threads_share_a_budget_of_pixels(monkeypatch):
    """At most two of eight images are in memory at a time."""
    monkeypatch.setattr(image_files, "MAX_PIXELS", 1500)
    content, running, most, lock = encoded(PART), 0, 0, threading.Lock()

    def transform(image, size):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        threading.Event().wait(0.02)
        with lock:
            running -= 1
        return image

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: image_files.load(content, 3, transform, 8), range(8)))
    assert most == 2


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
    part = SMALL.crop((0, 0, 20, 32))
    for wide in (SMALL, ImageOps.expand(part, (5, 0))):
        crop = wide if wide is SMALL else part
        np.testing.assert_array_equal(preprocessing.crop_resize(wide, crop.size[::-1]), crop)


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
