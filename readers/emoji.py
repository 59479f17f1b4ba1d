"""Color emoji: the bitmaps of the font Noto Color Emoji, as images of any square size.

The font stores each emoji as a PNG image of 136x128 pixels in its tables CBDT and CBLC. Its table
GSUB states which sequences of code points select an image: skin tones, genders and hair are parts
of a sequence. Training and held-out images never show variants of the same emoji; see `_groups`.
"""

from __future__ import annotations

import base64
import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import ml_collections
import numpy as np
from PIL import Image

from errors import advice, expand_home
from readers import font, image_files, preprocessing
from readers.batches import Images
from readers.files import read_bytes, reading
from readers.folders import members

FILE = "NotoColorEmoji.ttf"
DEBIAN = Path("/usr/share/fonts/truetype/noto") / FILE  # Where Debian installs the font.
KIND = " as a font with color bitmaps (table CBDT)"
SIGNATURES = (b"\0\1\0\0", b"OTTO", b"true")  # The first bytes of TrueType and OpenType fonts.
MAX_FONT = 2**26  # bytes
MAX_SIDE = 1024  # pixels
INSTALL = "On Debian, apt-get install fonts-noto-color-emoji installs it; data.path names others."

COMPARED_SIZE = 32  # pixels; images of any data.image_size have the same splits.
SIMILAR = 0.2  # Images with a smaller relative distance belong to the same group.
ROWS = 1000  # of the matrix of distances that are computed at a time


CodePoints = tuple[int, ...]

KEYCAP = 0x20E3
MODIFIERS = {
    *(0xFE0F, 0x200D),  # variation selector, joiner
    *(0x2640, 0x2642),  # female, male
    0x27A1,  # facing right
    *range(0x1F3FB, 0x1F400),  # skin tones
    *range(0x1F9B0, 0x1F9B4),  # hair
}
PERSON, CHILD, CROWN, TREE = 0x1F9D1, 0x1F9D2, 0x1F451, 0x1F384
HANDSHAKE, HEART, KISS, RABBIT = 0x1F91D, 0x2764, 0x1F48B, 0x1F430
CLOCKS = range(0x1F550, 0x1F568)
EQUIVALENT = {
    **dict.fromkeys((0x1F468, 0x1F469), {PERSON}),  # man, woman
    **dict.fromkeys((0x1F466, 0x1F467), {CHILD}),  # boy, girl
    **dict.fromkeys((0x1F46B, 0x1F46C, 0x1F46D), {PERSON, HANDSHAKE}),  # two people hold hands
    **dict.fromkeys((0x1FAF1, 0x1FAF2), {HANDSHAKE}),  # each of its hands
    **dict.fromkeys((0x1F478, 0x1F934, 0x1FAC5), {PERSON, CROWN}),  # princess, prince
    **dict.fromkeys((0x1F385, 0x1F936), {PERSON, TREE}),  # Santa Claus, Mrs. Claus
    **dict.fromkeys((0x1F474, 0x1F475), {0x1F9D3}),  # older people
    **dict.fromkeys(CLOCKS, {CLOCKS.start}),
    0x1F46A: {PERSON, CHILD},  # family
    0x1F46F: {PERSON, RABBIT},  # people with bunny ears
    0x1F48F: {PERSON, HEART, KISS},
    0x1F491: {PERSON, HEART},
}
"""Characters that show what a sequence of others shows, for other genders or times."""


class Glyph(NamedTuple):
    """A PNG image of the font, its name there, and the sequences of code points that select it."""

    name: str
    sequences: frozenset[CodePoints]
    png: bytes


def subject(glyph: Glyph) -> str:
    """Return what a glyph shows, as code points: variants of an emoji have the same subject."""
    subjects = []
    for sequence in glyph.sequences:
        parts: set[int] = set()
        for point in set(sequence) - MODIFIERS:
            parts |= EQUIVALENT.get(point, {point})
        if KEYCAP in parts:
            parts = {KEYCAP}
        subjects.append(sorted(parts) or list(sequence))
    return "-".join(f"{point:X}" for point in min(subjects)) if subjects else glyph.name


