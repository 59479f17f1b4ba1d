"""Custom images and arrays: unusual files, splits, classes, the index, training and inspection."""

import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image

import datasets
from commands import inspection
from errors import InputError
from readers import cache, folders, image_files, preprocessing
from tests import examples, tiny
from tests.examples import data
from tests.refusal import refused

pytestmark = pytest.mark.usefixtures("own_cache")


def config(where, dataset="folder", **changes):
    """Return a config for color images of 8x8 pixels in the file or folder `where`."""
    fields = {"dataset": dataset, "path": str(where), "image_size": 8, "num_channels": 3}
    fields |= {"held_out": 0.25} | changes
    return tiny.config(**{f"data.{name}": value for name, value in fields.items()})


def load(where, split="train", dataset="folder", **changes):
    return datasets.load(config(where, dataset, **changes).data, split)


def write(path, array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def folder(tmp_path):
    """Forty images in two nested folders; cats are dark, dogs are bright."""
    for i in range(40):
        subfolder = ("cats", "dogs/deep/er")[i % 2]
        write(tmp_path / "images" / subfolder / f"{i}.png", np.full((8, 12, 3), value(i), np.uint8))
    return tmp_path / "images"


def value(i: int) -> int:
    """The gray level of image i of `folder`: below 100 for cats, above for dogs."""
    return 10 + i + 100 * (i % 2)


# --- folders ---


def test_splits_and_classes(folder):
    train, test = (load(folder, split) for split in ("train", "test"))
    values = [images.pixels[:][:, 0, 0, 0] for images in (train, test)]
    assert sorted(np.concatenate(values).tolist()) == sorted(map(value, range(40)))
    assert 4 <= len(test) <= 16
    for images, grey_levels in zip((train, test), values):
        np.testing.assert_array_equal(images.labels, grey_levels >= 100)
    assert len(load(folder, num_classes=2)) == len(train)
    refused("data.num_classes = 1", load, folder, num_classes=1)
    # Held-out files remain held out when others are added.
    write(folder / "cats" / "new.png", np.zeros((8, 8, 3), np.uint8))
    assert set(values[1].tolist()) <= set(load(folder, "test").pixels[:][:, 0, 0, 0].tolist())
    write(folder / "top.png", np.zeros((8, 8, 3), np.uint8))
    assert load(folder).labels is None  # One image is in no folder.
    names = [f"{i}.png" for i in range(50)]
    train, test = (folders.members(names, split, 1e-9) for split in ("train", "test"))
    assert len(test) == 1  # At least one image is held out.
    assert sorted([*train, *test]) == list(range(50))


def test_given_splits(tmp_path):
    for i, name in enumerate(["train/b/0.png", "train/a/1.png", "test/b/2.png"]):
        write(tmp_path / name, np.full((8, 8), i, np.uint8))
    train, test = (load(tmp_path, split) for split in ("train", "test"))
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 1], [1])
    assert (train.pixels[[0, 1]][:, 0, 0, 0].tolist(), test.pixels[0].max()) == ([1, 0], 2)


def write_unusual_files(folder) -> dict[str, str]:
    """Write files of many kinds into `folder`; return the problems of those that are unreadable."""
    color = examples.images(1, 9, 9, 3)[0]
    write(folder / "grey.png", color[..., 0])
    write(folder / "rgba.png", np.dstack([color, color[..., 0]]))
    write(folder / "16bit.png", color[..., 0].astype(np.uint16) * 257)
    Image.fromarray(color).convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(color).convert("P").save(folder / "palette.PNG")
    Image.fromarray(color).save(folder / "é \udcff.jpeg", "JPEG")  # The name is not UTF-8.
    (folder / "zero.png").write_bytes(b"")
    (folder / "text.jpg").write_text("This is not an image.")
    (folder / "cut.png").write_bytes((folder / "rgba.png").read_bytes()[:-100])
    (folder / "gone.webp").symlink_to(folder / "nothing")
    (folder / "loop").symlink_to(folder)
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "notes.txt").write_text("This is not an image.")
    os.mkfifo(folder / "pipe.png")
    (folder / "device.png").symlink_to("/dev/zero")
    (folder / "self.png").symlink_to("self.png")
    (folder / "\x1b[2Jname.png").write_bytes(b"no image")
    write(folder / "large.png", np.zeros((30, 30), np.uint8))
    problems = {"zero.png": "it is empty", "text.jpg": "it is not a PNG", "cut.png": "truncated"}
    problems |= {"gone.webp": "No such file", "pipe.png": "a named pipe", "device.png": "device"}
    problems |= {"self.png": "Too many levels of symbolic links", "\\x1b[2Jname.png": "not a PNG"}
    return problems | {"large.png": "the image has 30x30 pixels; the limit is 800"}


