"""Custom images and arrays: unusual files, splits, classes, the index, training and inspection."""

import os
import re
import shutil
import threading

import numpy as np
import pytest
from PIL import Image

import datasets
import training
from commands import inspection
from errors import InputError
from experiment import Experiment
from readers import arrays, cache, folders, image_files, preprocessing
from readers.folders import Index
from readers.pictures import BACKGROUND
from tests import examples, tiny
from tests.refusal import refused


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(cache, "FOLDER", tmp_path_factory.mktemp("cache"))


def config(where, dataset="folder", **changes):
    """Return a config for colour images of 8x8 pixels in the file or folder `where`."""
    fields = {
        "dataset": dataset,
        "path": str(where),
        "image_size": 8,
        "num_channels": 3,
        "held_out": 0.25,
    } | changes
    return tiny.config(**{f"data.{name}": value for name, value in fields.items()})


def write(path, array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def folder(tmp_path):
    """Forty images in two nested folders; cats are dark, dogs are bright."""
    for i in range(40):
        subfolder = ("cats", "dogs/deep/er")[i % 2]
        path = tmp_path / "images" / subfolder / f"{i}.png"
        write(path, np.full((8, 12, 3), value(i), np.uint8))
    return tmp_path / "images"


def value(i: int) -> int:
    """The grey level of image i of `folder`: below 100 for cats, above for dogs."""
    return 10 + i + 100 * (i % 2)


# --- folders ---


def test_splits_and_classes(folder):
    train, test = (datasets.load(config(folder).data, split) for split in ("train", "test"))
    values = [images.pixels[np.arange(len(images))][:, 0, 0, 0] for images in (train, test)]
    assert sorted(np.concatenate(values).tolist()) == sorted(map(value, range(40)))
    assert 4 <= len(test) <= 16
    for images, grey_levels in zip((train, test), values):
        np.testing.assert_array_equal(images.labels, grey_levels >= 100)
    assert len(datasets.load(config(folder, num_classes=2).data, "train")) == len(train)
    refused("data.num_classes = 1", datasets.load, config(folder, num_classes=1).data, "train")
    # Held-out files remain held out when others are added.
    write(folder / "cats" / "new.png", np.zeros((8, 8, 3), np.uint8))
    again = datasets.load(config(folder).data, "test")
    assert set(values[1].tolist()) <= set(again.pixels[np.arange(len(again))][:, 0, 0, 0].tolist())
    write(folder / "top.png", np.zeros((8, 8, 3), np.uint8))
    assert datasets.load(config(folder).data, "train").labels is None  # One image is in no folder.


def test_at_least_one_image_is_held_out():
    names = [f"{i}.png" for i in range(50)]
    train, test = (folders.members(names, split, 1e-9) for split in ("train", "test"))
    assert len(test) == 1
    assert sorted([*train, *test]) == list(range(50))


def test_given_splits(tmp_path):
    for i, name in enumerate(["train/b/0.png", "train/a/1.png", "test/b/2.png"]):
        write(tmp_path / name, np.full((8, 8), i, np.uint8))
    train, test = (datasets.load(config(tmp_path).data, split) for split in ("train", "test"))
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 1], [1])
    assert (train.pixels[[0, 1]][:, 0, 0, 0].tolist(), test.pixels[0].max()) == ([1, 0], 2)


def write_unusual_files(folder) -> set[str]:
    """Write files of many kinds into `folder`; return the names of those that cannot be read."""
    colour = examples.images(1, 9, 9, 3)[0]
    write(folder / "grey.png", colour[..., 0])
    write(folder / "rgba.png", np.dstack([colour, colour[..., 0]]))
    write(folder / "16bit.png", colour[..., 0].astype(np.uint16) * 257)
    Image.fromarray(colour).convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(colour).convert("P").save(folder / "palette.PNG")
    Image.fromarray(colour).save(folder / "é \udcff.jpeg", "JPEG")  # The name is not UTF-8.
    (folder / "zero.png").write_bytes(b"")
    (folder / "text.jpg").write_text("This is not an image.")
    (folder / "cut.png").write_bytes((folder / "rgba.png").read_bytes()[:-100])
    (folder / "gone.webp").symlink_to(folder / "nothing")
    (folder / "loop").symlink_to(folder)
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "notes.txt").write_text("This is not an image.")
    return {"zero.png", "text.jpg", "cut.png", "gone.webp"}


