"""Files of data sets that ask for much memory or time, or state nonsense: each is one line."""

import gzip
import io
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from fontTools.ttLib import TTFont
from PIL import Image, ImageOps

import datasets
from readers import cache, files, folders, idx, image_files, preprocessing, tfrecords
from readers.lmdb import Lmdb
from tests import examples, fuzz_formats_data, test_emoji, test_lmdb, tiny
from tests.examples import encoded
from tests.refusal import refused


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(cache, "FOLDER", tmp_path_factory.mktemp("cache"))


# --- images ---

RGB = Image.fromarray(examples.images(1, 20, 30, 3)[0])


def chunk(kind: bytes, body: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + body))
    return struct.pack(">I", len(body)) + kind + body + checksum


def png(width=8, height=8, depth=8, color=2, ancillary=b"", data=None) -> bytes:
    """Return a PNG file of zeros with further chunks before those of the pixels."""
    if data is None:
        channels = {0: 1, 2: 3, 4: 2, 6: 4}[color]
        size = height * (1 + (width * channels * depth + 7) // 8)
        data = chunk(b"IDAT", zlib.compress(bytes(size)))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + ancillary + data + chunk(b"IEND", b"")


def jpeg_scans(count: int, side: int = 64) -> bytes:
    """Return a progressive JPEG file with `count` further scans that are empty."""
    data = encoded(Image.new("RGB", (side, side)), "JPEG", progressive=True)
    start = data.rindex(b"\xff\xda")
    (length,) = struct.unpack_from(">H", data, start + 2)
    return data[:-2] + data[start : start + 2 + length] * count + b"\xff\xd9"


def jpeg_size(side: int) -> bytes:
    """Return a JPEG file whose header states another size."""
    data = encoded(RGB, "JPEG")
    frame = data.index(b"\xff\xc0") + 5
    return data[:frame] + struct.pack(">HH", side, side) + data[frame + 4 :]


def webp_canvas(side: int) -> bytes:
    """Return a small WebP file with alpha whose header states another canvas."""
    data = encoded(Image.new("RGBA", (8, 8), (1, 2, 3, 4)), "WEBP")
    assert data[12:16] == b"VP8X"
    return data[:24] + (side - 1).to_bytes(3, "little") * 2 + data[30:]


IMAGES = {
    "nothing": (b"", "it is empty"),
    "another format": (encoded(RGB, "GIF"), "it is no PNG, JPEG or WebP image"),
    "a wide PNG": (png(2**31 - 1, 1, data=b""), "2147483647x1 pixels"),
    "a high PNG": (png(1, 70_000), "1x70000 pixels"),
    "a large PNG": (png(9000, 9000, data=b""), "9000x9000 pixels"),
    "no pixels": (png(0, 5, data=b""), "0x5 pixels"),
    "two headers": (png(ancillary=png()[8:33]), "twice"),
    "chunks": (png(ancillary=chunk(b"tEXt", b"") * 3000), "too many parts"),
    "empty chunks of pixels": (png(data=chunk(b"IDAT", b"") * 3000), "too many parts"),
    "a chunk without an end": (png()[:60], "cut off"),
    "a changed pixel": (png().replace(b"IDATx", b"IDATy"), "wrong checksum"),
    "a large JPEG": (jpeg_size(65_535), "65535x65535 pixels"),
    "scans": (jpeg_scans(5000), "at most 50 are read"),
    "scans of many pixels": (jpeg_scans(40, 5000), "at most 50 are read"),
    "segments": (b"\xff\xd8" + b"\xff\xfe\0\2" * 3000 + encoded(RGB, "JPEG")[2:], "no scan"),
    "two frames": (jpeg_size(8).replace(b"\xff\xdb", b"\xff\xc0\0\x08AABBCC\xff\xdb"), "frame"),
    "a WebP canvas": (webp_canvas(16_383), "16383x16383 pixels"),
    "a larger WebP canvas": (webp_canvas(2**24), "16777216x16777216 pixels"),
    "an inconsistent WebP canvas": (webp_canvas(4000), ""),
    "WebP chunks": (encoded(RGB, "WEBP") + b"abcd\0\0\0\0" * 3000, "too many parts"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "message"), IMAGES.values(), ids=IMAGES)
def test_images_that_are_refused(tmp_path, content, message):
    (tmp_path / "a.png").write_bytes(content)
    text = refused("", fuzz_formats_data.read_image, tmp_path / "a.png")
    assert text.startswith(f"{tmp_path}/a.png cannot be read: ")
    assert message in text


EXIF = Image.Exif()
EXIF[0x0112] = 6
MODES = {
    **{f"PNG {mode}": encoded(RGB.convert(mode)) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")},
    **{f"JPEG {mode}": encoded(RGB.convert(mode), "JPEG") for mode in ("L", "RGB", "CMYK")},
    "JPEG progressive": encoded(RGB, "JPEG", progressive=True, exif=EXIF, comment=b"\xff\xda"),
    "JPEG restart": encoded(RGB, "JPEG", restart_marker_blocks=1),
    "JPEG profile": encoded(RGB, "JPEG", icc_profile=bytes(100_000)),
    "PNG EXIF": encoded(RGB, exif=EXIF, icc_profile=bytes(999)),
    "PNG animated": encoded(RGB, save_all=True, append_images=[RGB.rotate(180)]),
    "WEBP lossy": encoded(RGB, "WEBP", exif=EXIF),
    "WEBP alpha": encoded(RGB.convert("RGBA"), "WEBP", lossless=True),
    "WEBP animated": encoded(RGB, "WEBP", save_all=True, append_images=[RGB.rotate(180)]),
}


@pytest.mark.parametrize("content", MODES.values(), ids=MODES)
def test_removed_parts_do_not_affect_pixels(content, monkeypatch):
    """The whole file in Pillow has the same pixels; strips are joined without a seam."""
    monkeypatch.setattr(image_files, "STRIP", 100)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    np.testing.assert_array_equal(image_files.decode(content, 3), expected)


def test_rounding_of_16_bits():
    values = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    found = image_files.decode(encoded(Image.fromarray(values)), 1)
    np.testing.assert_array_equal(found, np.round(values / 257))


def test_all_threads_share_a_budget_of_pixels(monkeypatch):
    """At most two of eight images are in memory at a time."""
    monkeypatch.setattr(image_files, "MAX_PIXELS", 1500)
    content, running, most, lock = encoded(RGB), 0, 0, threading.Lock()

    def transform(image, size):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        threading.Event().wait(0.02)
        with lock:
            running -= 1
        return image

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: image_files.load(content, 3, transform, 8), range(8)))
    assert most == 2


