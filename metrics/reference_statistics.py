"""Statistics of the images of a data set, with which samples are compared (`--mode=fid_stats`).

Samples of some classes are compared with images of these classes. A statistics file holds `pool_3`,
`mu` and `sigma`, like the files of the official code and of EDM, and a `protocol`, which those
lack: the features, and the images that they were computed from.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import os
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

import sharding
from configs.default import Config
from configs.folders import dependencies
from errors import InputError, advice, brief, expand_home
from experiment import Experiment
from metrics import features
from metrics.distances import Moments
from metrics.features import Extractor
from metrics.stage import images_of, rows_of_classes
from readers.files import check_structure, not_finite, parse_json, read_npz, reading
from readers.image_sizes import as_json, label
from runs import LOCK, Arrays, load_rounds, locked, progress, run_rounds, write_arrays

MAX_FEATURES = 50_000
"""Maximum number of images, evenly spaced, whose features are kept for KID, precision and recall.

The moments are those of all images.
"""

FEWEST_IMAGES = 10  # Of requested classes. With fewer images nothing is compared.
MAX_NAME = 40  # characters of a file name that list classes
STATISTICS = ("pool_3", "mu", "sigma")  # The arrays of a file.
PROTOCOL = {"extractor": str, "images?": int}  # What every protocol holds.

Protocol = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Reference:
    """Statistics of the images that samples are compared with."""

    moments: Moments  # Those of all images.
    pool: np.ndarray | None  # Features (N, D) of some images, evenly spaced; None if unknown.
    protocol: Protocol  # That of the file, and its path.


def fid_stats(config: Config, workdir: str) -> Path:
    """Compute the statistics of config.eval.stats_split; return the path of the file.

    The path is config.eval.stats_path or, if that is empty, below `workdir`. All images count, also
    those of the last partial batch; they are neither flipped nor dequantized. Raise InputError if
    the file exists.
    """
    experiment = Experiment(config)

    def free_path(extractor: str) -> Path:
        path = statistics_path(experiment, extractor, workdir)
        if path.exists():
            raise InputError(
                f"{path} exists and is not overwritten. Remove it, or set eval.stats_path to "
                "another path."
            )
        return path

    if experiment.config.eval.stats_path:  # Before a classifier is trained.
        free_path("")
    extractor = features.make_extractor(experiment, workdir)
    path = free_path(extractor.label)
    count = compute(experiment, extractor, path).protocol["images"]
    print(f"{path}: {count} images, features {extractor.label}")
    return path


def load_or_compute(experiment: Experiment, extractor: Extractor, workdir: str | Path) -> Reference:
    """Load the statistics at config.eval.stats_path or, if that is empty, those in `workdir`.

    The latter are computed on first use, and again if they are damaged or of other images. Raise
    InputError as `load` does for the former, and if no images of the requested classes are known.
    """
    path = statistics_path(experiment, extractor.label, workdir)
    named = "eval.stats_path" if experiment.config.eval.stats_path else ""
    if named or os.path.lexists(path):
        try:
            return load(path, extractor, expected_protocol(experiment, extractor), named)
        except InputError as error:
            if named:
                raise
            logging.warning("%s The statistics are computed again.", error)
    return compute(experiment, extractor, path)


def statistics_path(experiment: Experiment, extractor: str, workdir: str | Path) -> Path:
    """The path of the statistics of an experiment; `extractor` is the label of their features."""
    data, config = experiment.config.data, experiment.config.eval
    if config.stats_path:
        return expand_home(config.stats_path, "eval.stats_path")
    split, classes = config.stats_split, "-".join(map(str, reference_classes(experiment)))
    if classes:
        short = classes if len(classes) <= MAX_NAME else f"{zlib.crc32(classes.encode()):08x}"
        split = f"{split}_classes_{short}"
    name = f"{data.dataset}_{label(data.image_size)}_{split}_{extractor}".lower()
    return Path(workdir) / "statistics" / f"{name}.npz"


def reference_classes(experiment: Experiment) -> tuple[int, ...]:
    """The classes of the images to compare with, sorted and in lowest terms; () for all images.

    They are those that config.guidance requests: (0, 0, 1) if class 0 is twice as frequent as class
    1. All images are used if they have the requested proportions. If their classes are unknown,
    this is assumed of a request for all classes equally often; another raises InputError.
    """
    config = experiment.config
    counts = Counter(config.guidance.classes)
    divisor = math.gcd(*counts.values())
    classes = tuple(each for each in sorted(counts) for _ in range(counts[each] // divisor))
    if not classes:
        return ()
    try:
        images = images_of(experiment, config.eval.stats_split)
        count = len(rows_of_classes(images, classes))
    except InputError:
        all_classes = range(config.data.num_classes or config.classifier.num_classes)
        if classes == tuple(all_classes):
            return ()
        raise
    if count < FEWEST_IMAGES:
        raise InputError(
            f"data.dataset has only {count} images of guidance.classes in these proportions, not "
            f"{FEWEST_IMAGES} or more. Choose others, or set --noconfig.eval.enable_metrics."
        )
    return () if count == len(images) else classes


def expected_protocol(experiment: Experiment, extractor: Extractor) -> Protocol:
    """The protocol in which statistics and samples must agree.

    The number of the reference images and the hash of their content are left out, with a warning,
    if the images cannot be read: they may be elsewhere than their statistics.
    """
    config = experiment.config
    classes = reference_classes(experiment)
    protocol = {
        "extractor": extractor.name,
        "digest": extractor.digest,
        "preprocessing": extractor.preprocessing,
        "dataset": config.data.dataset.lower(),
        "split": config.eval.stats_split,
        "image_size": as_json(config.data.image_size),
        "num_channels": config.data.num_channels,
        "classes": list(classes) or None,
    }
    try:
        images = images_of(experiment, config.eval.stats_split)
        with progress.waiting("reading the reference images for their checksum"):
            count = len(rows_of_classes(images, classes))
            return protocol | {"images": count, "data_sha256": images.digest}
    except InputError as error:
        logging.warning("statistics cannot be compared with their images: %s", brief(error))
        return protocol


def compute(experiment: Experiment, extractor: Extractor, path: Path) -> Reference:
    """Compute statistics, in rounds so that an interrupted run resumes; write them to `path`."""
    config = experiment.config
    images = images_of(experiment, config.eval.stats_split)
    size = config.eval.batch_size
    rows = np.sort(rows_of_classes(images, reference_classes(experiment)))
    folder = path.with_name(path.stem + "_rounds")
    folder.mkdir(parents=True, exist_ok=True)

    def compute_round(index: int) -> Arrays:
        pixels = np.asarray(images.batch(rows[index * size : (index + 1) * size]).pixels)
        return {"pool": extractor.extract(features.as_samples(experiment, pixels)).pool}

    protocol = expected_protocol(experiment, extractor)
    depends = dependencies("statistics", config) | protocol
    with locked(folder):
        count = -(-len(rows) // size)
        paths = run_rounds(folder, f"features_{size}", count, compute_round, depends)
        moments, pool = _merge_rounds(paths, size, len(rows))
        # Other processes may still read the rounds, or check whether the file exists.
        sharding.wait("statistics")
        arrays = {"pool_3": pool, "mu": moments.mean, "sigma": moments.covariance}
        write_arrays(path, arrays | {"protocol": np.array(json.dumps(protocol))})
        for each in (*paths, folder / LOCK):
            each.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # The folder may hold something else.
            folder.rmdir()
    return Reference(moments, pool, protocol | {"path": str(path)})


def _merge_rounds(paths: Sequence[Path], size: int, total: int) -> tuple[Moments, np.ndarray]:
    """The moments of all features, and MAX_FEATURES of them; one round is in memory at a time."""
    positions = np.linspace(0, total - 1, min(MAX_FEATURES, total)).round()
    selected = np.isin(np.arange(total), positions)
    pools = []

    def read(path: Path, of_round: np.ndarray) -> Moments:
        pool = load_rounds([path], pool=(-1, -1))["pool"]
        pools.append(pool[of_round])
        return Moments.from_features(pool)

    rounds = map(read, paths, np.split(selected, range(size, total, size)))
    return functools.reduce(Moments.merge, rounds), np.concatenate(pools)


# --- files ----------------------------------------------------------------------------------------


def load(path: Path, extractor: Extractor, expected: Protocol, what: str = "") -> Reference:
    """Load statistics written by this code, by the official code, or by EDM or pytorch-fid.

    The official files hold `pool_3`, the others `mu` and `sigma`. A file without a protocol is
    assumed to hold features of the published Inception network, with a warning. `what` is the
    config field that names the file, if any. Raise InputError for a damaged or other file, and if
    the features or the protocol differ from `extractor` or the `expected` protocol.
    """
    with advice("Replace the file, or compute it with --mode=fid_stats."):
        arrays = read_npz(path, *STATISTICS, "protocol", what=what)
        stored = arrays.pop("protocol", None)
        moments, pool = _read_statistics(path, arrays)
        if stored is not None:
            with reading(path, kind=" (its protocol)"):
                protocol = parse_json(str(stored))
            check_structure(protocol, PROTOCOL, path, "its protocol")
    if stored is None:
        _check_published(path, extractor, expected)
        protocol = {"extractor": "unknown", "images": None if pool is None else len(pool)}
    else:
        differences = [
            f"  {name}: {protocol.get(name)!r} in the file, {value!r} in this run"
            for name, value in expected.items()
            if protocol.get(name) != value
        ]
        if differences:
            raise InputError(
                f"{path} has statistics of another protocol; set eval.stats_path to another file, "
                "or change the config:\n" + "\n".join(differences)
            )
    return Reference(moments, pool, protocol | {"path": str(path)})


def _check_published(path: Path, extractor: Extractor, expected: Protocol) -> None:
    """Raise InputError if a file without a protocol cannot be what is expected; else a warning."""
    if not extractor.published:
        raise InputError(
            f"{path} does not state its features. Such files hold features of FID's Inception "
            f"network and cannot be compared with features {extractor.label}; --mode=fid_stats "
            "writes a file that can."
        )
    logging.warning(
        "%s does not state its images or how they were resized: see docs/metrics.md.", path
    )
    if expected.get("classes"):
        raise InputError(
            f"guidance.classes needs statistics of these classes; {path} does not state the "
            "classes of its images."
        )


def _read_statistics(path: Path, arrays: Arrays) -> tuple[Moments, np.ndarray | None]:
    """The moments, and features if there are any. Raise InputError unless they are statistics."""
    shapes = {name: array.shape for name, array in arrays.items()}
    dims = (shapes.get("mu") or shapes.get("pool_3", ()))[-1:]
    expected = {"pool_3": (*shapes.get("pool_3", ())[:1], *dims), "mu": dims, "sigma": 2 * dims}
    valid = (
        arrays.keys() in ({"pool_3"}, {"mu", "sigma"}, set(STATISTICS))
        and all(shape == expected[name] and 0 not in shape for name, shape in shapes.items())
        and not not_finite(arrays)
    )
    if valid and "sigma" in arrays:  # A covariance is symmetric, up to rounding.
        sigma = arrays["sigma"]
        asymmetry = np.abs(sigma - sigma.T).max()
        valid = np.diag(sigma).min() >= 0 and asymmetry <= 1e-3 * np.abs(sigma).max()
    if not valid:
        raise InputError(
            f"{path} holds no statistics: it must have 'pool_3' (N, D), or 'mu' (D,) and a "
            f"covariance matrix 'sigma' (D, D), or all, of finite numbers; it has {shapes}."
        )
    pool = arrays.get("pool_3")
    if "mu" not in arrays:
        return Moments.from_features(arrays["pool_3"]), pool
    return Moments(None, *(arrays[name].astype(np.float64) for name in ("mu", "sigma"))), pool