def test_unusual_files(folder, caplog):
    bad = write_unusual_files(folder)
    with caplog.at_level("WARNING", "absl"):
        train = datasets.load(config(folder).data, "train")
    assert f"4 of 50 image files under {folder} cannot be read and are skipped" in caplog.text
    assert {name for name in bad if f"  {name}: " in caplog.text} == bad
    assert "zero.png: it is empty" in caplog.text
    test = datasets.load(config(folder).data, "test")
    assert len(train) + len(test) == 46
    for images in (train, test):
        assert images.pixels[np.arange(len(images))].shape == (len(images), 8, 8, 3)
    assert datasets.load(config(folder, num_channels=1).data, "train").pixels[0].shape == (8, 8, 1)


def test_the_index(folder, monkeypatch):
    """The second start decodes only new and changed files; a damaged index is rebuilt."""
    checked, inspect = [], folders._inspect

    def record(path):
        checked.append(path.name)
        return inspect(path)

    monkeypatch.setattr(folders, "_inspect", record)
    first = folders.index(folder)
    assert len(checked) == 40
    assert first.sizes.tolist() == [[12, 8]] * 40
    assert [again.tolist() for again in folders.index(folder)] == [
        array.tolist() for array in first
    ]
    assert len(checked) == 40
    os.utime(folder / "cats" / "0.png", ns=(1, 1))
    write(folder / "new.png", np.zeros((3, 5), np.uint8))
    (folder / "cats" / "2.png").unlink()
    index = folders.index(folder)
    assert sorted(checked[40:]) == ["0.png", "new.png"]
    assert len(index.names) == 40
    assert index.sizes[index.names.tolist().index("new.png")].tolist() == [5, 3]
    next(cache.FOLDER.iterdir()).write_bytes(b"broken")
    assert [again.tolist() for again in folders.index(folder)] == [
        array.tolist() for array in index
    ]
    assert len(checked) == 82


def test_files_that_were_unreadable_once(folder, monkeypatch):
    """They are decoded again at each start: chmod changes neither size nor modification time."""
    checked, inspect = [], folders._inspect

    def deny(path):
        checked.append(path.name)
        return ((0, 0), "Permission denied") if path.name == "3.png" else inspect(path)

    monkeypatch.setattr(folders, "_inspect", deny)
    for _ in range(2):
        assert len(folders.index(folder).good) == 39
    assert len(checked) == 41
    monkeypatch.setattr(folders, "_inspect", inspect)
    assert len(folders.index(folder).good) == 40
    monkeypatch.setattr(folders, "_inspect", None)  # A call would raise TypeError.
    assert len(folders.index(folder).good) == 40


def test_an_index_without_changes_is_not_written_again(folder, monkeypatch):
    (folder / "broken.png").write_bytes(b"no image")
    folders.index(folder)
    monkeypatch.setattr(cache, "save", None)
    assert len(folders.index(folder).good) == 40


@pytest.mark.parametrize(
    "dataset", ["array", "folder", "ffhq", "emoji", "CIFAR10", "fashion_mnist"]
)
def test_home_directories_that_are_unknown(dataset):
    message = "data.path = '~no_such_user/x': the home directory '~no_such_user' is unknown"
    refused(message, datasets.load, config("~no_such_user/x", dataset).data, "train")


def test_a_cache_that_cannot_be_written(folder, monkeypatch):
    (folder / "file").write_text("")
    monkeypatch.setattr(cache, "FOLDER", folder / "file" / "cache")
    assert len(folders.index(folder).good) == 40


def test_files_that_become_unreadable_after_indexing(folder, caplog):
    """The next readable image of the split replaces each file, with a warning."""
    images = datasets.load(config(folder).data, "train")
    names = [name for name in folders.index(folder).names if name not in held_out(folder)]
    assert len(names) == len(images)
    expected = [value(int(re.findall(r"\d+", name)[0])) for name in names]
    for position in (3, 4, len(names) - 1):
        (folder / names[position]).write_bytes(b"")
    expected[3] = expected[4] = expected[5]
    expected[-1] = expected[0]
    with caplog.at_level("WARNING", "absl"):
        pixels = images.pixels[np.arange(len(images))]
    assert pixels[:, 4, 4, 0].tolist() == expected
    for position in (3, 4, len(names) - 1):
        assert re.search(f"{names[position]}: .*; another image replaces it", caplog.text)
    shutil.rmtree(folder)
    with pytest.raises(InputError, match="can be read any more"):
        datasets.Images(preprocessing.Decoded(images.pixels._decode, 1, (8, 8, 3))).pixels[0]


