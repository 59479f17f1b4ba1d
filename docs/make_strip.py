"""Draw the pictures of the documentation by networks of zoo/, and docs/strip.png for the README.

Run `python -m docs.make_strip` after a change of a network, a sampler or the pictures. Restoring
emoji needs Debian's font (docs/data.md).
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import datasets
from commands import conversion, latents, restoration, samples, stored

DOCS = Path(__file__).parent
ZOO = DOCS.parent / "zoo"


class Panel(NamedTuple):
    """A part of the strip: a picture of docs/, its columns, and how many of them to show."""

    file: str
    caption: str
    columns: int
    shown: int


ROWS_OF_PANELS = (
    (
        Panel("emoji.png", "samples", 10, 8),
        Panel("colorization.png", "colorization of held-out emoji", 8, 7),
        Panel("inpainting.png", "reconstruction of the center", 8, 7),
    ),
    (
        Panel("digits.png", "samples", 10, 8),
        Panel("guidance.png", "samples of each class", 10, 10),
        Panel("emoji_interpolation.png", "interpolation between latent codes", 10, 10),
    ),
)
ROWS = 6  # of each picture
HEIGHT = 440  # pixels of a panel without its caption
GUTTER = 4  # pixels between the images of a picture
GAP = 24
CAPTION = 44


def draw_digits() -> None:
    """Write digits.png, restoration.png and interpolation.png."""
    config = stored.get_config(str(ZOO / "digits_vp.safetensors"))
    with tempfile.TemporaryDirectory() as folder:
        number = conversion.import_checkpoint(config, folder, str(ZOO / "digits_vp.safetensors"))
        shutil.copy(samples.sample(config, folder, 100) / "grid.png", DOCS / "digits.png")
        _restore(config, folder, number, "restoration.png")
        _interpolate(config, folder, number, "interpolation.png")


def draw_fashion() -> None:
    """Write fashion.png."""
    source = str(ZOO / "fashion_vp.safetensors")
    with tempfile.TemporaryDirectory() as folder:
        drawn = samples.sample(stored.get_config(source), folder, 100, source=source)
        shutil.copy(drawn / "grid.png", DOCS / "fashion.png")


def draw_emoji() -> None:
    """Write emoji.png, colorization.png, inpainting.png and emoji_interpolation.png."""
    config = stored.get_config(str(ZOO / "emoji_vp.safetensors"))
    config.restore.method = "moment_matching"
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as held_out:
        _write_held_out(config, Path(held_out))
        config.restore.input = held_out
        number = conversion.import_checkpoint(config, folder, str(ZOO / "emoji_vp.safetensors"))
        shutil.copy(samples.sample(config, folder, 100) / "grid.png", DOCS / "emoji.png")
        for task, file in {"colorize": "colorization.png", "inpaint": "inpainting.png"}.items():
            config.restore.task = task
            _restore(config, folder, number, file)
        config.sampling.method = "ode"  # Its default solver draws noise.
        _interpolate(config, folder, number, "emoji_interpolation.png")


def _write_held_out(config: stored.Config, folder: Path) -> None:
    """Write held-out images, evenly spaced in their order, which is that of their subjects."""
    pixels = datasets.load(config.data, "test").pixels
    for i in np.linspace(0, len(pixels) - 1, config.restore.count + 2, dtype=int)[1:-1]:
        Image.fromarray(np.asarray(pixels[i])).save(folder / f"{i:03}.png")


def _restore(config: stored.Config, folder: str, number: int, file: str) -> None:
    name = Path(file).stem
    restoration.restore(config, folder, folder=name, given=())
    drawn = Path(folder, "restore", f"checkpoint_{number}", name, "grid.png")
    shutil.copy(drawn, DOCS / file)


def _interpolate(config: stored.Config, folder: str, number: int, file: str) -> None:
    latents.interpolate(config, folder)
    drawn = Path(folder, "latents", f"checkpoint_{number}", "interpolation.png")
    shutil.copy(drawn, DOCS / file)


def panel(choice: Panel) -> Image.Image:
    """The upper left part of a picture, with a caption below."""
    picture = Image.open(DOCS / choice.file).convert("RGB")
    cell = (picture.width - GUTTER) // choice.columns
    top = picture.height % cell  # The titles, if there are any, and a gutter.
    picture = picture.crop((0, 0, GUTTER + choice.shown * cell, top + ROWS * cell))
    width = round(picture.width * HEIGHT / picture.height)
    found = Image.new("RGB", (width, HEIGHT + CAPTION), "white")
    found.paste(picture.resize((width, HEIGHT), Image.Resampling.LANCZOS))
    position = (width // 2, HEIGHT + CAPTION // 2)
    font = ImageFont.load_default(size=20)
    ImageDraw.Draw(found).text(position, choice.caption, fill=(40,) * 3, font=font, anchor="mm")
    return found


def strip() -> Image.Image:
    """All panels in rows, each of which is centered."""
    rows = [[panel(choice) for choice in row] for row in ROWS_OF_PANELS]
    widths = [sum(each.width for each in row) + GAP * (len(row) - 1) for row in rows]
    found = Image.new("RGB", (max(widths), len(rows) * (HEIGHT + CAPTION)), "white")
    for i, (row, width) in enumerate(zip(rows, widths)):
        left = (found.width - width) // 2
        for each in row:
            found.paste(each, (left, i * (HEIGHT + CAPTION)))
            left += each.width + GAP
    return found


if __name__ == "__main__":
    draw_digits()
    draw_fashion()
    draw_emoji()
    strip().quantize(256).save(DOCS / "strip.png", optimize=True)
