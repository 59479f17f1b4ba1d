"""CelebA from the files of its authors: aligned and cropped faces, and a list of splits."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import ml_collections

from errors import InputError
from readers import preprocessing
from readers.batches import Images
from readers.files import check_regular, read_verified, reading, zip_members

PARTITION = "list_eval_partition.txt"
IMAGES = "img_align_celeba"
ARCHIVE = f"{IMAGES}.zip"
MD5 = {PARTITION: "d32c9cbf5e040fd4025c592c306e6668"}
"""The published checksum. The archive has a CRC-32 of every image."""
NUMBERS = {"train": "0", "test": "1"}  # As in the official code, "test" is the validation split.
MAX_IMAGE = 2**24  # bytes of an encoded image


def exists(place: Path) -> bool:
    """Return whether a folder contains the list of splits, in it or in its subfolder Eval."""
    return _find(place, "Eval", PARTITION).exists()


def read(split: str, config: ml_collections.ConfigDict, place: Path) -> Images:
    """Return the images of a split in the order of the list: the central 140x140, resized.

    They are in img_align_celeba.zip or the folder img_align_celeba, which is in `place` or in its
    subfolder Img.

    Raises InputError if files are missing or damaged.
    """
    names = _names(place, split)
    load = _loader(place, names)
    pixels = preprocessing.from_files(
        len(names),
        lambda index: load(names[index]),
        config,
        preprocessing.celeba,
        lambda index: reading(f"{place}: {names[index]}", "Download it again."),
    )
    return Images(pixels)


def _find(place: Path, subfolder: str, name: str) -> Path:
    path = place / name
    return path if path.exists() else place / subfolder / name


def _names(place: Path, split: str) -> list[str]:
    """Return the file names of a split, from lines such as "000001.jpg 0"."""
    lines = read_verified(_find(place, "Eval", PARTITION), MD5[PARTITION]).decode().splitlines()
    return [line.split()[0] for line in lines if line.split()[1:] == [NUMBERS[split]]]


def _loader(place: Path, names: list[str]) -> Callable[[str], bytes | Path]:
    """Return a function from a name to an encoded image or its path, all of which exist."""
    path, folder = _find(place, "Img", ARCHIVE), _find(place, "Img", IMAGES)
    if path.exists():
        check_regular(path)
        with reading(path, kind=" as .zip"):
            archive = zipfile.ZipFile(path)
            sizes = {name: each.file_size for name, each in zip_members(path, archive).items()}
    else:
        archive = None
        sizes = {f"{IMAGES}/{name}": 1 for name in names if (folder / name).is_file()}
    missing = [name for name in names if not 0 < sizes.get(f"{IMAGES}/{name}", 0) <= MAX_IMAGE]
    if missing:
        raise InputError(
            f"{place} lacks {len(missing)} images of at most {MAX_IMAGE:,} bytes, such as "
            f"{IMAGES}/{missing[0]}; {ARCHIVE} or the folder {IMAGES} must contain them. Download "
            f"it again."
        )
    return lambda name: archive.read(f"{IMAGES}/{name}") if archive else folder / name
