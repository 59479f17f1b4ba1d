"""Published data sets from the files of their authors, in the order of these files.

`read_NAME(split, config.data, place)` returns the images of a split, not preprocessed, and their
labels; None if the folder `place` has none of the files. All raise exceptions of many types if
files are damaged, or InputError if, where checksums are published, they are other ones.
"""

from __future__ import annotations

import gzip
import io
import math
import struct
import tarfile
import zipfile
from pathlib import Path

import ml_collections
import numpy as np

from errors import InputError, expand_home
from readers import pickles
from readers.batches import Images
from readers.files import (
    check_expansion,
    check_labels,
    check_regular,
    read_verified,
    reading,
    zip_members,
)
from readers.image_sizes import square_side
from readers.lmdb import Lmdb
from readers.preprocessing import Decoded, Files
from readers.records import TFRecords, parse_example

Config = ml_collections.ConfigDict
Content = tuple[np.ndarray | Files, np.ndarray | None]
"""Images and labels."""
AGAIN = "Download it again."

CIFAR_ARCHIVE, CIFAR_FOLDER = "cifar-10-python.tar.gz", "cifar-10-batches-py"
CIFAR_BATCHES = {"train": [f"data_batch_{n}" for n in range(1, 6)], "test": ["test_batch"]}
CELEBA_LIST, CELEBA_IMAGES = "list_eval_partition.txt", "img_align_celeba"
SVHN_FILES = {"train": "train_32x32.mat", "test": "test_32x32.mat"}
MD5 = {  # The published checksums.
    CIFAR_ARCHIVE: "c58f30108f718f92721af3b95e74349a",
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
    "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
    CELEBA_LIST: "d32c9cbf5e040fd4025c592c306e6668",
}


def _find(place: Path, name: str, *subfolders: str) -> Path | None:
    """Return the path of a file or folder that is in `place`, or in a subfolder."""
    paths = [place / name, *(place / subfolder / name for subfolder in subfolders)]
    return next((path for path in paths if path.exists()), None)


# --- CIFAR-10, "python version" ---

ARRAY_NAMES: pickles.Names = dict.fromkeys(
    ("numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype")
)
"""The names in a pickled array of Python 2."""


def read_cifar(split: str, config: Config, place: Path) -> Content | None:
    """Read the archive or its content; `place` may be either, or a folder with one of them."""
    names, last = CIFAR_BATCHES[split], _find(place, CIFAR_BATCHES["test"][0], CIFAR_FOLDER)
    archive = place if place.name == CIFAR_ARCHIVE else _find(place, CIFAR_ARCHIVE)
    if last:
        contents = [read_verified(last.with_name(name), MD5[name]) for name in names]
    elif archive:
        content = io.BytesIO(read_verified(archive, MD5[CIFAR_ARCHIVE]))
        with tarfile.open(fileobj=content, mode="r:gz") as opened:
            files = [opened.extractfile(f"{CIFAR_FOLDER}/{name}") for name in names]
            contents = [file.read() for file in files if file]
    else:
        return None
    pixels, labels = (np.concatenate(each) for each in zip(*map(_parse_batch, contents)))
    return pixels, labels


