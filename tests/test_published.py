"""Published data sets: TFRecord files, TensorFlow Datasets and IDX files, intact or damaged."""

import gzip
import importlib
import importlib.util
import json
import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

import datasets
from readers import authors, files, published, records
from readers.records import TFRecords, parse_example
from tests import examples, reference
from tests.examples import data
from tests.refusal import refused

pytestmark = pytest.mark.usefixtures("own_cache")


# --- TFRecord ---

RECORDS = [b"", b"one", bytes(range(256)) * 9]


def test_records(tmp_path, monkeypatch):
    """Those of several files, one of which is empty, are one sequence."""
    path, empty = tmp_path / "a.tfrecords", tmp_path / "empty"
    examples.write_tfrecords(path, RECORDS)
    empty.write_bytes(b"")
    for paths, expected in (([path], RECORDS), ([path, empty, path], [*RECORDS, *RECORDS])):
        found = TFRecords(paths)
        assert [found[i] for i in range(len(found))] == list(found) == expected
        assert found[-1] == expected[-1]
    with monkeypatch.context() as patch:
        patch.setattr(records, "_scan", lambda file: pytest.fail("the index is in the cache"))
        assert TFRecords([path])[2] == RECORDS[2]
        patch.setattr(records, "MAX_RECORD", 10)
        refused("more than 10 bytes", TFRecords([path]).__getitem__, 2)
    examples.write_tfrecords(path, RECORDS[:2])
    assert len(TFRecords([path])) == 2


def test_damaged_records(tmp_path):
    """Flipped bits, also while the file is open, and truncated files."""
    path = examples.write_tfrecords(tmp_path / "a.tfrecords", RECORDS)
    whole, ends = path.read_bytes(), np.cumsum([0, *(len(record) + 16 for record in RECORDS)])
    found = TFRecords([path])
    for byte in (0, 7, 9, 13, 16, 24, 28, 29, 31, 34, 35, 47, 500, len(whole) - 1):
        damaged, number = bytearray(whole), int(np.searchsorted(ends, byte, "right")) - 1
        damaged[byte] ^= 1 << byte % 8
        with open(path, "r+b") as file:
            file.write(damaged)
        message = f"a.tfrecords: the record at byte {ends[number]} cannot be read"
        refused(message, found.__getitem__, number)
        os.utime(path, ns=(byte, byte))
        refused(message, TFRecords, [path])
    for cut in (1, 4, 5, 2000, 2310, len(whole) - 20):
        path.write_bytes(whole[:-cut])
        refused("a.tfrecords: .* cannot be read: it is cut off", TFRecords, [path])


def test_examples():
    record = examples.example(shape=[3, 300, -1], data=b"\0\xff" * 100, none=[])
    expected = {"data": b"\0\xff" * 100}, {"shape": [3, 300, -1], "none": []}
    assert parse_example(record) == expected
    with pytest.raises(Exception, match="parsing"):
        parse_example(record[:-1])


# --- FFHQ and CelebA-HQ ---


@pytest.mark.parametrize("name", ["FFHQ", "CelebAHQ"])
@pytest.mark.parametrize("field", ["tfrecords_path", "path", "folder"])
def test_official_tfrecords(tmp_path, name, field):
    """In the files, channels come first. Both splits are the whole data set."""
    pixels = examples.images(3, 8, 8, 3)
    encoded = [
        examples.example(shape=[3, 8, 8], data=image.transpose(2, 0, 1).tobytes())
        for image in pixels
    ]
    path = examples.write_tfrecords(tmp_path / "x-r03.tfrecords", encoded)
    where = {"path": str(tmp_path)} if field == "folder" else {field: str(path)}
    for split in ("train", "test"):
        images = datasets.load(data(name, "", **where), split)
        np.testing.assert_array_equal(images.pixels[np.arange(3)], pixels)
    other = data(name, path, image_size=16)
    refused("image_size = 16.*-r04", datasets.load, other, "train")