def test_unusual_files(folder, caplog, monkeypatch):
    """Unreadable files are listed and skipped; pipes, devices and large images are not opened."""
    problems = write_unusual_files(folder)
    monkeypatch.setattr(image_files, "MAX_PIXELS", 800)
    with caplog.at_level("WARNING", "absl"):
        train, test = (load(folder, split) for split in ("train", "test"))
    assert f"9 of 55 image files under {folder} cannot be read and are skipped" in caplog.text
    for name, problem in problems.items():
        assert re.search(f"  {re.escape(name)}: .*{problem}", caplog.text), name
    assert "\x1b" not in caplog.text
    assert len(train) + len(test) == 46
    for images in (train, test):
        assert images.pixels[:].shape == (len(images), 8, 8, 3)
    assert load(folder, num_channels=1).pixels[0].shape == (8, 8, 1)


def test_the_index(folder, monkeypatch):
    """The second start decodes only files that are new, changed, or were unreadable.

    chmod changes neither size nor modification time. A damaged index is made again, and one without
    changes is not written.
    """
    checked, inspect, denied = [], folders._inspect, {"3.png"}

    def record(path):
        checked.append(path.name)
        return ((0, 0), "Permission denied") if path.name in denied else inspect(path)

    def check(*names):
        """Read the index; the files that are decoded are those called `names`."""
        checked.clear()
        index = folders.index(folder)
        assert sorted(checked) == sorted(names)
        return index

    monkeypatch.setattr(folders, "_inspect", record)
    first = check(*(f"{i}.png" for i in range(40)))
    assert (len(first.good), len(first.names)) == (39, 40)
    with monkeypatch.context() as patch:
        patch.setattr(cache, "save", None)  # A call would raise TypeError.
        assert len(check("3.png").good) == 39
    denied.clear()
    assert len(check("3.png").good) == 40
    assert check().sizes.tolist() == [[12, 8]] * 40
    os.utime(folder / "cats" / "0.png", ns=(1, 1))
    write(folder / "new.png", np.zeros((3, 5), np.uint8))
    (folder / "cats" / "2.png").unlink()
    index = check("0.png", "new.png")
    assert len(index.names) == 40
    assert index.sizes[index.names.tolist().index("new.png")].tolist() == [5, 3]
    path = cache.entry_path("index", folder)
    path.write_bytes(path.read_bytes()[:500])
    check(*(name.rpartition("/")[2] for name in index.names.tolist()))
    (folder / "file").write_text("")
    monkeypatch.setattr(cache, "FOLDER", folder / "file" / "cache")  # It cannot be written.
    assert len(folders.index(folder).good) == 40


def test_files_that_become_unreadable_after_indexing(folder, caplog):
    """The next readable image of the split replaces each file, with a warning."""
    images = load(folder)
    names = folders.index(folder).names.tolist()
    names = [names[i] for i in folders.members(names, "train", 0.25)]
    expected = [value(int(re.findall(r"\d+", name)[0])) for name in names]
    damaged = (3, 4, len(names) - 1)
    for position in damaged:
        (folder / names[position]).write_bytes(b"")
    expected[3] = expected[4] = expected[5]
    expected[-1] = expected[0]
    with caplog.at_level("WARNING", "absl"):
        pixels = images.pixels[:]
    assert pixels[:, 4, 4, 0].tolist() == expected
    for position in damaged:
        assert re.search(f"{names[position]}: .*; another image replaces it", caplog.text)
    shutil.rmtree(folder)
    with pytest.raises(InputError, match="can be read any more"):
        datasets.Images(preprocessing.Decoded(images.pixels._decode, 1, (8, 8, 3))).pixels[0]


def two_images(path):
    for name in ("a.png", "b.png"):
        write(path / name, np.zeros((8, 8), np.uint8))


