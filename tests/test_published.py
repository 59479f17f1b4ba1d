"""TFRecord files whole and damaged, sets of TensorFlow Datasets, IDX files, and what is said where they are absent."""

import gzip
import importlib
import importlib.util
import json
import os
import shutil
import struct
from pathlib import Path

import jax
import numpy as np
import pytest

import datasets
import training
from errors import InputError
from experiment import Experiment
from readers import cache, published, tfrecords
from readers.tfrecords import TFRecords, parse_example
from tests import examples, reference, tiny


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "FOLDER", tmp_path / "cache")


def data(**fields):
    """config.data of images of 8x8 pixels in colour."""
    config = tiny.config(**{"data.image_size": 8, "data.num_channels": 3}).data.unlock()
    config.update(fields)
    return config


# --- TFRecord ---------------------------------------------------------------------------------------------------------

RECORDS = [b"", b"one", bytes(range(256)) * 9]


def test_checksum():
    """The check value of CRC-32C is that of the digits 1 to 9, 0xE3069283."""
    assert (
        tfrecords.masked_crc(b"123456789")
        == ((0xE3069283 >> 15 | 0xE3069283 << 17) + 0xA282EAD8) % 2**32
    )


def test_records(tmp_path, monkeypatch):
    path = examples.write_tfrecords(tmp_path / "a.tfrecords", RECORDS)
    records = TFRecords(path)
    assert [records[i] for i in range(len(records))] == RECORDS
    with monkeypatch.context() as patch:
        patch.setattr(TFRecords, "_scan", None)  # The index is at hand.
        assert TFRecords(path)[2] == RECORDS[2]
    examples.write_tfrecords(path, RECORDS[:2])
    assert len(TFRecords(path)) == 2


SIZE = sum(len(record) + 16 for record in RECORDS)


@pytest.mark.parametrize("bit", range(8))
@pytest.mark.parametrize("byte", [0, 7, 9, 13, 16, 24, 28, 29, 31, 34, 35, 47, 500, SIZE - 1])
def test_a_flipped_bit_is_found(tmp_path, byte, bit):
    path = examples.write_tfrecords(tmp_path / "a.tfrecords", RECORDS)
    whole = path.read_bytes()
    assert len(whole) == SIZE
    records = TFRecords(path)
    damaged = bytearray(whole)
    damaged[byte] ^= 1 << bit
    number = 0 if byte < 16 else 1 if byte < 35 else 2
    with open(path, "r+b") as file:  # While it is being read ...
        file.write(damaged)
    with pytest.raises(InputError, match=f"record {number}, at byte"):
        records[number]
    with pytest.raises(
        InputError, match=f"a.tfrecords is damaged: record {number}, at byte .*Fetch the file again"
    ):
        TFRecords(path)  # ... and before.


@pytest.mark.parametrize("cut", [1, 4, 5, 2000, 2310, SIZE - 20])
def test_a_file_that_is_cut_off(tmp_path, cut):
    path = examples.write_tfrecords(tmp_path / "a.tfrecords", RECORDS)
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(InputError, match=r"record [12], at byte \d+, is cut off"):
        TFRecords(path)


def test_examples():
    record = examples.example(shape=[3, 300, -1], data=b"\0\xff" * 100, none=[])
    assert parse_example(record) == {"shape": [3, 300, -1], "data": [b"\0\xff" * 100], "none": []}
    for broken in (record[:-1], record[:9], b"\xff" * 12, b"\x0f\0"):
        with pytest.raises(ValueError, match="no tf.train.Example"):
            parse_example(broken)


# --- FFHQ and CelebA-HQ -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["FFHQ", "CelebAHQ"])
@pytest.mark.parametrize("field", ["tfrecords_path", "path", "folder"])
def test_official_tfrecords(tmp_path, name, field):
    """Channels come first in the files; either split is all of it."""
    pixels = examples.images(3, 8, 8, 3)
    records = [
        examples.example(shape=[3, 8, 8], data=image.transpose(2, 0, 1).tobytes())
        for image in pixels
    ]
    path = examples.write_tfrecords(tmp_path / "x-r03.tfrecords", records)
    where = {"path": str(tmp_path)} if field == "folder" else {field: str(path)}
    for split in ("train", "test"):
        images = datasets.load(data(dataset=name, **where), split)
        np.testing.assert_array_equal(images.pixels[np.arange(3)], pixels)
    with pytest.raises(
        InputError,
        match=r"image 0 is \(3, 8, 8\), channels first; data.image_size = 16.*r04.tfrecords",
    ):
        datasets.load(data(dataset=name, path=str(path), image_size=16), "train")


