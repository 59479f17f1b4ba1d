"""Read the color bitmaps of a font, in a process of its own: `python font.py < FONT > JSON`.

fontTools allocates whatever the counts and offsets of a file state. The limits of this process
bound its memory and its time. It imports nothing of this repository. It fails for a damaged font.
"""

import base64
import io
import json
import resource
import sys
from collections import defaultdict

from fontTools.ttLib import TTFont

MEMORY, SECONDS = 2**30, 60  # Address space in bytes, time of the processor.
MAX_GLYPHS = 10_000  # Noto Color Emoji has 4,060 distinct bitmaps.


def glyphs(font: TTFont) -> list[tuple[str, list[tuple[int, ...]], str]]:
    """Return name, sequences of code points and image (PNG, in base64) of every bitmap.

    Of several sizes, the largest is read. Raises exceptions of many types for damaged fonts.
    """
    sizes = [strike.bitmapSizeTable.ppemY for strike in font["CBLC"].strikes]
    strike = font["CBDT"].strikeData[sizes.index(max(sizes))]
    images = {name: bitmap.imageData for name, bitmap in strike.items()}
    if len(images) > MAX_GLYPHS or sum(map(len, images.values())) > MEMORY // 16:
        raise ValueError(f"it has too many bitmaps; at most {MAX_GLYPHS:,} are read")
    found = sequences(font)
    return [
        (name, sorted(found[name]), base64.b64encode(image).decode())
        for name, image in images.items()
    ]


def sequences(font: TTFont) -> dict[str, set[tuple[int, ...]]]:
    """Return the sequences of code points that select each glyph, by its name."""
    characters = font.getBestCmap() or {}
    point_of = {name: point for point, name in characters.items()}
    found = defaultdict(set)
    for point, name in characters.items():
        found[name].add((point,))
    lookups = font["GSUB"].table.LookupList.Lookup if "GSUB" in font else ()
    for lookup in lookups:
        for subtable in lookup.SubTable:
            for first, ligatures in getattr(subtable, "ligatures", {}).items():
                for ligature in ligatures:
                    names = [first, *ligature.Component]
                    if all(name in point_of for name in names):
                        found[ligature.LigGlyph].add(tuple(point_of[name] for name in names))
    return found


def main() -> None:
    """Write the glyphs within the limits."""
    for kind, limit in ((resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_CPU, SECONDS)):
        hard = resource.getrlimit(kind)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (limit, limit))
    json.dump(glyphs(TTFont(io.BytesIO(sys.stdin.buffer.read()), lazy=True)), sys.stdout)


if __name__ == "__main__":
    main()
