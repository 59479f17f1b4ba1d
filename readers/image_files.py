"""Decoding of image files that may be hostile, PNG, JPEG and WebP, with bounded memory and time.

The size in pixels is read from the header before anything is decoded. From JPEG files, parts that
do not affect the pixels (comments, color profiles, EXIF apart from the orientation) are removed,
so that Pillow never parses them.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from readers.files import read_bytes
from readers.image_sizes import ImageSize

MODES = {1: "L", 3: "RGB"}  # Pillow's mode for each number of channels.
MAX_PIXELS = 2**26  # Of all images that are decoded at a time; 14 bytes of memory for each.
MAX_SIDE = 65_535  # pixels, that of JPEG
MAX_FILE = 2**27  # bytes of an encoded image
MAX_PARTS = 1000  # chunks or segments of a file, in addition to one for every 1000 bytes
MAX_SCANS = 50  # Of a JPEG file; progressive files have about ten.
STRIP = 2**20  # pixels that are converted to the final mode at a time

TURNS = {  # By the orientation in EXIF.
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Source = bytes | memoryview | Path
Plain = tuple[tuple[int, int], bytes, bytes]
"""Size in pixels, the file, of JPEG without what its pixels do not need, and EXIF of JPEG."""


def _png(data: bytes) -> Plain:
    """Read the size of a PNG file. Pillow limits its texts and profiles."""
    _check_chunks(data, 8, ">I", 12)
    width, height = struct.unpack_from(">II", data, 16)
    return (width, height), data, b""


def _webp(data: bytes) -> Plain:
    """Read the size of a WebP file, whose decoder allocates the canvas when it is opened."""
    _check_chunks(data, 12, "<4xI", 8)
    match data[12:16]:
        case b"VP8X":
            width, height = (1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
        case b"VP8L":
            (bits,) = struct.unpack_from("<I", data, 21)
            width, height = 1 + bits % 2**14, 1 + (bits >> 14) % 2**14
        case _:
            width, height = (side % 2**14 for side in struct.unpack_from("<HH", data, 26))
    return (width, height), data, b""


def _check_chunks(data: bytes, position: int, layout: str, extra: int) -> None:
    """Raise ValueError for too many chunks, of `extra` bytes and a length that `layout` reads."""
    for _ in range(MAX_PARTS + len(data) // 1000):
        if position + 8 > len(data):
            return
        (length,) = struct.unpack_from(layout, data, position)
        position += extra + length + (length % 2 if extra == 8 else 0)  # WebP pads chunks.
    raise ValueError("the file consists of too many parts")


SEGMENT = re.compile(rb"\xff+([\xc0-\xfe])")
SCAN, APP0, EXIF, ADOBE, COMMENT = 0xDA, 0xE0, 0xE1, 0xEE, 0xFE
FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def _jpeg(data: bytes) -> Plain:
    """Keep tables, frame and scans of a JPEG file, and the segments that state its colors."""
    kept, exif, size, position, marker = [data[:2]], b"", None, 2, 0
    for _ in range(MAX_PARTS):
        found = SEGMENT.match(data, position)
        if not found:
            raise ValueError("the JPEG file is damaged")
        marker, start = found[1][0], found.end()
        if marker == SCAN:
            break
        (length,) = struct.unpack_from(">H", data, start)
        position = start + length
        if marker in FRAMES:
            if size:
                raise ValueError("the JPEG file has two frames")
            height, width = struct.unpack_from(">HH", data, start + 3)
            size = width, height
        elif marker == EXIF and data[start + 2 : start + 8] == b"Exif\0\0":
            exif = exif or data[start + 8 : position]
        if not APP0 < marker < ADOBE and marker not in (ADOBE + 1, COMMENT):
            kept += [bytes([0xFF, marker]), data[start:position]]
    if marker != SCAN or size is None:
        raise ValueError("the JPEG file has no scan")
    # Compressed data has no 0xFF before another byte than 0 or that of a marker.
    scans = data.count(bytes([0xFF, SCAN]), position)
    if scans > MAX_SCANS or scans * size[0] * size[1] > MAX_SCANS * MAX_PIXELS // 4:
        raise ValueError(
            f"the JPEG file has {scans} scans of {size[0]}x{size[1]} pixels; at most {MAX_SCANS} "
            "are read, and fewer of large images"
        )
    return size, b"".join(kept) + data[position:], exif


FORMATS: dict[str, tuple[re.Pattern, Callable[[bytes], Plain]]] = {  # The first bytes; a reader.
    "PNG": (re.compile(rb"\x89PNG\r\n\x1a\n"), _png),
    "JPEG": (re.compile(rb"\xff\xd8\xff"), _jpeg),
    "WEBP": (re.compile(rb"RIFF....WEBP", re.DOTALL), _webp),
}


def _orientation(exif: bytes) -> int:
    """Return the orientation in EXIF data, 1 by default: tag 0x0112 of the first TIFF directory."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order:
        with contextlib.suppress(struct.error):  # Odd metadata is ignored.
            (start,) = struct.unpack_from(f"{order}I", tiff, 4)
            (count,) = struct.unpack_from(f"{order}H", tiff, start)
            for number in range(count):
                tag, value = struct.unpack_from(f"{order}H6xH", tiff, start + 2 + 12 * number)
                if tag == 0x0112:
                    return value
    return 1