@pytest.mark.parametrize(
    ("make", "fields", "message"),
    [
        (lambda path: path.mkdir(), {}, "no readable image .* for the split 'train'"),
        (lambda path: path.write_text(""), {}, "is not a folder"),
        (lambda path: None, {"path": ""}, "data.dataset = 'folder' requires"),
        (two_images, {"num_channels": 2}, "data.num_channels = 2 must"),
    ],
)
def test_folders_without_usable_images_are_errors(tmp_path, make, fields, message):
    make(tmp_path / "x")
    refused(message, load, tmp_path / "x", **fields)


def test_threads_do_not_change_batches(folder, monkeypatch):
    """Batch n depends on (seed, n) only, whether images are decoded once or at every access."""

    def first_batches():
        stream = datasets.Batches(load(folder), 16, seed=3, steps=2).iterate(0)
        return [next(stream).pixels for _ in range(3)]

    runs = [first_batches(), first_batches()]
    monkeypatch.setattr(preprocessing, "MEMORY", 0)
    for other in (runs[1], first_batches()):
        np.testing.assert_array_equal(runs[0], other)


MAKERS = {
    "pipe": os.mkfifo,
    "link": lambda path: path.symlink_to("link"),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "nothing": lambda path: None,
}
KINDS = ["array", "folder", "ffhq", "emoji", "CIFAR10", "SVHN", "lsun", "fashion_mnist"]


@pytest.mark.parametrize("dataset", KINDS)
def test_paths_that_are_refused(tmp_path, dataset):
    for name, make in MAKERS.items():
        make(tmp_path / name)
    names = [*MAKERS, "a" * 300, "a/" * 3000]
    for where in (*(f"{tmp_path}/{name}" for name in names), "~no_such_user/x"):
        c = data(dataset, where, category="bedroom")
        assert where.rstrip("/")[:200] in refused("", datasets.load, c, "train")


# --- arrays ---


def test_arrays(tmp_path):
    """In .npy and .npz files, with given splits or not, in either order of the axes in memory."""
    pixels, labels = examples.images(20, 8, 8), np.arange(20)
    np.save(tmp_path / "a.npy", pixels)
    np.savez(tmp_path / "b.npz", images=pixels[..., None], labels=labels)
    images = {"train_images": pixels[:15], "test_images": pixels[15:]}
    np.savez(tmp_path / "c.npz", **images, train_labels=labels[:15])
    np.save(tmp_path / "d.npy", np.asfortranarray(pixels))
    np.savez(tmp_path / "e.npz", np.asfortranarray(pixels))
    for name in ("a.npy", "b.npz", "c.npz", "d.npy", "e.npz"):
        train, test = (
            load(tmp_path / name, split, "array", num_channels=1) for split in ("train", "test")
        )
        everything = np.concatenate([images.pixels[:] for images in (train, test)])
        assert sorted(everything[..., 0].tolist()) == sorted(pixels.tolist())
        assert (train.labels is None) == (name[0] not in "bc")
        assert (test.labels is None) == (name != "b.npz")
        if train.labels is not None:
            np.testing.assert_array_equal(pixels[train.labels], train.pixels[:][..., 0])


REAL = {"value_range": (0.0, 1.0)}


@pytest.mark.parametrize(
    ("array", "fields", "message"),
    [
        (np.zeros((3, 8)), {}, r"float64 of shape \(3, 8\)"),
        (np.linspace(-2, 3, 192).reshape(3, 8, 8), {}, r"data.value_range='\(-2.0, 3.0\)'"),
        (np.full((3, 8, 8), np.nan), REAL, "not finite"),
        (np.full((3, 8, 8), 2.0), REAL, "from 2 to 2; data.value_range"),
        (np.zeros((3, 9, 8), np.uint8), {}, r"have shape \(9, 8, 1\); data.image_size = 8"),
        (np.array([{}]), {}, "pickled Python objects"),
        (np.zeros((9, 8, 3), np.uint8), {}, r"have shape \(8, 3, 1\); data.image_size = 8"),
        (np.zeros((3, 8, 8), np.uint8), {"held_out": 0.999}, "no images of the split 'train'"),
        ({"a": np.zeros(3), "b": np.zeros(3)}, {}, r"a .*, b .*; name"),
    ],
)
def test_arrays_that_do_not_fit_are_errors(tmp_path, array, fields, message):
    with open(tmp_path / "a.npy", "wb") as file:
        if isinstance(array, dict):
            np.savez(file, **array)
        else:
            np.save(file, array, allow_pickle=True)
    refused(message, load, tmp_path / "a.npy", dataset="array", num_channels=1, **fields)


