"""Combine pictures of samples, restoration and interpolation into docs/strip.png, for the README.

Run `python -m docs.make_strip` after a change of one of the pictures.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

DOCS = Path(__file__).parent
PANELS = {  # file: (caption, columns of the picture, columns to show)
    "digits.png": ("samples", 10, 8),
    "restoration.png": ("reconstruction of the center", 8, 8),
    "interpolation.png": ("interpolation between latent codes", 10, 10),
}
ROWS = 6  # of each picture
HEIGHT = 440  # pixels of a panel without its caption
GUTTER = 4  # pixels between the images of a picture
GAP = 24
CAPTION = 44


def panel(name: str, caption: str, columns: int, shown: int) -> Image.Image:
    """The upper left part of a picture, with a caption below."""
    picture = Image.open(DOCS / name).convert("RGB")
    cell = (picture.width - GUTTER) // columns
    top = picture.height % cell  # The titles, if there are any, and a gutter.
    picture = picture.crop((0, 0, GUTTER + shown * cell, top + ROWS * cell))
    width = round(picture.width * HEIGHT / picture.height)
    found = Image.new("RGB", (width, HEIGHT + CAPTION), "white")
    found.paste(picture.resize((width, HEIGHT), Image.Resampling.LANCZOS))
    position = (width // 2, HEIGHT + CAPTION // 2)
    font = ImageFont.load_default(size=20)
    ImageDraw.Draw(found).text(position, caption, fill=(40, 40, 40), font=font, anchor="mm")
    return found


def strip() -> Image.Image:
    """All panels in one row."""
    panels = [panel(name, *options) for name, options in PANELS.items()]
    width = sum(each.width for each in panels) + GAP * (len(panels) - 1)
    found = Image.new("RGB", (width, panels[0].height), "white")
    left = 0
    for each in panels:
        found.paste(each, (left, 0))
        left += each.width + GAP
    return found


if __name__ == "__main__":
    strip().quantize(128).save(DOCS / "strip.png", optimize=True)
