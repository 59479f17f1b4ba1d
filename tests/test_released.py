"""Data sets as their authors release them: small files in these formats, intact or damaged."""

import gzip
import hashlib
import io
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

import datasets
from errors import InputError
from readers import authors, files, pickles, preprocessing
from readers.lmdb import Lmdb
from tests import edm_files, examples
from tests.edm_files import Raw
from tests.examples import data
from tests.refusal import refused

pytestmark = pytest.mark.usefixtures("own_cache")


def load(dataset, where, split="test", **fields):
    """Return color images of 32x32 pixels."""
    return datasets.load(examples.data(dataset, where, **{"image_size": 32, **fields}), split)


def allow(monkeypatch, *paths):
    """Replace published checksums by those of files of the same names."""
    for path in paths:
        checksum = hashlib.md5(path.read_bytes()).hexdigest()
        monkeypatch.setitem(authors.MD5, path.name, checksum)


# --- pickles of Python 2 ---


def pickled(value) -> bytes:
    """Return a value as Python 2 pickles it: texts are strings of bytes."""
    return b"\x80\x02" + edm_files._code(of_python_2(value)) + b"."


def of_python_2(value):
    """Return what `edm_files` writes as Python 2 does."""
    match value:
        case dict():
            return {of_python_2(key): of_python_2(each) for key, each in value.items()}
        case str():
            return of_python_2(value.encode("latin-1"))
        case bytes():
            return Raw(b"T" + struct.pack("<i", len(value)) + value)
        case np.ndarray():  # Bytes.
            code, order, empty, data = map(of_python_2, ("u1", "|", "b", value.tobytes()))
            kind = Raw(b"cnumpy\ndtype\n" + edm_files._code((code, 0, 1)) + b"R")
            kind = Raw(kind.code + edm_files._code((3, order, *[None] * 3, -1, -1, 0)) + b"b")
            arguments = edm_files._code((Raw(b"cnumpy\nndarray\n"), (0,), empty))
            state = edm_files._code((1, value.shape, kind, False, data))
            made = b"cnumpy.core.multiarray\n_reconstruct\n" + arguments + b"R"
            return Raw(made + state + b"b")
    return value


def test_pickles_are_those_of_python():
    """Python's own reader and ours return the same."""
    data = np.arange(12, dtype=np.uint8).reshape(3, 4)
    value = {"data": data, "labels": [3, 1, 2], "a\xe9": None}
    expected = pickle.loads(pickled(value), encoding="latin-1")
    found = pickles.Reader().load(io.BytesIO(pickled(value)), authors.ARRAY_NAMES)
    assert found.pop("data").state[4].encode("latin-1") == expected.pop("data").tobytes()
    assert found == expected


# --- CIFAR-10 ---


@pytest.fixture
def batches(tmp_path, monkeypatch):
    """The images of six small batches in the folder of CIFAR-10, the last of which is 'test'."""
    names, pixels = [*authors.CIFAR_BATCHES["train"], *authors.CIFAR_BATCHES["test"]], []
    (tmp_path / authors.CIFAR_FOLDER).mkdir()
    for seed, name in enumerate(names):
        pixels.append(examples.images(3, 32, 32, 3, seed=seed))
        planes = pixels[-1].transpose(0, 3, 1, 2).reshape(3, -1)
        content = {"labels": [seed, seed + 1, seed + 2], "data": planes, "filenames": ["a"]}
        path = tmp_path / authors.CIFAR_FOLDER / name
        path.write_bytes(pickled(content))
        allow(monkeypatch, path)
    return pixels


@pytest.fixture
def archive(tmp_path, batches, monkeypatch):
    """The archive of these batches, in another folder."""
    path = tmp_path / "other" / authors.CIFAR_ARCHIVE
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as file:
        file.add(tmp_path / authors.CIFAR_FOLDER, authors.CIFAR_FOLDER)
    allow(monkeypatch, path)
    return path