# --- TensorFlow Datasets ---


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A tiny 'CIFAR-10', prepared by TFDS as ArrayRecord, which does not require TensorFlow."""
    tfds = pytest.importorskip(
        "tensorflow_datasets", reason="needs tensorflow-datasets (requirements-dev.txt)"
    )
    import io

    class Cifar10(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("3.0.2")

        def _info(self):
            label = tfds.features.ClassLabel(num_classes=10)
            features = {"image": tfds.features.Image(shape=(32, 32, 3)), "label": label}
            features = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, _):
            return {"train": self._generate_examples(6), "test": self._generate_examples(3)}

        def _generate_examples(self, count):
            for i, image in enumerate(examples.images(count, 32, 32, 3)):
                yield i, {"image": io.BytesIO(examples.png(image)), "label": i % 10}

    root = tmp_path_factory.mktemp("tfds")
    builder = Cifar10(data_dir=str(root), file_format="array_record")
    builder.download_and_prepare()
    return root, builder


def test_prepared_data_sets_are_read_as_by_tfds(prepared, tmp_path):
    root, builder = prepared
    config = data("CIFAR10", root, image_size=32)
    for split in ("train", "test"):
        images = datasets.load(config, split)
        theirs = list(builder.as_data_source(split))
        expected = [each["image"] for each in theirs]
        np.testing.assert_array_equal(images.pixels[np.arange(len(theirs))], expected)
        assert images.labels.tolist() == [each["label"] for each in theirs]
        assert images.labels.dtype == np.int32
    config = data("CIFAR10", shutil.copytree(root, tmp_path / "tfds"), image_size=32)
    path = next((tmp_path / "tfds").rglob("*-train.array_record-*"))
    whole = path.read_bytes()
    for position in (200, 4000, -60000):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        path.write_bytes(damaged if position > 0 else damaged[:position])
        words = r"3\.0\.2.* cannot be read: .*Prepare it again"
        refused(words, lambda: datasets.load(config, "train").pixels[:])


def write_prepared(root: Path, name: str, version: str, **splits: list[list[bytes]]) -> Path:
    """Write a data set in TFDS's layout, as TFRecord files, its default; return the folder."""
    folder = root / name / version
    folder.mkdir(parents=True)
    stem, infos = name.split("/")[0], []
    for split, shards in splits.items():
        infos.append({"name": split, "shardLengths": [str(len(shard)) for shard in shards]})
        for i, shard in enumerate(shards):
            file = f"{stem}-{split}.tfrecord-{i:05d}-of-{len(shards):05d}"
            examples.write_tfrecords(folder / file, shard)
    info = {"name": stem, "fileFormat": "tfrecord", "splits": infos}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


@pytest.mark.parametrize(
    ("dataset", "name", "shape", "size", "fields"),
    [
        ("SVHN", "svhn_cropped", (32, 32, 3), 32, {}),
        ("CELEBA", "celeb_a", (218, 178, 3), 64, {}),
        ("LSUN", "lsun/church_outdoor", (256, 300, 3), 256, {"category": "church_outdoor"}),
        ("FASHION_MNIST", "fashion_mnist", (28, 28), 28, {"num_channels": 1}),
    ],
)
def test_prepared_tfrecords(tmp_path, dataset, name, shape, size, fields):
    pixels = examples.images(5, *shape)
    label = {} if dataset in ("CELEBA", "LSUN") else {"label": [3]}
    encoded = [examples.example(image=examples.png(image), **label) for image in pixels]
    config = data(dataset, tmp_path, image_size=size, **fields)
    test = published.of_tfds(config).test
    write_prepared(tmp_path, name, "9.0.0", train=[encoded], **{test: [encoded]})
    shards = {"train": [encoded[:2], [], encoded[2:]], test: [encoded[:1]]}
    folder = write_prepared(tmp_path, name, "10.0.0", **shards)
    train, held_out = (datasets.load(config, split) for split in ("train", "test"))
    assert (len(train), len(held_out)) == (5, 1)
    assert train.pixels.shape == (5, size, size, config.num_channels)
    assert (train.labels is None) == (not label)
    if shape[0] == size and shape[1] == size:
        np.testing.assert_array_equal(train.pixels[:], pixels.reshape(train.pixels.shape))
    next(folder.glob("*-train.tfrecord-00002-of-00003")).unlink()
    refused("00002-of-00003 cannot be read: No such file", datasets.load, config, "train")


def test_labels_of_files_that_are_overwritten(tmp_path):
    """Neither the folder nor the number of records changes, but the labels do."""
    image = examples.png(examples.images(1, 32, 32, 3)[0])
    shards = [[examples.example(image=image, label=[label])] for label in (1, 2, 3)]
    folder = write_prepared(tmp_path, "cifar10", "1.0.0", train=shards[:2])
    config = data("CIFAR10", tmp_path, image_size=32)
    assert datasets.load(config, "train").labels.tolist() == [1, 2]
    shard = folder / "cifar10-train.tfrecord-00001-of-00002"
    shard.write_bytes(examples.write_tfrecords(tmp_path / "new", shards[2]).read_bytes())
    os.utime(shard, ns=(1, 1))
    assert datasets.load(config, "train").labels.tolist() == [1, 3]