def test_a_data_set_of_real_numbers_states_their_range(monkeypatch):
    images = datasets.Images(np.ones((2, 8, 8, 1), np.float32))
    monkeypatch.setitem(datasets.DATASETS, "reals", lambda split, config: images)
    named = {"data.dataset": "reals"}
    refused(
        "'reals' are float32; they must be uint8", datasets.load, tiny.config(**named).data, "test"
    )
    stated = tiny.config(**named, **{"data.value_range": (0.0, 1.0)}).data
    assert datasets.load(stated, "test") is images


@pytest.mark.parametrize("centered", [True, False])
def test_real_numbers(centered):
    """The map to the model has the slope log_scale and an inverse, and adds no noise."""
    fields = {"data.value_range": (-3.0, 5.0), "data.centered": centered}
    scaler = datasets.make_scaler(tiny.config(**fields).data)
    u = np.linspace(-3, 5, 7, dtype=np.float32)
    x = scaler.dequantize(u, 0.9)
    np.testing.assert_allclose(x, np.linspace(-centered, 1, 7), atol=1e-6)
    np.testing.assert_allclose(scaler.pixels(x, dequantized=False), u, atol=1e-5)
    assert np.exp(scaler.log_scale) == pytest.approx((1 + centered) / 8)


# --- training and inspection ---


@pytest.mark.slow
def test_inspection(folder, tmp_path, capsys, caplog):
    bad = write_unusual_files(folder / "cats")
    result = inspection.inspect(config(folder, centered=True, held_out=0.01), str(tmp_path / "w"))
    printed = capsys.readouterr().out
    assert all(printed.count(f"cats/{name}: ") == 1 for name in bad if name != "large.png")
    assert "cannot be read" not in caplog.text  # Loading them lists them again.
    assert "classes by folder: 0 cats, 1 dogs" in printed
    assert f"train: {result['images']} images (8, 8, 3), uint8" in printed
    assert f"sigma_max, for the VE SDE: {result['sigma_max']:.3g}" in printed
    for split in ("train", "test"):
        assert Image.open(tmp_path / "w" / "data" / f"{split}.png").size[0] > 60


def test_inspection_checks_the_network(tmp_path):
    """Its levels must divide the images."""
    changes = {"data.dataset": "noise", "model.ch_mult": (1, 1), "data.image_size": 13}
    refused("image_size = 13", inspection.inspect, tiny.config(**changes), str(tmp_path / "w"))
    assert not (tmp_path / "w").exists()


def test_statistics_of_both_splits(tmp_path):
    """The result describes the training images; the contact sheets show both splits."""
    c = tiny.config(**{"data.dataset": "black_and_white"})
    result = inspection.inspect(c, str(tmp_path))
    assert (result["range"], result["mean"], result["std"]) == ((0, 0), [0], [0])
    assert result["classes"] == {i: 1 + (i < 6) for i in range(10)}
    for split, grey in (("train", 0), ("test", 255)):
        picture = np.asarray(Image.open(tmp_path / "data" / f"{split}.png"))
        assert picture[36, 36].tolist() == [grey] * 3


def test_the_largest_distance():
    x = np.random.default_rng(0).normal(size=(1200, 30)).astype(np.float32)
    x[700], x[1100] = 9, -9
    assert inspection.largest_distance(x) == pytest.approx(18 * np.sqrt(30), rel=1e-6)


def test_pictures_of_real_numbers():
    grid = datasets.image_grid(np.array([-1.0, 0.0, 3.0, 1.0]).reshape(4, 1, 1, 1), min_side=1)
    assert np.asarray(grid)[4::5, 4::5, 0].tolist() == [[0, 64], [255, 128]]
    assert datasets.image_grid(np.zeros((1, 8, 8, 2), np.float32)).getpixel((9, 9)) == (0, 0, 0)