LARGE = {
    "16 bits": lambda: png(8000, 8000, 16, 0),
    "16 bits, RGBA": lambda: png(8000, 8000, 16, 6),
    "scans": lambda: jpeg_scans(39, 4000),
    "WebP": lambda: encoded(Image.new("RGBA", (5700, 5700)), "WEBP", lossless=True),
}


@pytest.mark.long
def test_memory_and_time_of_large_images(tmp_path):
    """Four threads decode three of each; their process needs 1.2 GiB and a minute."""
    for name, make in LARGE.items():
        (tmp_path / name).write_bytes(make())
    code = (
        "import resource, sys; from concurrent.futures import ThreadPoolExecutor as Pool\n"
        "from pathlib import Path; from tests.fuzz_formats_data import read_image\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "list(Pool(4).map(read_image, 3 * sorted(Path(sys.argv[1]).iterdir())))\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print((used.ru_maxrss - before) // 1024, used.ru_utime)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    output = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    memory, seconds = map(float, output.split())
    assert memory < 1.2 * 1024
    assert seconds < 60


def test_narrow_images_are_not_enlarged_without_a_limit():
    for size in (32, 128):
        with pytest.raises(ValueError, match="too narrow"):
            image_files.load(png(1, 60_000), 3, preprocessing.small_crop, size)


# --- fonts ---


def test_fonts_that_are_refused(tmp_path):
    """Compressed fonts, collections, and bitmaps that are too large to be padded to a square."""
    path = tmp_path / "a.ttf"
    whole = test_emoji.write_font(path, test_emoji.noise()).read_bytes()
    compressed, opened = io.BytesIO(), TTFont(io.BytesIO(whole))
    opened.flavor = "woff"
    opened.save(compressed)
    wide = test_emoji.noise(cat=np.zeros((1, 20_000, 3), np.uint8))
    for message, content in {
        "it is no TrueType or OpenType font": compressed.getvalue(),
        "it is no TrueType": b"ttcf" + whole,
        "a bitmap has a side of 20000 pixels": test_emoji.write_font(path, wide).read_bytes(),
    }.items():
        path.write_bytes(content)
        text = refused("", fuzz_formats_data.read_font, path)
        assert text.startswith(f"{path} cannot be read as a font with colour bitmaps")
        assert message in text


@pytest.mark.parametrize(
    ("code", "result"),
    [
        ("bytes(2**31)", (0, b'{"problem": "MemoryError"}')),
        ("all(iter(lambda: 1, 0))", (-signal.SIGKILL, b"")),
    ],
)
def test_limits_of_the_process_that_reads_fonts(code, result):
    code = f"from readers import font; font.SECONDS = 1; font.glyphs = lambda _: {code}"
    command = [sys.executable, "-c", f"{code}; font.TTFont = lambda *_, **__: 0; font.main()"]
    process = subprocess.run(command, input=b"", capture_output=True, check=False)
    assert (process.returncode, process.stdout) == result


# --- TFRecord ---

EXAMPLE = examples.example(image=b"pixels", label=[3])


def message(*fields: tuple[int, int, bytes]) -> bytes:
    """Return a message of fields (number, wire type, encoded value)."""
    return b"".join(examples._varint(number << 3 | kind) + body for number, kind, body in fields)


def sized(body: bytes) -> bytes:
    return examples._varint(len(body)) + body


def example(*entries: bytes) -> bytes:
    """Return an example of these entries of the map of features."""
    return message((1, 2, sized(message(*((1, 2, sized(entry)) for entry in entries)))))


def feature(*fields: tuple[int, int, bytes]) -> bytes:
    """Return an example with the feature "a", a message of these fields."""
    return example(message((1, 2, sized(b"a")), (2, 2, sized(message(*fields)))))


HUGE = examples._varint(2**40)
EXAMPLES = {
    "an integer in place of bytes": feature((1, 2, sized(message((1, 0, HUGE))))),
    "an integer in place of a list": feature((1, 0, HUGE)),
    "an integer in place of a key": example(message((1, 0, HUGE), (2, 2, b"\0"))),
    "an integer in place of features": message((1, 0, HUGE)),
    "an integer of fixed size in place of bytes": feature((1, 2, sized(message((1, 1, bytes(8)))))),
    "a length beyond the end": message((1, 2, HUGE)),
    "a group": message((1, 3, b"")),
    "an integer of 65 bits": feature((3, 2, sized(message((1, 0, b"\xff" * 9 + b"\x7f"))))),
    "an integer without an end": b"\x80" * 10**6,
    "no key": example(message((2, 2, b"\0"))),
    "many features": example(*2000 * [message((1, 2, b"\0"), (2, 2, b"\0"))]),
    "many integers": feature((3, 2, sized(message((1, 2, sized(bytes(10**6))))))),
    "a key that is no text": example(message((1, 2, b"\1\xff"), (2, 2, b"\0"))),
}  # fmt: skip


@pytest.mark.parametrize("record", EXAMPLES.values(), ids=EXAMPLES)
def test_records_that_are_no_examples(record):
    with pytest.raises(ValueError, match="."):
        tfrecords.parse_example(record)


def test_records_have_a_limited_length(tmp_path, monkeypatch):
    path = examples.write_tfrecords(tmp_path / "a", [EXAMPLE])
    monkeypatch.setattr(tfrecords, "MAX_RECORD", 10)
    refused(f"has {len(EXAMPLE)} bytes, more than 10", tfrecords.TFRecords, path)
    path.write_bytes(gzip.compress(bytes(10**6)))
    refused("wrong checksum of its length", tfrecords.TFRecords, path)


# --- arrays ---


def npy(text: str, content: bytes = b"", version: int = 1) -> bytes:
    """Return a .npy file with this header."""
    length = struct.pack("<H" if version == 1 else "<I", len(text) + 1)
    return b"\x93NUMPY" + bytes([version, 0]) + length + text.encode() + b"\n" + content


def header(shape: str, descr: str = "'|u1'", order: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"


ARRAYS = {
    "negative": npy(header("(-1, 8, 8)"), bytes(64)),
    "two negative": npy(header("(-1, -8, 8)"), bytes(64)),
    "huge": npy(header("(9000000000, 8, 8)"), bytes(64)),
    "beyond 64 bits": npy(header(f"({2**70}, 8, 8)"), bytes(64)),
    "nothing of huge": npy(header(f"(0, {2**62}, 8)")),
    "no images": npy(header("(0, 8, 8)")),
    "no pixels": npy(header("(8, 0, 8)")),
    "axes": npy(header("(1,) * 99")),
    "real axes": npy(header("(1.0, 8, 8)"), bytes(64)),
    "70 axes": npy(header("(" + "1, " * 70 + ")"), b"0"),
    "objects": npy(header("(1, 8, 8)", "'|O'"), bytes(512)),
    "a structure": npy(header("(1, 8, 8)", "[('a', '|u1')]"), bytes(64)),
    "nested": npy(header("(1, 8, 8)", "[('a', " * 30 + "'|u1'" + ")]" * 30), bytes(64)),
    "arrays of arrays": npy(header("(1, 8, 8)", "('|u1', (9999999, 9999999))"), bytes(64)),
    "nothing": npy(header("(1, 8, 8)", "'|V0'")),
    "brackets": npy("(" * 5000),
    "signs": npy("-" * 900 + "1"),
    "lists": npy("[" * 90 + "]" * 90),
    "sums": npy("+".join("1" * 400)),
    "no dictionary": npy("[]"),
    "code": npy("__import__('os').abort()"),
    "a header of 100 MB": npy(" " * 10**8, version=2),
    "a header without an end": b"\x93NUMPY\2\0\xff\xff\xff\xff{",
    "version 9": b"\x93NUMPY\x09\0" + bytes(99),
    "complex": npy(header("(1, 8, 8)", "'<c16'"), bytes(1024)),
    "text": npy(header("(1, 8, 8)", "'<U1'"), bytes(256)),
    "dates": npy(header("(1, 8, 8)", "'<M8[s]'"), bytes(512)),
    "cut": npy(header("(9, 8, 8)"), bytes(64)),
}


def archive(*members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, content in members:
            file.writestr(zipfile.ZipInfo(name), content, method)
    return buffer.getvalue()


PIXELS = npy(header("(2, 8, 8)"), bytes(128))
ARCHIVES = {
    **{f"{name} in .npz": archive(("images.npy", content)) for name, content in ARRAYS.items()},
    "a name twice": archive(("images.npy", PIXELS), ("images.npy", PIXELS)),
    "another method": archive(("images.npy", PIXELS), method=zipfile.ZIP_BZIP2),
    "an archive in an archive": archive(("images.npy", archive(("images.npy", PIXELS)))),
    "a bomb": archive(("images.npy", npy(header("(16777216, 8, 8)"), bytes(2**24)))),
    "more than its size": archive(("images.npy", PIXELS + b"0")),
    "none": archive(),
    "many images": archive(("images.npy", npy(header("(10000001, 1, 1)"), bytes(10_000_001)))),
    "control characters": archive(("\x1b[2J.npy", PIXELS), ("b.npy", PIXELS)),
}


@pytest.mark.parametrize("content", (ARRAYS | ARCHIVES).values(), ids=ARRAYS | ARCHIVES)
def test_arrays_that_are_refused(tmp_path, content):
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    text = refused("", fuzz_formats_data.read_array, path)
    assert str(path) in text
    assert text.isprintable()


def test_arrays_in_the_order_of_fortran(tmp_path):
    pixels = examples.images(4, 8, 8)
    np.save(tmp_path / "a.npy", np.asfortranarray(pixels))
    np.savez(tmp_path / "b.npz", np.asfortranarray(pixels))
    for name in ("a.npy", "b.npz"):
        config = tiny.config(**{"data.path": str(tmp_path / name), "data.image_size": 8}).data
        config.update(dataset="array", held_out=0.5)
        found = np.concatenate([datasets.load(config, s).pixels[:] for s in ("train", "test")])
        assert sorted(found[..., 0].tolist()) == sorted(pixels.tolist())


LABELS = {
    "negative": np.array([0, -1]),
    "of more than 32 bits": np.array([0, 2**31]),
    "unsigned": np.array([0, 2**64 - 1], np.uint64),
    "too few": np.array([0]),
    "of two axes": np.array([[0], [1]]),
    "real": np.array([0.0, np.nan]),
    "truth values": np.array([True, False]),
    "text": np.array(["0", "1"]),
}


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_labels_that_are_refused(tmp_path, labels):
    np.savez(tmp_path / "a.npz", images=examples.images(2, 8, 8), labels=labels)
    text = refused("", fuzz_formats_data.read_array, tmp_path / "a.npz")
    assert f"{tmp_path}/a.npz: labels" in text


# --- IDX ---


def idx_file(*shape: int, content: bytes | None = None, kind: int = 8) -> bytes:
    size = int(np.prod(shape, dtype=object))
    body = bytes(size) if content is None else content
    return struct.pack(f">HBB{len(shape)}I", 0, kind, len(shape), *shape) + body


IDX = {
    "no images": idx_file(0, 28, 28),
    "sides of 0": idx_file(2, 0, 0),
    "large sides": idx_file(1, 2000, 1),
    "two axes": idx_file(2, 28),
    "255 axes": idx_file(*[1] * 255),
    "no axis": idx_file(content=b"0"),
    "real numbers": idx_file(2, 28, 28, kind=0x0D),
    "huge": idx_file(2**32 - 1, 28, 28, content=b""),
    "cut": idx_file(2, 28, 28)[:-1],
    "longer": idx_file(2, 28, 28) + b"0",
    "nothing": b"",
}


@pytest.mark.parametrize("content", IDX.values(), ids=IDX)
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_idx_files_that_are_refused(tmp_path, content, ending):
    path = tmp_path / f"x{ending}"
    path.write_bytes(gzip.compress(content) if ending else content)
    assert str(path) in refused("", idx.read_array, tmp_path, "x", 3)


@pytest.mark.parametrize("labels", [[0, 255], [0, 10], [0, 1, 2], [0]])
def test_idx_labels_that_are_refused(tmp_path, labels):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_file(2, 28, 28))
    path = tmp_path / "train-labels-idx1-ubyte"
    path.write_bytes(idx_file(len(labels), content=bytes(labels)))
    config = tiny.config(**{"data.path": str(tmp_path), "data.image_size": 28}).data
    refused(f"{path}: labels", idx.read, "train", config, tmp_path)


# --- LMDB, JSON, folders ---


def test_values_of_lmdb_have_a_limited_length(tmp_path, monkeypatch):
    path = test_lmdb.write(tmp_path)
    monkeypatch.setattr("readers.lmdb.MAX_VALUE", 1000)
    refused("a value has more than 1,000 bytes", Lmdb, path)


def test_nodes_of_lmdb_do_not_overlap(tmp_path):
    """A page of 512 bytes with 248 nodes, all of them at the same place."""
    content = bytearray(test_lmdb.write_tree([b"a"]))
    root = len(content) // 512 - 1
    struct.pack_into("<H", content, root * 512 + 12, 512)
    refused(f"page {root} is not part of the tree", Lmdb, test_lmdb.write(tmp_path, content))


@pytest.mark.parametrize("content", ["[" * 10**6, "[]", "1" * 5000, '{"a": ' * 5000, "\ud800"])
def test_json_that_is_refused(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content.encode(errors="surrogatepass"))
    assert str(path) in refused("", files.read_json, path, {"a": int})
    path.write_bytes(json.dumps({"a": 1}).encode() + b" " * files.MAX_TEXT)
    refused("limit", files.read_json, path, {"a": int})


@pytest.mark.parametrize("name", ["a" * 300, "a/" * 3000, "nothing"])
@pytest.mark.parametrize("dataset", ["array", "folder", "ffhq", "emoji", "CIFAR10", "SVHN", "lsun"])
def test_paths_that_are_refused(tmp_path, dataset, name):
    fields = {"data.path": f"{tmp_path}/{name}", "data.image_size": 32, "data.num_channels": 3}
    config = tiny.config(**fields).data.unlock()
    config.update(dataset=dataset, category="bedroom")
    text = refused("", datasets.load, config, "train")
    assert text.isprintable()
    assert str(tmp_path) in text


def test_folders_that_vanish(tmp_path, monkeypatch):
    """As those of processes in /proc, between listing and opening."""
    (tmp_path / "gone").mkdir()
    (tmp_path / "a.png").write_bytes(encoded(RGB))
    scandir = os.scandir

    def remove(path):
        entries = list(scandir(path))
        if (tmp_path / "gone").exists():
            (tmp_path / "gone").rmdir()
        return entries

    monkeypatch.setattr(os, "scandir", remove)
    assert [name for name, _ in folders.walk(tmp_path)] == ["a.png"]
    refused("does not exist any more", folders.walk, tmp_path / "gone")
