"""Draw the pictures of the documentation by a network of zoo/, and docs/strip.png for the README.

Run `python -m docs.make_strip` after a change of the network, a sampler or the pictures.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from modes import conversion, latents, restoration, samples, stored

DOCS = Path(__file__).parent
SOURCE = DOCS.parent / "zoo" / "digits_vp.safetensors"
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


def draw() -> None:
    """Write the pictures of PANELS: samples, restoration of held-out images, and interpolation."""
    config = stored.get_config(str(SOURCE))
    with tempfile.TemporaryDirectory() as folder:
        number = conversion.import_checkpoint(config, folder, str(SOURCE))
        drawn = samples.sample(config, folder, 100)
        shutil.copy(drawn / "grid.png", DOCS / "digits.png")
        restoration.restore(config, folder, folder="strip", given=())
        drawn = Path(folder, "restore", f"checkpoint_{number}", "strip")
        shutil.copy(drawn / "grid.png", DOCS / "restoration.png")
        latents.interpolate(config, folder)
        drawn = Path(folder, "latents", f"checkpoint_{number}", "interpolation.png")
        shutil.copy(drawn, DOCS / "interpolation.png")


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
    draw()
    strip().quantize(128).save(DOCS / "strip.png", optimize=True)
