"""The config field `data.image_size`: one integer for squares, (H, W), or the sides of an event."""

from __future__ import annotations

from collections.abc import Sequence

import ml_collections

from errors import InputError

ImageSize = int | Sequence[int]
"""A value of data.image_size: an integer, or all sides, as a list if read from JSON."""


def sides(image_size: ImageSize) -> tuple[int, ...]:
    """Return height and width in pixels, (H, W); the sides of other events."""
    return (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)


def image_shape(config: ml_collections.ConfigDict) -> tuple[int, ...]:
    """Return the shape (H, W, C) of the images of `config.data`; (D,) for vectors."""
    return *sides(config.image_size), config.num_channels


def square_side(config: ml_collections.ConfigDict) -> int:
    """Return H = W of `config.data`. Raises InputError for a rectangle."""
    first, *others = shape = sides(config.image_size) or (0,)
    if others != [first]:
        raise InputError(
            f"data.image_size = {shape}: data.dataset = {config.dataset!r} has only "
            "square images; set one integer. Rectangles need data.dataset = 'folder' or 'array'."
        )
    return first


def as_json(image_size: ImageSize) -> int | list[int]:
    """Return data.image_size as it is stored in JSON files."""
    return image_size if isinstance(image_size, int) else list(image_size)


def label(image_size: ImageSize) -> str:
    """Return data.image_size for names of files, such as '32' or '48x32'."""
    return str(image_size) if isinstance(image_size, int) else "x".join(map(str, image_size))