def read(split: str, config: ml_collections.ConfigDict) -> Images:
    """Return the images of a split, 'train' or 'test'.

    The font is data.path, or NotoColorEmoji.ttf in the folder data.path, by default where Debian
    installs it. Images are composited on white and padded to squares. A share data.held_out of the
    groups of similar images is in 'test'; a hash of their names selects them. Identical images
    occur once.

    Raises InputError if the font is missing or damaged, or has no color bitmaps.
    """
    path = expand_home(config.path, "data.path") if config.path else DEBIAN
    path = path / FILE if path.is_dir() else path
    with advice(INSTALL), reading(path, kind=KIND):
        data = read_bytes(path, "data.path", MAX_FONT)
        pictures, names = distinct(data)
    selected = members(names.tolist(), split, config.held_out)

    files = preprocessing.Files(len(selected), lambda i: pictures[selected[i]], path)
    return Images(preprocessing.prepared(files, config, _square))


@functools.lru_cache(maxsize=1)  # Both splits need it.
def distinct(data: bytes) -> tuple[list[bytes], np.ndarray]:
    """Return the distinct images (N,) of a font, as PNG, and the names (N,) of their groups."""
    distinct: dict[bytes, str] = {}
    for glyph in read_glyphs(data):
        distinct.setdefault(glyph.png, subject(glyph))
    pixels = np.stack([picture(png, COMPARED_SIZE, 3) for png in distinct])
    return list(distinct), _groups(pixels, list(distinct.values()))


def read_glyphs(data: bytes) -> list[Glyph]:
    """Return the images of a font, in its order; of several sizes, the largest.

    Another process reads the font, with limits of memory and time. Raises ValueError if it cannot.
    """
    if data[:4] not in SIGNATURES:
        raise ValueError("it is not a TrueType or OpenType font")
    # -P: modules beside the script do not replace those of libraries.
    command = [sys.executable, "-P", font.__file__]
    process = subprocess.run(command, input=data, capture_output=True, check=False)
    if process.returncode:
        limits = f"more than {font.MEMORY:,} bytes or {font.SECONDS} seconds"
        raise ValueError(f"it is damaged, or reading it takes {limits}")
    return [
        Glyph(name, frozenset(map(tuple, sequences)), base64.b64decode(png))
        for name, sequences, png in json.loads(process.stdout)
    ]


def picture(png: bytes, size: int, channels: int) -> np.ndarray:
    """Return an image (size, size, C) uint8, composited on white and padded to a square."""
    return image_files.load(png, channels, _square, size)


def _square(image: Image.Image, size: int) -> Image.Image:
    side = max(image.size)
    if side > MAX_SIDE:
        raise ValueError(f"a bitmap has a side of {side} pixels; at most {MAX_SIDE} are read")
    square = Image.new(image.mode, (side, side), "white")
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return preprocessing.crop_resize(square, size)


def _groups(pixels: np.ndarray, subjects: list[str]) -> np.ndarray:
    """Return the name of the group (N,) of each image (N, H, W, C): the first of the subjects.

    Two images are in the same group if they have the same subject or a relative distance below
    SIMILAR, or if a chain of such pairs connects them.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    names, of_subject = np.unique(subjects, return_inverse=True)
    first, second = similar_pairs(pixels)
    edges = (np.ones(len(first)), (of_subject[first], of_subject[second]))
    _, component = connected_components(coo_array(edges, (len(names), len(names))), directed=False)
    _, first_name = np.unique(component, return_index=True)
    return names[first_name[component[of_subject]]]


def similar_pairs(pixels: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return the indices of pairs of images (N, H, W, C) uint8 that are similar.

    Their relative distance |x - y| / sqrt(|x|^2 + |y|^2) is below SIMILAR, where 0 is white: in
    Euclidean distance a faint image is near to every other. Sums of integers are exact in float64,
    so that the pairs are the same on every machine.
    """
    x = 255.0 - pixels.reshape(len(pixels), -1)
    squares = (x**2).sum(1)
    pairs = []
    for start in range(0, len(x), ROWS):
        rows = x[start : start + ROWS]
        energy = squares[start : start + ROWS, None] + squares
        i, j = np.nonzero((1 - SIMILAR**2) * energy < 2 * rows @ x.T)
        pairs.append((i + start, j))
    return tuple(np.concatenate(each) for each in zip(*pairs))