# --- TensorFlow Datasets ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A tiny 'CIFAR-10' that TFDS itself has prepared as ArrayRecord, which it can without TensorFlow."""
    tfds = pytest.importorskip(
        "tensorflow_datasets", reason="needs tensorflow-datasets (requirements-dev.txt)"
    )
    import io

    class Cifar10(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("3.0.2")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(32, 32, 3)),
                "label": tfds.features.ClassLabel(num_classes=10),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, _):
            return {"train": self._generate_examples(6), "test": self._generate_examples(3)}

        def _generate_examples(self, count):
            for i, image in enumerate(examples.images(count, 32, 32, 3)):
                yield i, {"image": io.BytesIO(examples.png(image)), "label": i % 10}

    root = tmp_path_factory.mktemp("tfds")
    builder = Cifar10(data_dir=str(root), file_format="array_record")
    builder.download_and_prepare()
    return root, builder


def test_prepared_sets_are_read_as_tfds_reads_them(prepared):
    root, builder = prepared
    config = data(dataset="CIFAR10", path=str(root), image_size=32)
    for split in ("train", "test"):
        images = datasets.load(config, split)
        theirs = list(builder.as_data_source(split))
        np.testing.assert_array_equal(
            images.pixels[np.arange(len(theirs))], [each["image"] for each in theirs]
        )
        assert images.labels.tolist() == [each["label"] for each in theirs]
        assert images.labels.dtype == np.int32
    smaller = datasets.load(data(dataset="CIFAR10", path=str(root), image_size=16), "train")
    assert smaller.pixels.shape == (6, 16, 16, 3)


@pytest.mark.parametrize("position", [200, 4000, -60000])
def test_a_damaged_array_record_is_found(prepared, tmp_path, position):
    root = tmp_path / "tfds"
    shutil.copytree(prepared[0], root)
    path = next(root.rglob("*-train.array_record-*"))
    damaged = bytearray(path.read_bytes())
    damaged[position] ^= 1
    path.write_bytes(damaged if position > 0 else damaged[:position])
    with pytest.raises(InputError, match=r"3\.0\.2 is damaged: .*Prepare it again"):
        datasets.load(data(dataset="CIFAR10", path=str(root), image_size=32), "train").pixels[:]


def write_prepared(
    root: Path, name: str, version: str, splits: dict[str, list[list[bytes]]]
) -> Path:
    """A set in TFDS's layout, in TFRecord files, which is how it prepares by default."""
    folder = root / name / version
    folder.mkdir(parents=True)
    stem, infos = name.split("/")[0], []
    for split, shards in splits.items():
        infos.append({"name": split, "shardLengths": [str(len(shard)) for shard in shards]})
        for i, shard in enumerate(shards):
            examples.write_tfrecords(
                folder / f"{stem}-{split}.tfrecord-{i:05d}-of-{len(shards):05d}", shard
            )
    info = {"name": stem, "fileFormat": "tfrecord", "splits": infos}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


@pytest.mark.parametrize(
    ("dataset", "name", "shape", "size", "fields"),
    [
        ("SVHN", "svhn_cropped", (32, 32, 3), 32, {}),
        ("CELEBA", "celeb_a", (218, 178, 3), 64, {}),
        ("LSUN", "lsun/bedroom", (150, 140, 3), 128, {"category": "bedroom"}),
        ("LSUN", "lsun/church_outdoor", (256, 300, 3), 256, {"category": "church_outdoor"}),
        ("FASHION_MNIST", "fashion_mnist", (28, 28), 28, {"num_channels": 1}),
    ],
)
def test_sets_of_tfds_in_tfrecords(tmp_path, dataset, name, shape, size, fields):
    pixels = examples.images(5, *shape)
    label = {} if dataset in ("CELEBA", "LSUN") else {"label": [3]}
    records = [examples.example(image=examples.png(image), **label) for image in pixels]
    config = data(dataset=dataset, path=str(tmp_path), image_size=size, **fields)
    test = published.of_tfds(config).test
    write_prepared(tmp_path, name, "9.0.0", {"train": [records], test: [records]})
    folder = write_prepared(
        tmp_path, name, "10.0.0", {"train": [records[:2], [], records[2:]], test: [records[:1]]}
    )
    train, held_out = (datasets.load(config, split) for split in ("train", "test"))
    assert (len(train), len(held_out)) == (5, 1)
    assert train.pixels.shape == (5, size, size, config.num_channels)
    assert (train.labels is None) == (not label)
    if shape[0] == size and shape[1] == size:
        np.testing.assert_array_equal(
            train.pixels[np.arange(5)], pixels.reshape(train.pixels.shape)
        )
    next(folder.glob("*-train.tfrecord-00002-of-00003")).unlink()
    with pytest.raises(
        InputError, match=r"lacks 1 of 3 files of 'train', such as .*00002-of-00003"
    ):
        datasets.load(config, "train")