@pytest.mark.parametrize("name", reference.notes("official_configs"))
def test_data_sets_of_all_official_experiments_have_a_reader(tmp_path, name, monkeypatch):
    """If the data set is missing, an error states how to get it."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    config = importlib.import_module("configs." + name.replace("/", ".")).get_config().data
    refused("--mode=prepare_data|docs/data.md", datasets.load, config, "train")


def test_requirements_of_preparation(monkeypatch):
    refused("'FFHQ' is not a set", published.prepare, data("FFHQ", ""))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    packages = "pip install tensorflow tensorflow-datasets importlib_resources"
    refused(packages, published.prepare, data("CIFAR10", ""))


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ({"splits": [{}]}, "an entry of 'splits' has no 'name'"),
        ({"splits": [{"name": "train", "shardLengths": ["x"]}]}, "invalid literal for int"),
        ({"name": "../x", "splits": [{"name": "train", "shardLengths": ["1"]}]}, "its files"),
    ],
)
def test_damaged_descriptions_of_data_sets(tmp_path, info, message):
    folder = tmp_path / "cifar10" / "3.0.2"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text(json.dumps(info))
    refused(f"3.0.2.*{message}", published.read, "train", data("cifar10", tmp_path))


# --- IDX ---


LABELS = np.arange(4, dtype=np.uint8)


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def test_idx_files(tmp_path, monkeypatch):
    pixels, labels = examples.images(4, 28, 28), LABELS
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pixels)))
    path = tmp_path / "train-labels-idx1-ubyte"
    path.write_bytes(idx(labels))
    config = data("fashion_mnist", tmp_path, image_size=28, num_channels=1)
    images = datasets.load(config, "train")
    np.testing.assert_array_equal(images.pixels[..., 0], pixels)
    assert images.labels.tolist() == [0, 1, 2, 3]
    color = datasets.load(data("fashion_mnist", tmp_path, image_size=32), "train")
    assert color.pixels[[0, 1]].shape == (2, 32, 32, 3)
    refused("t10k-images-idx3-ubyte.gz cannot be read", datasets.load, config, "test")
    for values in ([0, 1, 2, 255], [0, 1, 2, 10], [0, 1, 2], [0, 1, 2, 3, 4]):
        path.write_bytes(idx(np.array(values, np.uint8)))
        refused(f"{path}: labels", datasets.load, config, "train")
    # Neither a large array nor bytes behind the array are expanded.
    monkeypatch.setattr(files, "ALWAYS_ALLOWED", 1000)
    path, arguments = tmp_path / "a-idx1-ubyte.gz", (tmp_path, "a-idx1-ubyte", 1)
    path.write_bytes(gzip.compress(idx(np.zeros(10**6, np.uint8))))
    refused("idx1-ubyte.gz declares a content of 1,000,000", authors.read_idx_array, *arguments)
    path.write_bytes(gzip.compress(idx(np.zeros(10, np.uint8)) + bytes(10**6)))
    refused("idx1-ubyte.gz cannot be read as IDX", authors.read_idx_array, *arguments)


def test_fashion_mnist_without_a_path(tmp_path, monkeypatch):
    """A set that TFDS has prepared comes first, then the files that Debian installs."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setattr(authors, "DEBIAN", tmp_path)
    config = data("fashion_mnist", "", image_size=28, num_channels=1)
    refused("is not in .*tfds", datasets.load, config, "train")
    for kind, array in (("images-idx3", np.zeros((4, 28, 28), np.uint8)), ("labels-idx1", LABELS)):
        (tmp_path / f"train-{kind}-ubyte").write_bytes(idx(array))
    assert len(datasets.load(config, "train")) == 4
    image = examples.example(image=examples.png(np.zeros((28, 28), np.uint8)), label=[1])
    write_prepared(tmp_path / "tfds", "fashion_mnist", "3.0.1", train=[[image] * 3])
    assert len(datasets.load(config, "train")) == 3


FASHION_MNIST = Path(os.environ.get("FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))


@pytest.mark.slow
@pytest.mark.skipif(
    not (FASHION_MNIST / "train-images-idx3-ubyte.gz").exists(),
    reason="install Debian's dataset-fashion-mnist, or set FASHION_MNIST to its folder",
)
def test_fashion_mnist():
    """The 70,000 images have the published mean and standard deviation."""
    c = data("FASHION_MNIST", FASHION_MNIST, image_size=28, num_channels=1)
    train, test = (datasets.load(c, split) for split in ("train", "test"))
    assert np.bincount(train.labels).tolist() == [6000] * 10
    assert np.bincount(test.labels).tolist() == [1000] * 10
    values = train.pixels[:].astype(np.float64) / 255
    assert (values.mean(), values.std()) == pytest.approx((0.2860, 0.3530), abs=5e-5)
