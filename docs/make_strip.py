"""Combine pictures of samples, restoration and interpolation into docs/strip.png, for the README.

Run `python -m docs.make_strip` after a change of one of the pictures.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

DOCS = Path(__file__).parent
PANELS = {  # file: (caption, columns of the picture, columns to show)
    "digits.png": ("samples", 10, 8),
    "restoration.png": ("image, measured, 4 reconstructions, mean, spread", 8, 8),
    "interpolation.png": ("interpolation between latent codes", 10, 10),
}
ROWS = 6  # of each picture
CELL = 66  # pixels of an image in the pictures, with its margin
GAP = 24
CAPTION = 44


def panel(name: str, caption: str, columns: int, shown: int) -> Image.Image:
    """The upper left part of a picture, with a caption below."""
    picture = Image.open(DOCS / name).convert("L")
    assert picture.width == columns * CELL, f"{name} is {picture.width} pixels wide"
    picture = picture.crop((0, 0, shown * CELL, ROWS * CELL))
    found = Image.new("L", (picture.width, picture.height + CAPTION), 255)
    found.paste(picture)
    position = (picture.width // 2, picture.height + CAPTION // 2)
    font = ImageFont.load_default(size=20)
    ImageDraw.Draw(found).text(position, caption, fill=40, font=font, anchor="mm")
    return found


def strip() -> Image.Image:
    """All panels in one row."""
    panels = [panel(name, *options) for name, options in PANELS.items()]
    width = sum(each.width for each in panels) + GAP * (len(panels) - 1)
    found = Image.new("L", (width, panels[0].height), 255)
    left = 0
    for each in panels:
        found.paste(each, (left, 0))
        left += each.width + GAP
    return found


if __name__ == "__main__":
    strip().save(DOCS / "strip.png", optimize=True)
