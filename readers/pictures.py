"""Images as pictures: grids with gutters and titles."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jax import Array
from PIL import Image, ImageDraw, ImageFont

BACKGROUND = (58, 104, 172)  # A blue that contrasts with black, gray and white images.
TRAJECTORY_IMAGES = 8  # rows of `trajectory_grid`
TITLE_SIZE = 14  # The smallest font of titles, in pixels.


def image_grid(
    images: np.ndarray, min_side: int = 64, columns: int | None = None, titles: Sequence[str] = ()
) -> Image.Image:
    """Return a picture of images (N, H, W, C) in rows, with gutters and titles above the columns.

    Images are enlarged by a whole number, to a height of at least `min_side` pixels and the width
    of the titles. Real numbers are scaled to 0 .. 255. Images with other than 1 or 3 channels are
    shown by their first channel, events that are not images as rows. Without titles the default
    number of columns makes the grid about square.
    """
    if images.dtype != np.uint8:
        low, high = np.min(images), np.max(images)
        width = high - low if high > low else 1
        images = np.round((images - low) * (255 / width)).astype(np.uint8)
    if images.ndim != 4:
        images = images.reshape(len(images), 1, -1, 1)
    images = images if images.shape[-1] == 3 else images[..., 0]
    columns = columns or len(titles) or math.ceil(math.sqrt(len(images)))
    font = ImageFont.load_default(TITLE_SIZE)
    widest = max(map(font.getlength, titles), default=0)
    zoom = math.ceil(max(1, min_side / images.shape[1], widest / images.shape[2]))
    height, width = zoom * images.shape[1], zoom * images.shape[2]
    gutter = max(4, height // 32)
    text_height = max(TITLE_SIZE, width // 8)
    top = 2 * gutter + text_height if titles else gutter
    rows = math.ceil(len(images) / columns)
    size = (gutter + columns * (width + gutter), top + rows * (height + gutter))
    picture = Image.new("RGB", size, BACKGROUND)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        enlarged = Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST)
        picture.paste(enlarged, (gutter + column * (width + gutter), top + row * (height + gutter)))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(text_height)
    for column, title in enumerate(titles):
        middle = (gutter + column * (width + gutter) + width // 2, top // 2)
        draw.text(middle, title, font=font, anchor="mm")
    return picture


def trajectory_grid(frames: np.ndarray | Array, levels: Sequence[float]) -> Image.Image:
    """Return a picture of frames (F, B, H, W, C), one row per image, titled by noise levels."""
    rows = frames[:, :TRAJECTORY_IMAGES].swapaxes(0, 1)
    titles = [f"{level:.2g}" if level < 10 else f"{level:.0f}" for level in levels]
    return image_grid(np.concatenate(list(rows)), columns=len(frames), titles=titles)


def to_picture(image: np.ndarray) -> Image.Image:
    """Return a uint8 image (H, W, C), C = 1 or 3, as a picture."""
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
