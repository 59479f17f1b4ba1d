"""Files that are made to hang, crash, run code or fill the memory, or that state nonsense.

CASES has them by format. Each is an `InputError` of one line that names the file, in a process that
must neither crash nor take much time or memory.
"""

import functools
import gzip
import io
import random
import signal
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path

import msgpack
import numpy as np
import pytest
from fontTools.ttLib import TTFont
from PIL import Image

from pretrained import edm_import, torch_pickles
from tests import edm_files, examples, fuzz, fuzz_formats, test_emoji
from tests.edm_files import Call, Raw, dumps
from tests.examples import encoded

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


def jpeg_size(side: int, data: bytes, frame: bytes = b"\xff\xc0") -> bytes:
    """Return a JPEG file whose header states another size."""
    frame = data.index(frame) + 5
    return data[:frame] + struct.pack(">HH", side, side) + data[frame + 4 :]


def webp_canvas(side: int) -> bytes:
    """Return a small WebP file with alpha whose header states another canvas."""
    data = encoded(Image.new("RGBA", (8, 8), (1, 2, 3, 4)), "WEBP")
    assert data[12:16] == b"VP8X"
    return data[:24] + (side - 1).to_bytes(3, "little") * 2 + data[30:]


def image_files() -> dict:
    frame = b"\xff\xc0\0\x08AABBCC"
    two_frames = jpeg_size(8, encoded(RGB, "JPEG")).replace(b"\xff\xdb", frame + b"\xff\xdb")
    return {
        "nothing": (b"", "it is empty"),
        "another format": (encoded(RGB, "GIF"), "it is not a PNG, JPEG or WebP image"),
        "a wide PNG": (png(2**31 - 1, 1, data=b""), "2147483647x1 pixels"),
        "a high PNG": (png(1, 70_000), "1x70000 pixels"),
        "chunks": (png(ancillary=chunk(b"tEXt", b"") * 3000), "too many parts"),
        "a chunk without an end": (png()[:45], ""),
        "a changed pixel": (png().replace(b"IDATx", b"IDATy"), ""),
        "scans": (jpeg_scans(5000), "at most 50 are read"),
        "scans of many pixels": (
            jpeg_size(5000, jpeg_scans(40), b"\xff\xc2"),
            "at most 50 are read",
        ),
        "segments": (b"\xff\xd8" + b"\xff\xfe\0\2" * 3000 + encoded(RGB, "JPEG")[2:], "no scan"),
        "two frames": (two_frames, "frame"),
        "a WebP canvas": (webp_canvas(16_383), "16383x16383 pixels"),
        "an inconsistent WebP canvas": (webp_canvas(4000), ""),
        "a narrow image": (png(1, 60_000), "too narrow"),
        "WebP chunks": (encoded(RGB, "WEBP") + b"abcd\0\0\0\0" * 3000, "too many parts"),
    }


# --- arrays ---


def npy(text: str, content: bytes = b"", version: int = 1) -> bytes:
    """Return a .npy file with this header."""
    length = struct.pack("<H" if version == 1 else "<I", len(text) + 1)
    return b"\x93NUMPY" + bytes([version, 0]) + length + text.encode() + b"\n" + content


def header(shape: str, descr: str = "'|u1'") -> str:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"


SHAPES = ["(-1, 8, 8)", "(-1, -8, 8)", "(9000000000, 8, 8)", f"({2**70}, 8, 8)", "(9, 8, 8)"]
SHAPES += [f"(0, {2**62}, 8)", "(0, 8, 8)", "(8, 0, 8)", "(1,) * 99", "(1.0, 8, 8)"]
SHAPES += ["(" + "1, " * 70 + ")"]
TYPES = ["'|O'", "'|V0'", "'<c16'", "'<U1'", "'<M8[s]'", "('|u1', (9999999, 9999999))"]
TYPES += ["[('a', '|u1')]", "[('a', " * 30 + "'|u1'" + ")]" * 30]
TEXTS = ["(" * 5000, "-" * 900 + "1", "[" * 90 + "]" * 90, "+".join("1" * 400), "[]"]
TEXTS += ["__import__('os').abort()"]
ARRAYS = {
    **{shape[:40]: npy(header(shape), bytes(64)) for shape in SHAPES},
    **{kind[:40]: npy(header("(1, 8, 8)", kind), bytes(1024)) for kind in TYPES},
    **{text[:40]: npy(text) for text in TEXTS},
    "a header of 10 MB": npy(" " * 10**7, version=2),
    "a header without an end": b"\x93NUMPY\2\0\xff\xff\xff\xff{",
    "version 9": b"\x93NUMPY\x09\0" + bytes(99),
}


