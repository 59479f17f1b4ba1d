"""Images of one's own: a folder of files, checked once, before training, and indexed."""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import ml_collections
import numpy as np
from absl import logging
from tqdm import tqdm

from errors import InputError, brief
from readers import cache, preprocessing

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
NAMED = 10  # bad files that a warning lists


class Index(NamedTuple):
    """The image files under a folder, sorted by name.

    names: (N,) relative paths. states: (N,) size and time of change. sizes: (N, 2) width and height, upright; 0 for a
    file that cannot be read, whose problem is in `problems` (N,), else ''.
    """

    names: np.ndarray
    states: np.ndarray
    sizes: np.ndarray
    problems: np.ndarray

    @property
    def good(self) -> np.ndarray:
        """Numbers of the files that can be read."""
        return np.flatnonzero(self.problems == "")


def index(folder: Path) -> Index:
    """Lists the image files under `folder` and decodes those that are new or changed since the last time.

    The index is kept in the cache, by the folder's path. Raises InputError if there is no such folder.
    """
    if not folder.is_dir():
        raise InputError(
            f"data.path = {str(folder)!r} is not a folder; name one with --config.data.path=DIR."
        )
    found = dict(sorted(_walk(folder, "")))
    kept = cache.load("folder", folder)
    old = Index(**kept) if kept.keys() == set(Index._fields) else Index(*[np.array([])] * 4)
    known = {(name, state): (size, problem) for name, state, size, problem in zip(*old)}
    new = [name for name, state in found.items() if (name, state) not in known]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(lambda name: _inspect(folder / name), new)
        quiet = None if new else True  # On a terminal, and if there is something to do.
        checked = dict(
            zip(new, tqdm(results, "checking images", len(new), unit="file", disable=quiet))
        )
    entries = [
        checked[name] if name in checked else known[name, state] for name, state in found.items()
    ]
    sizes = np.array([size for size, _ in entries], np.int32).reshape(-1, 2)
    arrays = (
        np.array(list(found), str),
        np.array(list(found.values()), str),
        sizes,
        np.array([p for _, p in entries], str),
    )
    result = Index(*arrays)
    if new or len(found) != len(old.names):
        cache.save("folder", folder, result._asdict())
    return result


def _walk(folder: Path, prefix: str) -> list[tuple[str, str]]:
    """Relative names and states of the image files; hidden ones are passed over, links followed, never in circles."""
    files, stack, seen = [], [(folder, prefix)], set()
    while stack:
        here, prefix = stack.pop()
        status = here.stat()
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in _list(here):
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                stack.append((Path(entry.path), f"{prefix}{entry.name}/"))
            elif entry.name.lower().endswith(SUFFIXES):
                files.append((prefix + entry.name, _state(entry)))
    return files


def _list(folder: Path) -> list[os.DirEntry]:
    try:
        return list(os.scandir(folder))
    except OSError as error:
        raise InputError(
            f"{folder}, a folder of images, cannot be listed: {brief(error)}."
        ) from error


def _state(entry: os.DirEntry) -> str:
    try:
        return f"{entry.stat().st_size} {entry.stat().st_mtime_ns}"
    except OSError:
        return "a link to nothing"


def _inspect(path: Path) -> tuple[tuple[int, int], str]:
    """Width and height of an image file, and what is wrong with it, if anything."""
    try:
        return preprocessing.decode(path, 3).size, ""
    except Exception as error:  # Decoders raise whatever they like on damaged files.
        return (0, 0), brief(
            error
        ) if path.exists() and path.stat().st_size else "the file is empty"


# --- data sets --------------------------------------------------------------------------------------------------------


def read(
    split: str, config: ml_collections.ConfigDict
) -> tuple[preprocessing.Decoded, np.ndarray | None]:
    """Pixels and labels of a split, 'train' or 'test', of the images under data.path, nested as they may be.

    If there are folders train/ and test/, these are the splits; else data.held_out of the images are 'test', chosen by
    their names. If all images lie in folders (of their split), the names of the uppermost ones, sorted, are the
    classes. Files that cannot be read are left out, with a warning. Images are cropped to a square and resized.

    Raises InputError if there is no such folder, or no image for the split.
    """
    folder, channels, size = Path(config.path).expanduser(), config.num_channels, config.image_size
    if not config.path:
        raise InputError(
            "data.dataset = 'folder' needs the folder of the images: --config.data.path=DIR."
        )
    files = index(folder)
    if len(files.good) < len(files.names) and split == "train":
        logging.warning("%s", problems(files, folder, NAMED))
    names = files.names[files.good].tolist()
    chosen, labels = members(names, split, config.held_out), classes(names)[1]
    if not len(chosen):
        kinds = ", ".join(SUFFIXES)
        raise InputError(
            f"data.path = {config.path!r} holds no readable image ({kinds}) for the split {split!r}."
        )

    def decode(number: int) -> np.ndarray:
        for step in range(
            len(chosen)
        ):  # Another image takes the place of one that went bad after it was indexed.
            path = folder / names[chosen[(number + step) % len(chosen)]]
            try:
                return preprocessing.to_array(
                    preprocessing.crop_resize(preprocessing.decode(path, channels), size)
                )
            except Exception as error:  # Decoders raise whatever they like on damaged files.
                logging.log_first_n(
                    logging.WARNING, "%s: %s; another takes its place.", NAMED, path, brief(error)
                )
        raise InputError(f"No image of data.path = {config.path!r} can be read any more.")

    return preprocessing.Decoded(
        decode, len(chosen), (size, size, channels)
    ), None if labels is None else labels[chosen]


def members(names: Sequence[str], split: str, held_out: float) -> np.ndarray:
    """Which of the images belong to a split, by number; see `read`."""
    if not 0 < held_out < 1:
        raise InputError(f"data.held_out = {held_out} must lie between 0 and 1.")
    tops = np.array([name.partition("/")[0] if "/" in name else "" for name in names])
    if {"train", "test"} <= set(tops):
        return np.flatnonzero(tops == split)
    draws = np.array([zlib.crc32(os.fsencode(name)) / 2**32 for name in names])
    test = (draws < held_out) | (draws == draws.min(initial=1.0))  # There is always one.
    return np.flatnonzero(test == (split == "test"))


def classes(names: Sequence[str]) -> tuple[list[str], np.ndarray | None]:
    """Names of the classes and labels (N,), by the uppermost folders; ([], None) if some image lies in none."""
    parts = [name.split("/")[:-1] for name in names]
    if {"train", "test"} <= {part[0] for part in parts if part}:
        parts = [part[1:] for part in parts if part and part[0] in ("train", "test")]
        if len(parts) < len(names):
            return [], None
    if not all(parts):
        return [], None
    known, labels = np.unique([part[0] for part in parts], return_inverse=True)
    return known.tolist(), labels.astype(np.int32)


def problems(files: Index, folder: Path, limit: int) -> str:
    """A sentence with the number of files that cannot be read, and the first ones by name."""
    bad = np.flatnonzero(files.problems != "")
    lines = [f"  {printable(files.names[i])}: {files.problems[i]}" for i in bad[:limit]]
    more = (
        [f"  and {len(bad) - limit} more; --mode=inspect_data lists all"]
        if len(bad) > limit
        else []
    )
    head = f"{len(bad)} of {len(files.names)} image files under {folder} cannot be read and are left out:"
    return "\n".join([head, *lines, *more])


def printable(name: str) -> str:
    """A file's name that any terminal can show."""
    return name.encode("utf-8", "backslashreplace").decode()
