"""Data sets as their authors release them: small files in these formats, intact or damaged."""

import hashlib
import io
import os
import pickle
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import scipy.io
from PIL import Image

import datasets
from errors import InputError
from readers import celeba, cifar, files, pickles, preprocessing, svhn
from tests import examples
from tests.refusal import refused

pytestmark = pytest.mark.usefixtures("own_cache")


def load(dataset, where, split="test", **fields):
    """Return color images of 32x32 pixels."""
    return datasets.load(examples.data(dataset, where, **{"image_size": 32, **fields}), split)


def allow(monkeypatch, module, **paths):
    """Replace published checksums by those of files."""
    found = {n: hashlib.md5(path.read_bytes()).hexdigest() for n, path in paths.items()}
    monkeypatch.setattr(module, "MD5", module.MD5 | found)


# --- pickles of Python 2 ---


def pickled(value) -> bytes:
    """Return a value as Python 2 pickles it: texts are strings of bytes."""
    return b"\x80\x02" + _pickled(value) + b"."


def _pickled(value) -> bytes:
    match value:
        case dict():
            items = b"".join(_pickled(key) + _pickled(each) for key, each in value.items())
            return b"}(" + items + b"u"
        case list():
            return b"](" + b"".join(map(_pickled, value)) + b"e"
        case tuple():
            return b"(" + b"".join(map(_pickled, value)) + b"t"
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            return b"J" + struct.pack("<i", value)
        case str():
            return _pickled(value.encode("latin-1"))
        case bytes():
            return b"T" + struct.pack("<i", len(value)) + value
        case np.ndarray():
            order, code = value.dtype.str[0], value.dtype.str[1:]
            kind = b"cnumpy\ndtype\n" + _pickled((code, 0, 1)) + b"R"
            kind += _pickled((3, order, None, None, None, -1, -1, 0))
            content = b"(" + _pickled(1) + _pickled(value.shape) + kind + b"b\x89"
            content += _pickled(value.tobytes()) + b"t"
            empty = b"cnumpy\nndarray\n" + _pickled((0,)) + _pickled("b")
            return b"cnumpy.core.multiarray\n_reconstruct\n(" + empty + b"tR" + content + b"b"
    raise TypeError(value)


def test_pickles_are_those_of_python():
    """Python's own reader and ours return the same."""
    data = np.arange(12, dtype=np.uint8).reshape(3, 4)
    value = {"data": data, "labels": [3, 1, 2], "a\xe9": None}
    expected = pickle.loads(pickled(value), encoding="latin-1")
    found = pickles.Reader().load(io.BytesIO(pickled(value)), cifar.NAMES)
    assert found.pop("data").state[4].encode("latin-1") == expected.pop("data").tobytes()
    assert found == expected


# --- CIFAR-10 ---


def batch(count: int, seed: int = 0) -> tuple[np.ndarray, dict]:
    """Return images (count, 32, 32, 3) and a batch of CIFAR-10 with them."""
    pixels = examples.images(count, 32, 32, 3, seed=seed)
    planes = pixels.transpose(0, 3, 1, 2).reshape(count, -1)
    labels = [(seed + i) % 10 for i in range(count)]
    return pixels, {"batch_label": "a batch", "labels": labels, "data": planes, "filenames": ["a"]}


def write_batch(folder, name, content, monkeypatch):
    folder.mkdir(exist_ok=True, parents=True)
    (folder / name).write_bytes(content)
    allow(monkeypatch, cifar, **{name: folder / name})


@pytest.fixture
def batches(tmp_path, monkeypatch):
    """The images of six small batches in the folder of CIFAR-10, the last of which is 'test'."""
    names, pixels = [*cifar.BATCHES["train"], *cifar.BATCHES["test"]], []
    for seed, name in enumerate(names):
        images, content = batch(3, seed)
        write_batch(tmp_path / cifar.FOLDER, name, pickled(content), monkeypatch)
        pixels.append(images)
    return pixels