def held_out(folder) -> list[str]:
    """Return the names of the files in the split 'test'."""
    names = folders.index(folder).names.tolist()
    return [names[i] for i in folders.members(names, "test", 0.25)]


def two_images(path):
    for name in ("a.png", "b.png"):
        write(path / name, np.zeros((8, 8), np.uint8))


@pytest.mark.parametrize(
    ("make", "fields", "message"),
    [
        (lambda path: path.mkdir(), {}, "no readable image .* for the split 'train'"),
        (lambda path: path.write_text(""), {}, "is not a folder"),
        (lambda path: None, {"path": ""}, "data.dataset = 'folder' requires"),
        (two_images, {"held_out": 1.0}, "data.held_out = 1.0 must"),
        (two_images, {"num_channels": 2}, "data.num_channels = 2 must"),
    ],
)
def test_folders_without_usable_images_are_errors(tmp_path, make, fields, message):
    make(tmp_path / "x")
    refused(message, datasets.load, config(tmp_path / "x", **fields).data, "train")


def test_threads_do_not_change_batches(folder, monkeypatch):
    """Batch n depends on (seed, n) only, whether images are decoded once or at every access."""
    runs = [first_batches(folder), first_batches(folder)]
    monkeypatch.setattr(preprocessing, "MEMORY", 0)
    runs.append(first_batches(folder))
    for other in runs[1:]:
        for a, b in zip(runs[0], other):
            np.testing.assert_array_equal(a.pixels, b.pixels)
    assert threading.active_count() < 100


def first_batches(folder) -> list[datasets.Batch]:
    images = datasets.load(config(folder).data, "train")
    stream = datasets.Batches(images, 16, seed=3, steps=2).iterate(0)
    return [next(stream) for _ in range(3)]


# --- arrays ---


def test_arrays(tmp_path):
    pixels, labels = examples.images(20, 8, 8), np.arange(20)
    np.save(tmp_path / "a.npy", pixels)
    np.savez(tmp_path / "b.npz", images=pixels[..., None], labels=labels)
    images = {"train_images": pixels[:15], "test_images": pixels[15:]}
    np.savez(tmp_path / "c.npz", **images, train_labels=labels[:15])
    for name in ("a.npy", "b.npz", "c.npz"):
        c = config(tmp_path / name, "array", num_channels=1).data
        train, test = (datasets.load(c, split) for split in ("train", "test"))
        everything = np.concatenate([images.pixels[:] for images in (train, test)])
        assert sorted(everything[..., 0].tolist()) == sorted(pixels.tolist())
        if name != "a.npy":
            np.testing.assert_array_equal(pixels[train.labels], train.pixels[:][..., 0])
        assert (test.labels is None) == (name != "b.npz")


REAL = {"value_range": (0.0, 1.0)}


@pytest.mark.parametrize(
    ("array", "fields", "message"),
    [
        (np.zeros((3, 8)), {}, r"float64 of shape \(3, 8\)"),
        (np.linspace(-2, 3, 192).reshape(3, 8, 8), {}, r"data.value_range='\(-2.0, 3.0\)'"),
        (np.full((3, 8, 8), np.nan), REAL, "not finite"),
        (np.full((3, 8, 8), 2.0), REAL, "from 2 to 2, beyond data.value_range"),
        (np.zeros((3, 9, 8), np.uint8), {}, r"have shape \(9, 8, 1\); data.image_size = 8"),
        (np.array([{}]), {}, "pickled Python objects"),
        (np.zeros((9, 8, 3), np.uint8), {}, r"a single image of shape \(9, 8, 3\)"),
        (np.zeros((3, 8, 8), np.uint8), {"held_out": 0.999}, "no images of the split 'train'"),
    ],
)
def test_arrays_that_do_not_fit_are_errors(tmp_path, array, fields, message):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    c = config(tmp_path / "a.npy", "array", num_channels=1, **fields)
    refused(message, datasets.load, c.data, "train")


@pytest.mark.parametrize("dataset", ["array", "folder", "ffhq", "CIFAR10", "fashion_mnist"])
@pytest.mark.parametrize(
    "make",
    [os.mkfifo, lambda path: path.symlink_to("x"), lambda path: path.symlink_to("/dev/zero")],
)
def test_paths_that_are_no_files_are_errors(tmp_path, dataset, make):
    make(tmp_path / "x")
    refused(str(tmp_path / "x"), datasets.load, config(tmp_path / "x", dataset).data, "train")