def test_a_damaged_image_is_named(tmp_path):
    good = examples.example(image=examples.png(examples.images(1, 32, 32, 3)[0]), label=[1])
    write_prepared(
        tmp_path,
        "cifar10",
        "1.0.0",
        {"train": [[good, examples.example(image=b"no image", label=[1])]]},
    )
    images = datasets.load(data(dataset="CIFAR10", path=str(tmp_path), image_size=32), "train")
    with pytest.raises(InputError, match=r"1\.0\.0 is damaged: record 1 of train"):
        images.pixels[1]


@pytest.mark.parametrize("name", reference.notes("official_configs"))
def test_every_official_experiment_finds_its_data_set(tmp_path, name, monkeypatch):
    """Where it is absent, a sentence says how to get it."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    config = importlib.import_module("configs." + name.replace("/", ".")).get_config().data
    with pytest.raises(
        InputError, match=r"--config.data.path=DIR, or get it with --mode=prepare_data|docs/data.md"
    ):
        datasets.load(config, "train")


def test_what_preparing_needs(monkeypatch):
    with pytest.raises(
        InputError, match="'FFHQ' is not a set of TensorFlow Datasets; see docs/data.md"
    ):
        published.prepare(data(dataset="FFHQ"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    packages = "pip install tensorflow tensorflow-datasets importlib_resources"
    with pytest.raises(InputError, match=packages):
        published.prepare(data(dataset="CIFAR10"))


# --- IDX --------------------------------------------------------------------------------------------------------------


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def test_idx_files(tmp_path):
    pixels, labels = examples.images(4, 28, 28), np.arange(4, dtype=np.uint8)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pixels)))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(labels))
    config = data(dataset="fashion_mnist", path=str(tmp_path), image_size=28, num_channels=1)
    images = datasets.load(config, "train")
    np.testing.assert_array_equal(images.pixels[..., 0], pixels)
    assert images.labels.tolist() == [0, 1, 2, 3]
    coloured = datasets.load(
        data(dataset="fashion_mnist", path=str(tmp_path), image_size=32), "train"
    )
    assert coloured.pixels[[0, 1]].shape == (2, 32, 32, 3)
    with pytest.raises(InputError, match="holds neither t10k-images-idx3-ubyte nor"):
        datasets.load(config, "test")
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(labels)[:-1])
    with pytest.raises(
        InputError, match="train-labels-idx1-ubyte is no IDX file of bytes, or is cut off"
    ):
        datasets.load(config, "train")
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(InputError, match="train-images-idx3-ubyte.gz is damaged"):
        datasets.load(config, "train")


DEBIAN = Path(os.environ.get("FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))


@pytest.fixture
def fashion():
    """The experiment on the real 70,000 images."""
    if not (DEBIAN / "train-images-idx3-ubyte.gz").exists():
        pytest.skip(
            f"needs Fashion-MNIST in {DEBIAN}: Debian's dataset-fashion-mnist, or name it in FASHION_MNIST"
        )
    config = importlib.import_module("configs.vp.fashion_mnist_ddpmpp_continuous").get_config()
    config.data.path = str(DEBIAN)
    return config


@pytest.mark.slow
def test_fashion_mnist(fashion):
    train, test = (datasets.load(fashion.data, split) for split in ("train", "test"))
    assert (np.bincount(train.labels).tolist(), np.bincount(test.labels).tolist()) == (
        [6000] * 10,
        [1000] * 10,
    )
    values = train.pixels[:].astype(np.float64) / 255
    assert (values.mean(), values.std()) == pytest.approx(
        (0.2860, 0.3530), abs=5e-5
    )  # As the literature has them.


@pytest.mark.slow
def test_training_on_fashion_mnist(fashion, tmp_path):
    """300 steps of a tiny network leave less than half of the loss of a network that returns nothing, which is 1."""
    fashion.model.update(nf=16, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=())
    fashion.training.update(batch_size=32, n_iters=300, snapshot_freq=300, snapshot_sampling=False)
    fashion.optim.lr = 2e-3
    state = training.train(fashion, str(tmp_path / "w"))
    experiment = Experiment(fashion)
    batch = jax.tree.map(experiment.rows, experiment.test.batch(np.arange(256)))
    loss, _ = experiment.held_out_loss(state.params, batch, jax.random.key(0))
    assert float(loss.mean()) < 0.5