def archive(*members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, content in members:
            file.writestr(zipfile.ZipInfo(name), content, method)
    return buffer.getvalue()


PIXELS = npy(header("(2, 8, 8)"), bytes(128))
ARCHIVES = {
    **{f"{each} in .npz": archive(("images.npy", ARRAYS[each])) for each in [*ARRAYS][::3]},
    "a name twice": archive(("images.npy", PIXELS), ("images.npy", PIXELS)),
    "another method": archive(("images.npy", PIXELS), method=zipfile.ZIP_BZIP2),
    "an archive in an archive": archive(("images.npy", archive(("images.npy", PIXELS)))),
    "a bomb": archive(("images.npy", npy(header("(16777216, 8, 8)"), bytes(2**24)))),
    "more than its size": archive(("images.npy", PIXELS + b"0")),
    "none": archive(),
    "many images": archive(("images.npy", npy(header("(10000001, 1, 1)"), bytes(10_000_001)))),
    "control characters": archive(("\x1b[2J.npy", PIXELS), ("b.npy", PIXELS)),
}


LABELS = [[0, -1], [0, 2**31], np.array([0, 2**64 - 1], np.uint64), [0], [[0], [1]]]
LABELS += [[0.0, np.nan], [True, False], ["0", "1"]]


def idx_file(*shape: int, content: bytes | None = None, kind: int = 8) -> bytes:
    size = int(np.prod(shape, dtype=object))
    body = bytes(size) if content is None else content
    return struct.pack(f">HBB{len(shape)}I", 0, kind, len(shape), *shape) + body


IDX = {
    "no images": idx_file(0, 28, 28),
    "large sides": idx_file(1, 2000, 1),
    "255 axes": idx_file(*[1] * 255),
    "real numbers": idx_file(2, 28, 28, kind=0x0D),
    "huge": idx_file(2**32 - 1, 28, 28, content=b""),
    "longer": idx_file(2, 28, 28) + b"0",
    "nothing": b"",
}


# --- pickles ---

NAME = b"X\x01\x00\x00\x00a"
DOUBLED = b")" + b"q\x00h\x00\x86" * 100  # A tuple of itself twice, and so on: 2^100 parts.
LISTS = b"]" + b"q\x00]h\x00ah\x00a" * 100
DEEP = b")" + b"\x85" * 250_000
DICT = b"ccollections\nOrderedDict\n"
HUGE = b"\x8a\x09" + b"\xff" * 8 + b"\x00"  # 2^64 - 1
ONES = np.ones(4, np.float32)


def integers(count, step, parts=(b"}(", b"N", b"u")):
    """Instructions for a dictionary with these keys, or for a list of pairs."""
    start, value, end = parts
    keys = ((i * step).to_bytes(10, "little") for i in range(count))
    return start + b"".join(b"\x8a\x0a" + key + value for key in keys) + end


def tensor(shape):
    """A tensor whose shape is made by instructions; in .pth files the call is refused as well."""
    return edm_files._code(edm_files.tensor(ONES, shape=Raw(shape), strides=(1,)))


def nested(levels):
    """Storages in storages."""
    content = edm_files.storage(ONES)
    for _ in range(levels):
        content = edm_files.storage(ONES, Call("torch.storage", "_load_from_bytes", (content,)))
    return edm_files._code(Call("torch.storage", "_load_from_bytes", (content,)))


def repeated():
    """One storage, whose bytes are in the file once, loaded many times."""
    content = edm_files._code(edm_files.storage(np.ones(10**5))) + b"q\x01"
    load = b"ctorch.storage\n_load_from_bytes\n"
    return b"](" + load + content + b"\x85R" + (load + b"h\x01\x85R") * 10**5 + b"e"


PICKLES = {  # Instructions that push a value.
    "tuple as key": b"}" + DOUBLED + b"Ns",
    "tuple in a set": b"\x8f(" + DOUBLED + b"\x90",
    "tuple as argument": DICT + DOUBLED + b"\x85R",
    "tuple as module": DOUBLED + NAME + b"\x93",
    "tuple as class": b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n}(X\x0a\x00\x00\x00"
    b"class_name" + DOUBLED + b"X\x05\x00\x00\x00stateNu\x85R",
    "tuple as identifier": DOUBLED + b"Q",
    "tuple": DOUBLED,
    "lists": LISTS,
    "deep tuple": DEEP[:50_000],
    "deep states": b"ctorch\nFloatStorage\n)Rq\x00" + b"(K\x00" * 50_000 + b"t" * 50_000 + b"b",
    "cycle": b"]q\x00h\x00a",
    "colliding integers": integers(20_000, 2**61 - 1),
    "long texts as keys": b"}(X\x40\x42\x0f\x00" + b"a" * 10**6 + b"Nu",
    "text many times": b"](X\x40\x42\x0f\x00" + b"a" * 10**6 + b"q\x00" + b"h\x00" * 10**5 + b"e",
    "DUP": b")2",
    "LONG4": b"\x8b\xff\xff\xff\x7f",
    "LONG": b"L" + b"9" * 10**6 + b"L\n",
    "BINUNICODE8": b"\x8d" + struct.pack("<Q", 2**62),
    "memo": b"}r\xff\xff\xff\x7f",
    "long name": b"c" + b"a" * 10**6 + b"\nb\n",
    "nested storages": nested(1),
    "storage many times": repeated(),
    "many dimensions": tensor(b"(" + HUGE * 100_000 + b"t"),
    "huge dimensions": tensor(b"(" + HUGE * 8 + b"t"),
    "text without an end": b"X\xff\xff\xff\x7f",
    "frame": b"\x95" + (2**62).to_bytes(8, "little") + b"}",
    "a state of a name": DICT + b"}b",
    "a call of a text": NAME + b")R",
}
TOUCH = b"(X\x0c\x00\x00\x00touch markertR"
NAMES = {  # Names that are refused, and instructions that push a value.
    "os.system": b"cos\nsystem\n" + TOUCH,
    "posix.system": b"X\x05\x00\x00\x00posixX\x06\x00\x00\x00system\x93" + TOUCH,
    "builtins.eval": b"cbuiltins\neval\n" + TOUCH,
    "builtins.getattr": b"cbuiltins\ngetattr\n" + TOUCH,
    "torch._utils._rebuild_sparse_tensor": b"ctorch._utils\n_rebuild_sparse_tensor\n" + TOUCH,
    "torch_utils.persistence._reconstruct_persistent_obj.__globals__": b"ctorch_utils.persistence\n"
    b"_reconstruct_persistent_obj.__globals__\n" + TOUCH,
    "a\\x1b[2J.b": b"ca\x1b[2J\nb\n" + TOUCH,
}


def zipped(main, level=zipfile.ZIP_STORED, **members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", level) as archive:
        for name, content in {"data.pkl": main, "version": b"3"}.items() | members.items():
            archive.writestr(f"a/{name}", content)
    return buffer.getvalue()


def pickled(code):
    return b"\x80\x02" + code + b"."


def headed(main):
    parts = [dumps(part) for part in (torch_pickles.MAGIC, 1001, {"little_endian": True})]
    return b"".join(parts) + main + dumps([])


PLACES = {
    "edm": lambda code: b"\x80\x04}X\x03\x00\x00\x00ema" + code + b"s.",
    "pth": lambda code: zipped(pickled(code)),
    "legacy": lambda code: headed(pickled(code)),
}


def stored(content):
    """A file of EDM whose network has a parameter with this storage."""
    return dumps(edm_files.network({"a": Call("torch.storage", "_load_from_bytes", (content,))}))


def view(**options):
    return dumps(edm_files.network({"weight": edm_files.tensor(ONES, **options)}))


REPEATED = (edm_files.tensor(ONES, shape=(2,), strides=(0,)), 0, (2,), (1,))
VIEW_OF_A_VIEW = Call("torch._utils", "_rebuild_tensor_v2", REPEATED)
TWICE = {"a": Raw(edm_files._code(np.ones(10**5)) + b"\x94")}
TWICE |= {f"b{i}": Raw(b"h\x01") for i in range(9)}
TWICE = PLACES["edm"](edm_files._code(edm_files.module("EDMPrecond", TWICE)))
PAIRS = Raw(integers(100_000, 2**61 - 1, (b"](", b"N\x86", b"e")))
PAIRED = edm_files.module("EDMPrecond", {}, _init_kwargs=PAIRS)
NETWORK = edm_files.network({})
EDM = {
    "empty": (b"", "empty"),
    "no network": (dumps({"ema": 3}), "no entry 'ema'"),
    "no modules": (dumps({"ema": edm_files.persistent("EDMPrecond", {})}), "_init_args"),
    "in a storage": (stored(edm_files.storage(ONES, Raw(NAMES["os.system"]))), "os.system"),
    "shape": (view(shape=(10**6, 10**6)), "a tensor of shape (1000000, 1000000) is larger"),
    "repeated": (view(shape=(10**6, 10**6), strides=(0, 0)), "is larger than its data"),
    "outside": (view(shape=(2,), strides=(4,)), "is larger than its data"),
    "negative": (view(shape=(2,), strides=(-1,)), "damaged shape"),
    "view of a view": (dumps(edm_files.network({"a": VIEW_OF_A_VIEW})), "damaged shape"),
    "count": (stored(edm_files.storage(ONES, count=2**60)), "damaged or not complete"),
    "short": (stored(edm_files.storage(ONES)[:-1]), "damaged or not complete"),
    "two of one storage": (TWICE, "its values are larger than the file"),
    "instructions": (b"\x80\x04](" + b"}" * 2_500_000 + b"e.", "instructions"),
    "colliding arguments": (dumps(NETWORK | {"ema": PAIRED}), ""),
    "colliding names": (dumps(NETWORK | {"dataset_kwargs": PAIRS}), ""),
}
SMALL = zipped(pickled(b"}"))
NO_STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n" + NAME * 2 + b"K\x01tQ"
PTH = {
    "compressed": zipped(pickled(b"}" + b"N" * 10**6), zipfile.ZIP_DEFLATED),
    "bomb": zipped(bytes(10**7), zipfile.ZIP_BZIP2),
    "no table of contents": SMALL[:-22],
    "bytes behind": SMALL + bytes(70_000),
    "another name": SMALL.replace(b"a/data.pkl", b"a/data.pkk", 1),
    "size": SMALL.replace(struct.pack("<I", 4), struct.pack("<I", 2**31)),
    "two": zipped(pickled(b"}"), **{"b/data.pkl": pickled(b"}")}),
    "big endian": zipped(pickled(b"}"), byteorder=b"big"),
    "no storage": zipped(pickled(NO_STORAGE)),
}


def flax_array(content, kind=1):
    """A file of Flax with an extension of msgpack, which is an array or a number."""
    return msgpack.packb({"a": msgpack.ExtType(kind, content)})


def declared(shape, dtype):
    return flax_array(msgpack.packb((shape, dtype, bytes(8)), use_bin_type=True))


FLAX = {
    "deep maps": b"\x81\xa1a" * 10**5,
    "declared arrays": b"\x81\xa1a" + b"\xdd\x00\x0f\xff\xff" * 500 + bytes(2**20),
    "declared maps": b"\xdf\xff\xff\xff\xff" * 500 + bytes(2**20),
    "empty arrays": b"\x81\xa1a"
    + functools.reduce(lambda inner, _: b"\x98" + inner * 8, range(7), b"\x90"),
    "many values": b"\xdf\x00\x01\xff\xff" + b"".join(b"\xa5%05dN" % i for i in range(2**17)),
    "array in an array": flax_array(b"\x93" + b"\xdd\x00\x00\xff\xff" * 500 + bytes(2**16)),
    "structured": declared((1,), "f4," * 10**5),
    "object": declared((1,), "object"),
    "no type": declared((1,), "no type"),
    "other extension": flax_array(b"a", 9),
}


# --- the table ---


def font_files():
    """Compressed fonts, collections, and bitmaps that are too large to be padded to a square."""
    with tempfile.TemporaryDirectory() as folder:
        path, compressed = Path(folder) / "a.ttf", io.BytesIO()
        whole = test_emoji.write_font(path, test_emoji.noise()).read_bytes()
        wide = test_emoji.noise(cat=np.zeros((1, 20_000, 3), np.uint8))
        large = test_emoji.write_font(path, wide).read_bytes()
    opened = TTFont(io.BytesIO(whole))
    opened.flavor = "woff"
    opened.save(compressed)
    return {
        "compressed": (compressed.getvalue(), "it is not a TrueType or OpenType font"),
        "a collection": (b"ttcf" + whole, "it is not a TrueType"),
        "a wide bitmap": (large, "a bitmap has a side of 20000 pixels"),
    }


def labelled(labels):
    file = io.BytesIO()
    np.savez(file, images=examples.images(2, 8, 8), labels=labels)
    return file.getvalue(), "labels"


def pickles(kind, others):
    place, every = PLACES[kind], 1 if kind == "edm" else 8  # The formats have the same reader.
    found = {name: place(PICKLES[name]) for name in [*PICKLES][::every]}
    return others | found | {name: (place(NAMES[name]), f"it names {name}") for name in NAMES}


CASES = {  # By format: a function that returns files, or files and words of the message.
    "png": image_files,
    "font": font_files,
    "npz": lambda: ARRAYS | ARCHIVES | {str(labels): labelled(labels) for labels in LABELS},
    "idx": lambda: IDX,
    "gz": lambda: {name: gzip.compress(content) for name, content in IDX.items()},
    "edm": lambda: pickles("edm", EDM),
    "pth": lambda: pickles("pth", PTH),
    "legacy": lambda: pickles("legacy", {}),
    "flax": lambda: FLAX,
}


@pytest.fixture(scope="module")
def ask():
    """A function that reads a file in a process, which is started again after a failure."""
    return fuzz.Server(fuzz_formats.read).ask


@pytest.mark.parametrize("kind", fuzz_formats.FORMATS)
def test_changed_files(tmp_path, ask, kind):
    """Copies of valid files with random changes are read, or refused in one line."""
    content, rng = fuzz_formats.valid(kind, tmp_path), random.Random(0)
    path = tmp_path / f"a.{kind}"
    path.write_bytes(content)
    assert ask(path).kind == "result"
    for _ in range(30 if kind != "font" else 3):  # Each font takes a process.
        path.write_bytes(fuzz.changed(content, rng))
        outcome = ask(path)
        assert outcome.kind in fuzz.GOOD, outcome


@pytest.mark.parametrize("kind", CASES)
def test_files_that_are_refused(tmp_path, ask, kind):
    path = tmp_path / f"a.{kind}"
    for name, case in CASES[kind]().items():
        content, words = case if isinstance(case, tuple) else (case, "")
        path.write_bytes(content)
        outcome = ask(path)
        assert outcome.kind == "InputError", (name, outcome)  # Not "hang", "crash" or "memory".
        assert str(path) in outcome.message, name
        assert words in outcome.message, name
        assert outcome.message.isprintable(), name
        assert not Path("marker").exists(), name
        assert outcome.memory < 2**28 + 20 * len(content) or kind == "png", name


@pytest.mark.parametrize(
    ("code", "status"), [("bytes(2**31)", 1), ("all(iter(lambda: 1, 0))", -signal.SIGKILL)]
)
def test_limits_of_the_process_that_reads_fonts(code, status):
    code = f"from readers import font; font.SECONDS = 1; font.glyphs = lambda _: {code}"
    command = [sys.executable, "-c", f"{code}; font.TTFont = lambda *_, **__: 0; font.main()"]
    process = subprocess.run(command, input=b"", capture_output=True, check=False)
    assert (process.returncode, process.stdout) == (status, b"")


def test_large_networks_are_far_below_the_limits(tmp_path):
    """A file with 1,500 tensors, more than any that is published."""
    tensors = {f"block{i}.weight": ONES for i in range(1500)}
    path = tmp_path / "network.pkl"
    path.write_bytes(dumps(edm_files.network(tensors)))
    assert edm_import.read_network(path).tensors.keys() == tensors.keys()
