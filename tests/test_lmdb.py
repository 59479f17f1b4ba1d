"""LMDB databases: one that LMDB wrote, damaged ones, and LSUN in one that the test writes."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

import datasets
from readers import preprocessing
from readers.lmdb import Lmdb
from tests import examples
from tests.examples import data
from tests.refusal import refused

RECORDED = gzip.decompress((Path(__file__).parent / "data" / "lmdb.mdb.gz").read_bytes())
PAGE_SIZE = 4096
# Positions in the first page, which has the state after the second of two transactions.
MAGIC, PAGE_SIZE_FIELD, DATABASE = 16, 40, 88
ENTRIES, ROOT, TRANSACTION = DATABASE + 32, DATABASE + 40, DATABASE + 56


pytestmark = pytest.mark.usefixtures("own_cache")


def value(i: int) -> bytes:
    """Value i of the 60 in the recorded file; the long ones are on pages of their own."""
    return bytes([i % 256]) * (40 * i if i % 9 else 900 * i)


def write(tmp_path, content=RECORDED, **numbers) -> Path:
    """Write a database with other 64-bit numbers at positions 'at_N'."""
    changed = bytearray(content)
    for name, number in numbers.items():
        struct.pack_into("<Q", changed, int(name.removeprefix("at_")), number)
    path = tmp_path / "data.mdb"
    path.write_bytes(changed)
    return path


def write_tree(values: list[bytes], fan_out: int = 3) -> bytes:
    """Return a database of these values, with pages of 512 bytes and `fan_out` nodes on each."""
    size, pages = 512, {}

    def add(flags, nodes):
        """Add a page of the tree; return its number."""
        number, end, body = len(pages) + 2, size, bytearray(size)
        offsets = []
        for node in nodes:
            end -= len(node) + len(node) % 2
            body[end : end + len(node)] = node
            offsets.append(end)
        struct.pack_into("<QHHHH", body, 0, number, 0, flags, 16 + 2 * len(nodes), end)
        struct.pack_into(f"<{len(nodes)}H", body, 16, *offsets)
        pages[number] = bytes(body)
        return number

    def add_value(content):
        """Add the pages of a long value; return the number of the first."""
        number, count = len(pages) + 2, -(-(16 + len(content)) // size)
        data = struct.pack("<QHHI", number, 0, 4, count) + content
        data = data.ljust(count * size, b"\0")
        for i in range(count):
            pages[number + i] = data[i * size : (i + 1) * size]
        return number

    def node(number, flags, rest):
        return struct.pack("<HHHH", number & 65535, number >> 16, flags, 3) + b"key" + rest

    level = []
    leaves = [node(len(v), 1, struct.pack("<Q", add_value(v))) for v in values]
    for start in range(0, len(leaves), fan_out):
        level.append(add(2, leaves[start : start + fan_out]))
    while len(level) > 1:
        groups = [level[i : i + fan_out] for i in range(0, len(level), fan_out)]
        level = [add(1, [node(child, 0, b"") for child in group]) for group in groups]
    database = struct.pack("<IHHQQQQq", 0, 0, 9, 0, 0, 0, len(values), level[0])
    free = struct.pack("<IHHQQQQq", size, 8, 0, 0, 0, 0, 0, -1)
    metas = b""
    for number in (0, 1):
        meta = struct.pack("<QHHI", number, 0, 8, 0) + struct.pack("<IIQQ", 0xBEEFC0DE, 1, 0, 0)
        metas += (meta + free + database + struct.pack("<QQ", 0, number)).ljust(size, b"\0")
    return metas + b"".join(pages[number] for number in sorted(pages))


def all_values(path) -> list[bytes]:
    values = Lmdb(path)
    return [values[i] for i in range(len(values))]


def test_databases(tmp_path, monkeypatch):
    """One that LMDB wrote, and trees of any depth."""
    path = write(tmp_path)
    assert all_values(path) == [value(i) for i in range(60)]
    with monkeypatch.context() as patch:
        patch.setattr(Lmdb, "_index", None)  # The positions are in the cache.
        assert Lmdb(path)[-1] == value(59)
    # Only the transaction number decides which of the two states is newer.
    assert len(Lmdb(write(tmp_path, **{f"at_{TRANSACTION}": 0}))) == 30
    for count in (1, 3, 4, 40):
        values = [bytes([i]) * (i * 100 + 1) for i in range(count)]
        assert all_values(write(tmp_path, write_tree(values))) == values


def with_child(number) -> bytes:
    """A database of pages of 512 bytes whose root has another page as its first child."""
    content = bytearray(write_tree([b"a"] * 4))
    root = len(content) - 512
    struct.pack_into("<H", content, root + struct.unpack_from("<H", content, root + 16)[0], number)
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "numbers", "message"),
    [
        (RECORDED, {f"at_{MAGIC}": 0}, "it is no database of version 1"),
        (RECORDED, {f"at_{PAGE_SIZE_FIELD}": 4095}, "it is no database of version 1"),
        (RECORDED, {f"at_{ENTRIES}": 61}, "it has 60 of 61 values"),
        (RECORDED, {f"at_{ROOT}": 1}, "page 1 is not part of the tree"),
        (RECORDED, {f"at_{ROOT}": 2**40}, "it is cut off"),
        (RECORDED[: 2 * PAGE_SIZE], {}, "it is cut off"),
        (with_child(8), {}, "page 8 occurs twice"),  # It refers to itself.
    ],
)
def test_damaged_databases(tmp_path, content, numbers, message):
    path = write(tmp_path, content, **numbers)
    refused(f"data.mdb cannot be read as LMDB: {message}", Lmdb, path)


@pytest.mark.parametrize("size", [64, 128])
def test_lsun(tmp_path, size):
    """Training images are in *_train_lmdb and held-out ones in *_val_lmdb; they are WebP files."""
    pixels = examples.images(3, 70, 80, 3).repeat(2, 1).repeat(2, 2)
    images = [examples.Image.fromarray(each) for each in pixels]
    encoded = [examples.encoded(image, "WEBP", lossless=True) for image in images]
    for name, values in (("train", [*encoded[:2], b"text"]), ("val", encoded[2:])):
        (tmp_path / f"bedroom_{name}_lmdb").mkdir()
        (tmp_path / f"bedroom_{name}_lmdb" / "data.mdb").write_bytes(write_tree(values))
    resize = preprocessing.small_crop if size == 128 else preprocessing.crop_resize
    expected = [np.asarray(resize(image, size)) for image in images]
    config = data("LSUN", tmp_path, image_size=size, category="bedroom")
    train, test = (datasets.load(config, split) for split in ("train", "test"))
    np.testing.assert_array_equal(train.pixels[:2], expected[:2])
    np.testing.assert_array_equal(test.pixels[:], expected[2:])
    assert train.labels is test.labels is None
    refused("data.mdb: image 2 cannot be read", train.pixels.__getitem__, 2)
    config.category = "church_outdoor"
    refused("church_outdoor_train_lmdb/data.mdb", datasets.load, config, "train")