def test_folders_with_entries_that_are_no_images(folder, caplog, monkeypatch):
    """Pipes and devices are not opened, and images of too many pixels not decoded."""
    os.mkfifo(folder / "pipe.png")
    (folder / "device.png").symlink_to("/dev/zero")
    (folder / "self.png").symlink_to("self.png")
    (folder / "\x1b[2Jname.png").write_bytes(b"no image")
    write(folder / "large.png", np.zeros((30, 30), np.uint8))
    monkeypatch.setattr(image_files, "MAX_PIXELS", 800)
    with caplog.at_level("WARNING", "absl"):
        datasets.load(config(folder).data, "train")
    assert "5 of 45 image files" in caplog.text
    for problem in (
        "pipe.png is a named pipe; it must be a regular file",
        "device.png is a device; it must be a regular file",
        "self.png cannot be read: Too many levels of symbolic links",
        "large.png: the image has 30x30 pixels; the limit is 800",
        "\\x1b[2Jname.png: it is no PNG, JPEG or WebP image",
    ):
        assert problem in caplog.text
    assert "\x1b" not in caplog.text


def damage_archive(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 4] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        damage_archive,
        lambda path: path.write_bytes(b""),
        lambda path: np.savez(path, **dict(np.load(path)) | {"sizes": np.zeros((2, 2), np.int32)}),
        lambda path: np.savez(path, **dict(np.load(path)) | {"names": np.zeros(())}),
    ],
)
def test_a_damaged_index_is_made_again(folder, damage):
    before = folders.index(folder)
    damage(cache.entry_path("folder", folder))
    after = folders.index(folder)
    for name in Index._fields:
        np.testing.assert_array_equal(getattr(before, name), getattr(after, name))


def test_cached_facts_are_those_of_their_key(tmp_path):
    """The key changes with the data; arrays of the same shape may be those of older data."""

    def facts(key, value):
        found = cache.arrays("facts", tmp_path, key, lambda: {"a": np.array(value)})
        return int(found["a"])

    assert [facts("old", 1), facts("old", 2), facts("new", 3), facts("old", 4)] == [1, 1, 3, 4]


def test_a_damaged_cache_is_computed_again(tmp_path):
    pixels = np.linspace(-1, 1, 192).reshape(3, 8, 8)
    np.save(tmp_path / "a.npy", pixels)
    fields = {"num_channels": 1, "value_range": (-1.0, 1.0)}
    for entry in ({"range": np.zeros(3)}, {}, {"range": np.array("text")}):
        datasets.load(config(tmp_path / "a.npy", "array", **fields).data, "train")
        key = np.array(cache.fingerprint(tmp_path / "a.npy"))
        np.savez(cache.entry_path("range_", tmp_path / "a.npy"), **entry, key=key)
    datasets.load(config(tmp_path / "a.npy", "array", **fields).data, "train")
    assert cache.load("range_", tmp_path / "a.npy")["range"].tolist() == [-1, 1]


def test_names_of_arrays(tmp_path):
    np.savez(tmp_path / "b.npz", a=np.zeros(3), b=np.zeros(3))
    refused("a, b; name", arrays.read, "train", config(tmp_path / "b.npz", "array").data)


@pytest.mark.parametrize("centered", [True, False])
def test_real_numbers(centered):
    """The map to the model has the slope log_scale and an inverse, and adds no noise."""
    data = tiny.config(**{"data.value_range": (-3.0, 5.0), "data.centered": centered}).data
    data.uniform_dequantization = False
    scaler = datasets.make_scaler(data)
    u = np.linspace(-3, 5, 7, dtype=np.float32)
    x = scaler.dequantize(u, 0.9)
    np.testing.assert_allclose(x, np.linspace(-centered, 1, 7), atol=1e-6)
    np.testing.assert_allclose(scaler.pixels(x, dequantized=False), u, atol=1e-5)
    assert np.exp(scaler.log_scale) == pytest.approx((1 + centered) / 8)


# --- training and inspection ---


def test_round_trip_of_real_numbers(tmp_path):
    """Real numbers in two channels are mapped to the range of the model and back."""
    values = np.random.default_rng(0).normal(size=(40, 8, 8, 2))
    np.save(tmp_path / "a.npy", values)
    c = config(
        tmp_path / "a.npy",
        "array",
        num_channels=2,
        value_range=(-6.0, 6.0),
        uniform_dequantization=False,
    )
    experiment = Experiment(c)
    batch = experiment.train.batch(np.arange(16)).pixels
    x = experiment.prepare(experiment.key("train"), batch, flip=False)
    assert np.abs(x).max() < 1
    np.testing.assert_allclose(experiment.pixels(x), batch, atol=1e-5)