def write_archive(tmp_path, monkeypatch):
    with tarfile.open(tmp_path / cifar.ARCHIVE, "w:gz") as archive:
        archive.add(tmp_path / cifar.FOLDER, cifar.FOLDER)
    allow(monkeypatch, cifar, **{cifar.ARCHIVE: tmp_path / cifar.ARCHIVE})
    return tmp_path / cifar.ARCHIVE


def test_cifar10(tmp_path, batches, monkeypatch):
    """The folder, the folder that contains it, and the archive; in the order of the files."""
    archive = write_archive(tmp_path, monkeypatch)
    (tmp_path / "other").mkdir()
    os.rename(archive, tmp_path / "other" / cifar.ARCHIVE)
    for where in ("", cifar.FOLDER, "other", f"other/{cifar.ARCHIVE}"):
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


def test_a_prepared_copy_comes_first(tmp_path, batches):
    """Its images may have another order."""
    folder = tmp_path / "cifar10" / "3.0.2"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text('{"name": "cifar10", "splits": []}')
    refused("3.0.2 has no split 'train'", load, "CIFAR10", tmp_path, "train")


CHECKSUM = "has the MD5 checksum [0-9a-f]{32}; that of the published file is "


def test_other_files_than_the_published_ones_are_not_read(tmp_path, batches, monkeypatch):
    """Neither a batch nor the archive is unpickled if its checksum differs."""
    archive = write_archive(tmp_path, monkeypatch)
    monkeypatch.setattr(pickles.Reader, "load", lambda *_: pytest.fail("unpickled"))
    path = tmp_path / cifar.FOLDER / "data_batch_3"
    path.write_bytes(path.read_bytes()[:-1])
    message = CHECKSUM + cifar.MD5["data_batch_3"]
    refused(f"data_batch_3 {message}", load, "CIFAR10", tmp_path, "train")
    archive.write_bytes(archive.read_bytes() + b"\0")
    refused(f"tar.gz {CHECKSUM}{cifar.MD5[cifar.ARCHIVE]}", load, "CIFAR10", archive, "train")
    path.unlink()
    refused("data_batch_3 cannot be read", load, "CIFAR10", tmp_path, "train")


def test_published_checksums_are_those_of_torchvision():
    from_torchvision = pytest.importorskip("torchvision.datasets", reason="needs torchvision")
    theirs = from_torchvision.CIFAR10
    assert (
        dict(theirs.train_list + theirs.test_list) | {theirs.filename: theirs.tgz_md5} == cifar.MD5
    )
    for split in ("train", "test"):
        _, name, checksum = from_torchvision.SVHN.split_list[split]
        assert (svhn.FILES[split], svhn.MD5[split]) == (name, checksum)
    lists = {name: checksum for _, checksum, name in from_torchvision.CelebA.file_list}
    assert celeba.MD5[celeba.PARTITION] == lists[celeba.PARTITION]


# --- SVHN ---


def write_svhn(tmp_path, monkeypatch, images, labels, split="test"):
    path = tmp_path / svhn.FILES[split]
    scipy.io.savemat(path, {"X": images, "y": labels}, do_compression=True)
    allow(monkeypatch, svhn, **{split: path})


def test_svhn(tmp_path, monkeypatch):
    """In the files, images are the last axis, and the label 10 is the digit 0."""
    for split, seed in (("train", 1), ("test", 2)):
        pixels, labels = examples.images(4, 32, 32, 3, seed=seed), [10, 1, 9, seed]
        stored = pixels.transpose(1, 2, 3, 0)
        write_svhn(tmp_path, monkeypatch, stored, np.array(labels, np.uint8)[:, None], split)
        images = load("SVHN", tmp_path, split)
        np.testing.assert_array_equal(images.pixels[:], pixels)
        assert (images.labels.tolist(), images.labels.dtype) == ([0, 1, 9, seed], np.int32)
        assert load("SVHN", tmp_path, split, image_size=8).pixels[1].shape == (8, 8, 3)