def test_cifar10(tmp_path, batches, archive):
    """The folder, the folder that contains it, and the archive; in the order of the files."""
    for where in ("", authors.CIFAR_FOLDER, "other", f"other/{archive.name}"):
        train, test = (load("CIFAR10", tmp_path / where, split) for split in ("train", "test"))
        np.testing.assert_array_equal(train.pixels[:], np.concatenate(batches[:5]))
        np.testing.assert_array_equal(test.pixels[:], batches[5])
        assert train.labels.tolist() == [0, 1, 2, 1, 2, 3, 2, 3, 4, 3, 4, 5, 4, 5, 6]
        assert (test.labels.tolist(), test.labels.dtype) == ([5, 6, 7], np.int32)


def test_other_sizes_and_channels(tmp_path, batches):
    images = load("CIFAR10", tmp_path, image_size=16, num_channels=1)
    expected = Image.fromarray(batches[5][1]).convert("L")
    expected = np.asarray(preprocessing.resize(expected, 16))
    np.testing.assert_array_equal(images.pixels[1][..., 0], expected)
    assert images.pixels[:].shape == (3, 16, 16, 1)
    refused("num_channels = 2", load, "CIFAR10", tmp_path, num_channels=2)


CHECKSUM = "has the MD5 checksum [0-9a-f]{32}; that of the published file is "


def test_other_files_than_the_published_ones_are_not_read(
    tmp_path, batches, archive, faces, monkeypatch
):
    """Neither a batch nor the archive is unpickled if its checksum differs."""
    monkeypatch.setattr(pickles.Reader, "load", lambda *_: pytest.fail("unpickled"))
    write_svhn(tmp_path, monkeypatch)
    batch = tmp_path / authors.CIFAR_FOLDER / "data_batch_3"
    faces = tmp_path / "Eval" / authors.CELEBA_LIST
    for dataset, where, path in (
        ("CIFAR10", tmp_path, batch),
        ("CIFAR10", archive, archive),
        ("SVHN", tmp_path, tmp_path / "train_32x32.mat"),
        ("CELEBA", tmp_path, faces),
    ):
        path.write_bytes(path.read_bytes()[:-1])
        message = f"{path.name} {CHECKSUM}{authors.MD5[path.name]}"
        refused(message, load, dataset, where, "train")
        path.unlink()
        if path.name in ("data_batch_3", "train_32x32.mat"):
            refused(f"{path.name} cannot be read", load, dataset, where, "train")


def test_published_checksums_are_those_of_torchvision():
    theirs = pytest.importorskip("torchvision.datasets", reason="needs torchvision")
    found = dict(theirs.CIFAR10.train_list + theirs.CIFAR10.test_list)
    found[theirs.CIFAR10.filename] = theirs.CIFAR10.tgz_md5
    for split in ("train", "test"):
        _, name, found[name] = theirs.SVHN.split_list[split]
        assert authors.SVHN_FILES[split] == name
    lists = {name: checksum for _, checksum, name in theirs.CelebA.file_list}
    assert found | {authors.CELEBA_LIST: lists[authors.CELEBA_LIST]} == authors.MD5


# --- SVHN ---


def write_svhn(folder, monkeypatch):
    """Write both files; return their images and labels. Images are the last axis there."""
    written = {}
    for seed, (split, name) in enumerate(authors.SVHN_FILES.items()):
        pixels, labels = examples.images(4, 32, 32, 3, seed=seed), [10, 1, 9, seed]
        content = {"X": pixels.transpose(1, 2, 3, 0), "y": np.array(labels, np.uint8)[:, None]}
        scipy.io.savemat(folder / name, content, do_compression=True)
        allow(monkeypatch, folder / name)
        written[split] = pixels, [0, *labels[1:]]  # The label 10 is the digit 0.
    return written


def test_svhn(tmp_path, monkeypatch):
    for split, (pixels, labels) in write_svhn(tmp_path, monkeypatch).items():
        images = load("SVHN", tmp_path, split)
        np.testing.assert_array_equal(images.pixels[:], pixels)
        assert (images.labels.tolist(), images.labels.dtype) == (labels, np.int32)
        assert load("SVHN", tmp_path, split, image_size=8).pixels[1].shape == (8, 8, 3)