_changed = threading.Condition()
_held: list[int] = []  # The pixels of each image that a thread decodes.


def load(
    source: Source, channels: int, transform: Callable[..., Image.Image], size: ImageSize
) -> np.ndarray:
    """Return transform(image, size) as (H, W, C) uint8, which counts as decoding; see `decode`."""
    with _decoded(source, channels) as image:
        return to_array(transform(image, size))


def decode(source: Source, channels: int) -> Image.Image:
    """Decode an image file, given as its path or content, to 8 bits: gray or RGB by `channels`.

    EXIF orientation is applied, transparent images are composited on white, 16-bit gray is rounded
    to 8 bits, and CMYK is converted without color profiles. Of an animation, the first image is
    decoded. Raises exceptions of many types for files that cannot be decoded or are too large.
    """
    with _decoded(source, channels) as image:
        return image


def to_array(image: Image.Image) -> np.ndarray:
    """Return the pixels (H, W, C) uint8."""
    array = np.asarray(image)
    return array[..., None] if array.ndim == 2 else array


@contextlib.contextmanager
def _decoded(source: Source, channels: int) -> Iterator[Image.Image]:
    """Decode an image as soon as other threads leave room for it, until the context ends."""
    kind, plain = _open(source)
    pixels = math.prod(plain[0]) * (2 if kind == "WEBP" else 1)  # libwebp holds three copies.
    with _changed:
        _changed.wait_for(lambda: sum(_held) + pixels <= MAX_PIXELS)
        _held.append(pixels)
    try:
        yield _decode(kind, plain, MODES[channels])
    finally:
        with _changed:
            _held.remove(pixels)
            _changed.notify_all()


def _open(source: Source) -> tuple[str, Plain]:
    """Return the format of a file, and the file without what its pixels do not need."""
    data = read_bytes(source, limit=MAX_FILE) if isinstance(source, Path) else bytes(source)
    kind = next((kind for kind, (magic, _) in FORMATS.items() if magic.match(data)), None)
    if kind is None:
        raise ValueError("it is empty" if not data else "it is not a PNG, JPEG or WebP image")
    try:
        plain = FORMATS[kind][1](data)
    except struct.error as error:
        raise ValueError("the image is cut off") from error
    width, height = plain[0]
    limit = MAX_PIXELS // 2 if kind == "WEBP" else MAX_PIXELS
    if not 0 < width * height <= limit or max(width, height) > MAX_SIDE:
        raise ValueError(
            f"the image has {width}x{height} pixels; the limit is {MAX_PIXELS:,}, half of it for "
            f"WebP, and {MAX_SIDE:,} on a side"
        )
    return kind, plain


def _decode(kind: str, plain: Plain, mode: str) -> Image.Image:
    """Return an image of 8 bits without transparency, converted in strips, which bounds memory."""
    size, content, exif = plain
    with Image.open(io.BytesIO(content), formats=[kind]) as encoded:
        if encoded.size != size:
            raise ValueError("the image states two sizes")
        encoded.load()
        exif = exif or encoded.info.get("exif", b"")
        image = Image.new(mode, size)
        rows = max(1, STRIP // encoded.width)
        for top in range(0, encoded.height, rows):
            box = (0, top, encoded.width, min(encoded.height, top + rows))
            strip = encoded.crop(box)
            if strip.mode.startswith("I"):
                gray = np.asarray(strip).clip(0, 65535).astype(np.uint32)
                strip = Image.fromarray(((gray + 128) // 257).astype(np.uint8))
            elif strip.has_transparency_data:
                strip = strip.convert("RGBA")
                strip = Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip)
            image.paste(strip.convert(mode), box)
    turn = TURNS.get(_orientation(exif))
    return image if turn is None else image.transpose(turn)