def test_other_matlab_files(tmp_path, monkeypatch):
    write_svhn(tmp_path, monkeypatch, np.zeros((32, 32, 3, 4), np.uint8), np.ones((4, 1), np.uint8))
    refused("train_32x32.mat cannot be read", load, "SVHN", tmp_path, "train")
    path = tmp_path / svhn.FILES["test"]
    path.write_bytes(path.read_bytes()[:-9])
    refused(f"test_32x32.mat {CHECKSUM}{svhn.MD5['test']}", load, "SVHN", tmp_path)


# --- CelebA ---

FACES = {"000001.jpg": 0, "000002.jpg": 1, "000003.jpg": 2, "000004.jpg": 0}


def jpeg(seed: int) -> bytes:
    """Return a smooth random image of CelebA's size, 178x218 pixels, as a JPEG file."""
    coarse = Image.fromarray(examples.images(1, 5, 4, 3, seed=seed)[0])
    return examples.encoded(coarse.resize((178, 218)), "JPEG", quality=95)


@pytest.fixture
def faces(tmp_path, monkeypatch):
    """The JPEG files in CelebA's archive, beside which the list of splits is."""
    (tmp_path / "Eval").mkdir()
    (tmp_path / "Img").mkdir()
    partition = tmp_path / "Eval" / celeba.PARTITION
    partition.write_text("".join(f"{name} {number}\n" for name, number in FACES.items()))
    allow(monkeypatch, celeba, **{celeba.PARTITION: partition})
    encoded = {name: jpeg(seed) for seed, name in enumerate(FACES)}
    with zipfile.ZipFile(tmp_path / "Img" / celeba.ARCHIVE, "w") as archive:
        for name, content in encoded.items():
            archive.writestr(f"{celeba.IMAGES}/{name}", content)
    return encoded


def expected(encoded: bytes, size: int) -> np.ndarray:
    return np.asarray(preprocessing.celeba(Image.open(io.BytesIO(encoded)), size))


@pytest.mark.parametrize("unpacked", [False, True])
def test_celeba(tmp_path, faces, unpacked):
    """Training images have the number 0, held-out ones 1, in the archive or a folder."""
    if unpacked:
        path = tmp_path / "Img" / celeba.ARCHIVE
        with zipfile.ZipFile(path) as archive:
            archive.extractall(tmp_path)
        path.unlink()
    train, test = (load("CELEBA", tmp_path, split, image_size=64) for split in ("train", "test"))
    assert train.labels is None
    for images, names in ((train, ("000001.jpg", "000004.jpg")), (test, ("000002.jpg",))):
        np.testing.assert_array_equal(images.pixels[:], [expected(faces[n], 64) for n in names])


def test_missing_and_damaged_faces(tmp_path, faces, monkeypatch):
    """The archive has a checksum of every image."""
    path = tmp_path / "Img" / celeba.ARCHIVE
    whole, face = path.read_bytes(), faces["000004.jpg"]
    path.write_bytes(whole.replace(face, face[:500] + bytes([face[500] ^ 1]) + face[501:]))
    images = load("CELEBA", tmp_path, "train")
    assert images.pixels[0].shape == (32, 32, 3)
    with pytest.raises(InputError, match="000004.jpg cannot be read: Bad CRC-32"):
        images.pixels[1]
    with monkeypatch.context() as patch:
        patch.setattr(files, "ALWAYS_ALLOWED", 1000)
        patch.setattr(files, "MAX_RATIO", 0)
        refused("img_align_celeba.zip declares", load, "CELEBA", tmp_path, "train")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{celeba.IMAGES}/000001.jpg", faces["000001.jpg"])
    message = "lacks 1 images of at most 16,777,216 bytes, such as img_align_celeba/000004.jpg"
    refused(message, load, "CELEBA", tmp_path, "train")
    path.write_bytes(b"text")
    refused("cannot be read as .zip", load, "CELEBA", tmp_path, "train")
    path.unlink()
    refused("lacks 2 images of .*, such as .*000001.jpg", load, "CELEBA", tmp_path, "train")


def test_other_lists_of_splits(tmp_path, faces):
    (tmp_path / "Eval" / celeba.PARTITION).write_text("000001.jpg 0\n")
    refused(f"{celeba.PARTITION} {CHECKSUM}", load, "CELEBA", tmp_path)
