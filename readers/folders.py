"""Custom images: a folder of image files.

All files are decoded once, before training, and the result is kept in an index. Subfolders may
define classes and splits.
"""

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

from errors import InputError, brief, expand_home, printable
from readers import cache, image_files
from readers.batches import Images
from readers.image_sizes import image_shape
from readers.preprocessing import Decoded, crop_resize

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MAX_LISTED = 10  # Unreadable files that a warning lists.
LISTED: set[Path] = set()  # The folders of which --mode=inspect_data has listed all.
SPLITS = {"train", "test"}


class Index(NamedTuple):
    """The N image files under a folder, sorted by name."""

    names: np.ndarray  # relative paths
    states: np.ndarray  # sizes and modification times, as text
    sizes: np.ndarray  # width and height in pixels (N, 2), rotated; 0 for unreadable files
    problems: np.ndarray  # reasons why files are unreadable; '' for readable ones

    @property
    def good(self) -> np.ndarray:
        """Indices of the readable files."""
        return np.flatnonzero(self.problems == "")


def index(folder: Path) -> Index:
    """List the image files under `folder`, and decode those that are new, changed or unreadable.

    The index is kept in the cache. Raises InputError if the folder does not exist.
    """
    if not folder.is_dir():
        raise InputError(
            f"data.path = {str(folder)!r} is not a folder; name one with --config.data.path=DIR."
        )
    states = dict(sorted(walk(folder)))
    cached = cache.load("index", folder)
    old = Index(**cached) if cached else Index(*[np.array([])] * 4)
    entries = {
        name: (size, problem)
        for name, state, size, problem in zip(*old)
        if states.get(name) == state and not problem  # It may be solved, as by chmod.
    }
    new = [name for name in states if name not in entries]
    disable = None if new else True  # None shows the bar only on a terminal.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        inspected = pool.map(_inspect, [folder / name for name in new])
        bar = tqdm(inspected, "checking images", len(new), unit="file", disable=disable)
        entries.update(zip(new, bar))
    result = Index(
        names=np.array(list(states), str),
        states=np.array(list(states.values()), str),
        sizes=np.array([entries[name][0] for name in states], np.int32).reshape(-1, 2),
        problems=np.array([entries[name][1] for name in states], str),
    )
    if not all(map(np.array_equal, result, old)):
        cache.save("index", folder, result._asdict())
    return result


def walk(folder: Path) -> list[tuple[str, str]]:
    """Return names and states of image files that are not hidden; each folder is listed once."""

    def fail(error: OSError) -> None:
        has_vanished = isinstance(error, (FileNotFoundError, ProcessLookupError))  # As in /proc.
        if error.filename == str(folder) or not has_vanished:
            raise InputError(
                f"The image folder {printable(error.filename)} cannot be listed: {brief(error)}."
            ) from error

    files, visited = [], set()
    for current, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        status = os.stat(current)
        if (status.st_dev, status.st_ino) in visited:
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                path = Path(current, name)
                state = cache.fingerprint(path) if path.exists() else "broken link"
                files.append((str(path.relative_to(folder)), state))
    return files


def _inspect(path: Path) -> tuple[tuple[int, int], str]:
    """Return the width and height of an image file, and its problem or ''."""
    try:
        return image_files.decode(path, 3).size, ""
    except Exception as error:  # Decoders raise exceptions of many types on damaged files.
        return (0, 0), brief(error)


def problems(files: Index, folder: Path, limit: int) -> str:
    """Describe the unreadable files: their number, and the names of the first `limit` of them."""
    bad = np.flatnonzero(files.problems != "")
    lines = [
        f"{len(bad)} of {len(files.names)} image files under {folder} cannot be read and are "
        f"skipped:"
    ]
    lines += [f"  {printable(str(files.names[i]))}: {files.problems[i]}" for i in bad[:limit]]
    if len(bad) > limit:
        lines.append(f"  and {len(bad) - limit} more; --mode=inspect_data lists all")
    return "\n".join(lines)