def _parse_batch(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels (n, 32, 32, 3) and labels (n,) of a published file, where channels come first.

    It describes the array by the state (version, shape, type, whether columns come first, data).
    """
    batch = pickles.Reader().load(io.BytesIO(content), ARRAY_NAMES)
    _, shape, _, is_fortran, data = batch["data"].state
    flat = np.frombuffer(data.encode("latin-1"), np.uint8)
    planes = flat.reshape(shape, order="F" if is_fortran else "C").reshape(-1, 3, 32, 32)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), np.array(batch["labels"], np.int32)


# --- SVHN, MATLAB files of cropped digits ---


def read_svhn(split: str, config: Config, place: Path) -> Content | None:
    """Read the file of a split."""
    from scipy.io import loadmat  # Imported only for this data set.

    name = SVHN_FILES[split]
    if not any(_find(place, each) for each in SVHN_FILES.values()):
        return None
    content = io.BytesIO(read_verified(place / name, MD5[name]))
    arrays = loadmat(content, variable_names=("X", "y"))
    pixels = np.ascontiguousarray(arrays["X"].transpose(3, 0, 1, 2))
    # The label 10 stands for the digit 0.
    return pixels, arrays["y"].reshape(-1).astype(np.int32) % 10


# --- CelebA: aligned and cropped faces, and a list of splits ---

CELEBA_NUMBERS = {"train": "0", "test": "1"}  # As officially, "test" is the validation split.
MAX_FACE = 2**24  # bytes of an encoded image


def read_celeba(split: str, config: Config, place: Path) -> Content | None:
    """Read img_align_celeba.zip, or the images in a folder."""
    listed = _find(place, CELEBA_LIST, "Eval")
    if not listed:
        return None
    # Lines of the list are such as "000001.jpg 0".
    lines = map(str.split, read_verified(listed, MD5[CELEBA_LIST]).decode().splitlines())
    names = [f"{CELEBA_IMAGES}/{name}" for name, part in lines if part == CELEBA_NUMBERS[split]]
    path = _find(place, f"{CELEBA_IMAGES}.zip", "Img")
    folder = _find(place, CELEBA_IMAGES, "Img") or place / CELEBA_IMAGES
    if path:
        check_regular(path)
        with reading(path, AGAIN, " as .zip"):
            archive = zipfile.ZipFile(path)
            sizes = {name: each.file_size for name, each in zip_members(path, archive).items()}
            found, encoded = {name for name in sizes if sizes[name] <= MAX_FACE}, archive.read
    else:
        found = {name for name in names if (folder.parent / name).is_file()}
        encoded = folder.parent.joinpath
    missing = [name for name in names if name not in found]
    if missing:
        raise InputError(
            f"{place} lacks {len(missing)} images of at most {MAX_FACE:,} bytes, such as "
            f"{missing[0]}; {CELEBA_IMAGES}.zip or the folder {CELEBA_IMAGES} must contain them. "
            f"{AGAIN}"
        )
    return Files(len(names), lambda index: encoded(names[index]), place), None


# --- LSUN: a database for each category and split ---


def read_lsun(split: str, config: Config, place: Path) -> Content | None:
    """Read the database of a split of data.category."""
    if not any(place.glob("*_lmdb/data.mdb")):
        return None
    part = "train" if split == "train" else "val"
    path = place / f"{config.category}_{part}_lmdb" / "data.mdb"
    files = Lmdb(path)
    if not len(files):
        raise InputError(f"{path} contains no images. {AGAIN}")
    return Files(len(files), files.__getitem__, path), None


# --- Fashion-MNIST as IDX files, the format of MNIST ---

DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # Where dataset-fashion-mnist installs it.
MAX_SIDE = 1024  # pixels


def read_idx(split: str, config: Config, place: Path) -> Content | None:
    """Read the images and labels of a split from files that may be compressed."""
    if not any(place.glob("*-idx3-ubyte*")):
        return None
    prefix = "train" if split == "train" else "t10k"
    images, _ = read_idx_array(place, f"{prefix}-images-idx3-ubyte", 3)
    labels, path = read_idx_array(place, f"{prefix}-labels-idx1-ubyte", 1)
    return images[..., None], check_labels(labels, len(images), 10, path)


def read_idx_array(folder: Path, name: str, rank: int) -> tuple[np.ndarray, Path]:
    """Return the uint8 array with `rank` axes in FOLDER/NAME or FOLDER/NAME.gz, and the path."""
    path = _find(folder, name) or folder / f"{name}.gz"
    check_regular(path)
    with (
        reading(path, AGAIN, " as IDX"),
        gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file,
    ):
        if file.read(4) != bytes([0, 0, 8, rank]):  # 8 is the type of bytes.
            raise ValueError(f"it is not an array of bytes with {rank} axes")
        shape = struct.unpack(f">{rank}I", file.read(4 * rank))
        if 0 in shape or max(shape[1:], default=1) > MAX_SIDE:
            raise ValueError(f"the shape is {shape}; images have sides of 1 to {MAX_SIDE} pixels")
        size = math.prod(shape)
        check_expansion(path, size)
        data = file.read(size + 1)
        if len(data) != size:
            raise ValueError(f"it does not have the size that its shape {shape} states")
        return np.frombuffer(data, np.uint8).reshape(shape), path


# --- FFHQ and CelebA-HQ: TFRecord files, one for each resolution ---


def read_faces(split: str, config: Config) -> Images:
    """Return all images of data.path or data.tfrecords_path, for either split, as officially."""
    size, channels = square_side(config), config.num_channels
    shape, ending = (channels, size, size), f"-r{size.bit_length() - 1:02d}.tfrecords"
    field = "path" if config.path else "tfrecords_path"
    path = expand_home(config.get(field, ""), f"data.{field}")
    if path.is_dir():  # Without a path, it is the current one, which nobody has named.
        matches = sorted(path.glob(f"*{ending}")) if path != Path() else []
        path = matches[0] if matches else path / f"*{ending}"
    if not path.exists():
        raise InputError(
            f"data.dataset = {config.dataset!r}: the file {path} does not exist. Name the TFRecord "
            f"file of this resolution (*{ending}), or its folder, with --config.data.path=PATH. "
            f"docs/data.md states where to download it."
        )
    check_regular(path, "data.path")
    records = TFRecords([path])

    def decode(index: int) -> np.ndarray:
        with reading(f"{path}: record {index}"):
            example = parse_example(records[index])
            found = tuple(example.integers["shape"])
            if found != shape:
                raise ValueError(
                    f"the image is {found}, channels first; data.image_size = {size} and "
                    f"data.num_channels = {channels} require {shape}. The file of this resolution "
                    f"is *{ending}"
                )
            planes = np.frombuffer(example.data["data"], np.uint8).reshape(shape)
            return np.ascontiguousarray(planes.transpose(1, 2, 0))

    return Images(Decoded(decode, len(records), (size, size, channels)))
