"""The meaning of the config field `data.image_size`: one integer for squares, or (H, W)."""

from __future__ import annotations

from collections.abc import Sequence

import ml_collections

from errors import InputError

ImageSize = int | Sequence[int]
"""A value of data.image_size: an integer, or height and width, as a list if read from JSON."""


def sides(image_size: ImageSize) -> tuple[int, ...]:
    """Return height and width in pixels, (H, W)."""
    return (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)


def image_shape(config: ml_collections.ConfigDict) -> tuple[int, int, int]:
    """Return the shape (H, W, C) of the images of `config.data`."""
    height, width = sides(config.image_size)
    return height, width, config.num_channels


def square_side(config: ml_collections.ConfigDict) -> int:
    """Return H = W of `config.data`. Raises InputError for a rectangle."""
    height, width = sides(config.image_size)
    if height != width:
        raise InputError(
            f"data.image_size = {(height, width)}: data.dataset = {config.dataset!r} has only "
            "square images; set one integer. Rectangles need data.dataset = 'folder' or 'array'."
        )
    return height


def as_json(image_size: ImageSize) -> int | list[int]:
    """Return data.image_size as it is stored in JSON files."""
    return image_size if isinstance(image_size, int) else list(image_size)


def label(image_size: ImageSize) -> str:
    """Return data.image_size for names of files, such as '32' or '48x32'."""
    return str(image_size) if isinstance(image_size, int) else "x".join(map(str, image_size))