@pytest.mark.slow
def test_training_on_real_numbers(tmp_path):
    """Training and sampling of real numbers in two channels."""
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(40, 8, 8, 2)))
    fields = {"num_channels": 2, "value_range": (-6.0, 6.0), "uniform_dequantization": False}
    c = config(tmp_path / "a.npy", "array", **fields)
    c.training.update(n_iters=2, snapshot_freq=2, snapshot_sampling=True)
    state = training.train(c, str(tmp_path / "w"))
    assert int(state.step) == 2
    assert (tmp_path / "w" / "samples" / "step_2.png").exists()


def test_inspection(folder, tmp_path, capsys):
    bad = write_unusual_files(folder / "cats")
    result = inspection.inspect(config(folder, centered=True, held_out=0.01), str(tmp_path / "w"))
    printed = capsys.readouterr().out
    assert all(f"cats/{name}: " in printed for name in bad)
    assert "6 of them" not in printed
    assert "46 files of 8 x 8" not in printed
    assert "classes by folder: 0 cats, 1 dogs" in printed
    assert f"train: {result['images']} images (8, 8, 3), uint8" in printed
    assert f"sigma_max, for the VE SDE: {result['sigma_max']:.3g}" in printed
    for split in ("train", "test"):
        assert Image.open(tmp_path / "w" / "data" / f"{split}.png").size[0] > 60


def test_inspection_checks_the_network(tmp_path, capsys):
    """Its levels must divide the images; a line tells if none of them has self-attention."""
    changes = {"data.dataset": "noise", "model.ch_mult": (1, 1), "model.attn_resolutions": (16,)}
    changes["data.image_size"] = 13
    refused("image_size = 13", inspection.inspect, tiny.config(**changes), str(tmp_path / "w"))
    assert not (tmp_path / "w").exists()
    inspection.inspect(tiny.config(**changes | {"data.image_size": 12}), str(tmp_path))
    assert "levels of the network have the sides 12, 6, so that none has" in capsys.readouterr().out
    inspection.inspect(tiny.config(**changes | {"data.image_size": 32}), str(tmp_path))
    assert "self-attention" not in capsys.readouterr().out


def test_statistics_of_both_splits(tmp_path):
    """The result describes the training images; the contact sheets show both splits."""
    c = tiny.config(**{"data.dataset": "black_and_white"})
    result = inspection.inspect(c, str(tmp_path))
    assert (result["range"], result["mean"], result["std"]) == ((0, 0), [0], [0])
    assert result["classes"] == {i: 1 + (i < 6) for i in range(10)}
    for split, grey in (("train", 0), ("test", 255)):
        picture = np.asarray(Image.open(tmp_path / "data" / f"{split}.png"))
        assert picture[36, 36].tolist() == [grey] * 3


def test_no_picture_unless_both_splits_can_be_read(tmp_path, monkeypatch):
    load = datasets.load

    def fail(config, split):
        if split == "train":
            raise InputError("no training images")
        return load(config, split)

    monkeypatch.setattr(datasets, "load", fail)
    refused("no training images", inspection.inspect, tiny.config(), str(tmp_path / "w"))
    assert not (tmp_path / "w").exists()


def test_contact_sheets_of_few_grey_levels(tmp_path):
    """The digits have the levels 0 .. 16, which the picture shows from black to white."""
    inspection.inspect(tiny.config(), str(tmp_path))
    pixels = np.asarray(Image.open(tmp_path / "data" / "train.png")).reshape(-1, 3)
    images = pixels[(pixels != BACKGROUND).any(1)]  # Without the gutters.
    assert set(np.unique(images)) == {round(255 / 16 * level) for level in range(17)}


def test_the_largest_distance():
    x = np.random.default_rng(0).normal(size=(1200, 30)).astype(np.float32)
    x[700], x[1100] = 9, -9  # Neither is in the first block.
    assert inspection.largest_distance(x) == pytest.approx(18 * np.sqrt(30), rel=1e-6)


def test_pictures_of_real_numbers():
    grid = datasets.image_grid(np.array([-1.0, 0.0, 3.0, 1.0]).reshape(4, 1, 1, 1), min_side=1)
    assert np.asarray(grid)[4::5, 4::5, 0].tolist() == [[0, 64], [255, 128]]
    assert datasets.image_grid(np.zeros((1, 8, 8, 2), np.float32)).getpixel((9, 9)) == (0, 0, 0)