# --- CelebA ---

FACES = {"000001.jpg": 0, "000002.jpg": 1, "000003.jpg": 2, "000004.jpg": 0}
ARCHIVE = f"{authors.CELEBA_IMAGES}.zip"


@pytest.fixture
def faces(tmp_path, monkeypatch):
    """The JPEG files in CelebA's archive, beside which the list of splits is.

    They are smooth random images of CelebA's size, 178x218 pixels.
    """
    (tmp_path / "Eval").mkdir()
    (tmp_path / "Img").mkdir()
    partition = tmp_path / "Eval" / authors.CELEBA_LIST
    partition.write_text("".join(f"{name} {number}\n" for name, number in FACES.items()))
    allow(monkeypatch, partition)
    encoded = {}
    with zipfile.ZipFile(tmp_path / "Img" / ARCHIVE, "w") as archive:
        for seed, name in enumerate(FACES):
            coarse = Image.fromarray(examples.images(1, 5, 4, 3, seed=seed)[0])
            encoded[name] = examples.encoded(coarse.resize((178, 218)), "JPEG", quality=95)
            archive.writestr(f"{authors.CELEBA_IMAGES}/{name}", encoded[name])
    return encoded


@pytest.mark.parametrize("unpacked", [False, True])
def test_celeba(tmp_path, faces, unpacked):
    """Training images have the number 0, held-out ones 1, in the archive or a folder."""
    if unpacked:
        path = tmp_path / "Img" / ARCHIVE
        with zipfile.ZipFile(path) as archive:
            archive.extractall(tmp_path)
        path.unlink()
    train, test = (load("CELEBA", tmp_path, split, image_size=64) for split in ("train", "test"))
    assert train.labels is None
    for images, names in ((train, ("000001.jpg", "000004.jpg")), (test, ("000002.jpg",))):
        files = [Image.open(io.BytesIO(faces[name])) for name in names]
        expected = [np.asarray(preprocessing.celeba(image, 64)) for image in files]
        np.testing.assert_array_equal(images.pixels[:], expected)


def test_missing_and_damaged_faces(tmp_path, faces, monkeypatch):
    """The archive has a checksum of every image."""
    path = tmp_path / "Img" / ARCHIVE
    whole, face = path.read_bytes(), faces["000004.jpg"]
    path.write_bytes(whole.replace(face, face[:500] + bytes([face[500] ^ 1]) + face[501:]))
    images = load("CELEBA", tmp_path, "train")
    assert images.pixels[0].shape == (32, 32, 3)
    with pytest.raises(InputError, match="cannot be read: Bad CRC-32 for file .*000004.jpg"):
        images.pixels[1]
    with monkeypatch.context() as patch:
        patch.setattr(files, "ALWAYS_ALLOWED", 1000)
        patch.setattr(files, "MAX_RATIO", 0)
        refused("img_align_celeba.zip declares", load, "CELEBA", tmp_path, "train")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{authors.CELEBA_IMAGES}/000001.jpg", faces["000001.jpg"])
    message = "lacks 1 images of at most 16,777,216 bytes, such as img_align_celeba/000004.jpg"
    refused(message, load, "CELEBA", tmp_path, "train")
    path.write_bytes(b"text")
    refused("cannot be read as .zip", load, "CELEBA", tmp_path, "train")
    path.unlink()
    refused("lacks 2 images of .*, such as .*000001.jpg", load, "CELEBA", tmp_path, "train")


# --- LSUN: a database that LMDB wrote, and others ---

RECORDED = gzip.decompress((Path(__file__).parent / "data" / "lmdb.mdb.gz").read_bytes())
PAGE_SIZE = 4096
# Positions in the first page, which has the state after the second of two transactions.
MAGIC, PAGE_SIZE_FIELD, DATABASE = 16, 40, 88
ENTRIES, ROOT, TRANSACTION = DATABASE + 32, DATABASE + 40, DATABASE + 56


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