def read(split: str, config: ml_collections.ConfigDict) -> Images:
    """Return the images of a split, 'train' or 'test', of the images under data.path.

    The folders train/ and test/, if both exist, are the splits. Otherwise data.held_out of the
    images are in 'test', selected by a hash of their names. Folders beside data.path, which
    data.condition names, hold the images of the condition. Classes are the names, sorted, of the
    outermost folders (within the split), if every image is in one. Files may be at any depth;
    unreadable files are skipped with a warning. Images are cropped to the shape that
    data.image_size states, and resized.

    Raises InputError if the folder does not exist or has no image for the split.
    """
    folder = expand_home(config.path, "data.path")
    if not config.path:
        raise InputError(
            "data.dataset = 'folder' requires the folder of the images: --config.data.path=DIR."
        )
    files = index(folder)
    if len(files.good) < len(files.names) and split == "train" and folder not in LISTED:
        logging.warning("%s", problems(files, folder, MAX_LISTED))
    names = files.names[files.good].tolist()
    selected = members(names, split, config.held_out)
    if not len(selected):
        raise InputError(
            f"data.path = {config.path!r} contains no readable image ({', '.join(SUFFIXES)}) for "
            f"the split {split!r}."
        )
    _, labels = classes(names)
    chosen = [names[i] for i in selected]
    pixels = _decoded(folder, chosen, config, config.num_channels)
    image = _paired(folder, chosen, config) if config.condition else None
    return Images(pixels, None if labels is None else labels[selected], image=image)


def _paired(folder: Path, names: list[str], config: ml_collections.ConfigDict) -> Decoded:
    """Return the images of the same names, up to suffixes, in the folder that data.condition names.

    Raises InputError unless there is one for each name.
    """
    pair = folder.resolve().parent / config.condition[0]
    files = index(pair)
    found = {name.rpartition(".")[0]: name for name in files.names[files.good].tolist()}
    chosen = [found.get(name.rpartition(".")[0], "") for name in names]
    missing = [name for name, other in zip(names, chosen) if not other]
    if missing or len(config.condition) != 1:
        raise InputError(
            f"data.condition = {tuple(config.condition)} must name one folder beside data.path, "
            f"with an image of the same name for each image; {len(missing)} of {len(names)} have "
            f"none in {pair}, such as {printable((missing or names)[0])}."
        )
    return _decoded(pair, chosen, config, config.image_channels or config.num_channels)


def _decoded(
    folder: Path, names: list[str], config: ml_collections.ConfigDict, channels: int
) -> Decoded:
    """Return the images of files with this number of channels, in the size of `config`."""
    shape = (*image_shape(config)[:2], channels)

    def decode(number: int) -> np.ndarray:
        # A file that became unreadable after it was indexed is replaced by the next readable one.
        for step in range(len(names)):
            path = folder / names[(number + step) % len(names)]
            try:
                return image_files.load(path, channels, crop_resize, shape[:2])
            except Exception as error:  # Decoders raise exceptions of many types.
                text = f"{printable(path)}: {brief(error)}; another image replaces it."
                logging.log_first_n(logging.WARNING, "%s", MAX_LISTED, text)
        raise InputError(f"data.path = {config.path!r}: none of its images can be read any more.")

    return Decoded(decode, len(names), shape)


def members(names: Sequence[str], split: str, held_out: float) -> np.ndarray:
    """Return the indices of the images that belong to a split; see `read`."""
    if {name.partition("/")[0] for name in names if "/" in name} >= SPLITS:
        return np.flatnonzero([name.startswith(f"{split}/") for name in names])
    # A function of the name alone, so that a held-out image stays so when others are added.
    hashes = np.fromiter((zlib.crc32(os.fsencode(name)) for name in names), float) / 2**32
    is_test = (hashes < held_out) | (hashes == hashes.min(initial=1.0))  # At least one is.
    return np.flatnonzero(is_test == (split == "test"))


def classes(names: Sequence[str]) -> tuple[list[str], np.ndarray | None]:
    """Return the classes and labels (N,), by the outermost folders; ([], None) without them."""
    parts = [name.split("/")[:-1] for name in names]
    if {part[0] for part in parts if part} >= SPLITS:
        parts = [part[1:] if part and part[0] in SPLITS else [] for part in parts]
    if not all(parts):
        return [], None
    class_names, labels = np.unique([part[0] for part in parts], return_inverse=True)
    return class_names.tolist(), labels.astype(np.int32)
