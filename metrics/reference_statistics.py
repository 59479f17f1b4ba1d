"""`--mode=fid_stats`: statistics of the images of a data set, with which samples are compared.

A statistics file holds `pool_3`, `mu` and `sigma`, like the files of the official code and of EDM,
and a `protocol`, which those lack: the features, and the images that they were computed from.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

import datasets
import sharding
from configs.default import Config
from errors import InputError, brief
from experiment import Experiment
from metrics import features
from metrics.distances import Moments
from metrics.features import Extractor
from metrics.splits import images_of
from readers.files import mismatch, not_finite, read_npz
from workdir import Arrays, dependencies, load_rounds, locked, run_rounds, write_arrays

MAX_FEATURES = 50_000
"""Maximum number of images, evenly spaced, whose features are kept for KID, precision and recall.

The moments are those of all images.
"""

ARRAYS = ("pool_3", "mu", "sigma", "protocol")  # In a statistics file.

Protocol = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Reference:
    """Statistics of the images that samples are compared with.

    Attributes:
      moments: the moments of the features of all images.
      pool: features (N, D) of at most MAX_FEATURES images; None if the file has only moments.
      protocol: the protocol stated in the file, and the file's path.
    """

    moments: Moments
    pool: np.ndarray | None
    protocol: Protocol


def fid_stats(config: Config, workdir: str) -> Path:
    """Compute the statistics of config.eval.stats_split; return the path of the file.

    The path is config.eval.stats_path or, if that is empty, below `workdir`. All images count, also
    those of the last partial batch; they are neither flipped nor dequantized. Raise InputError if
    the file exists.
    """
    experiment = Experiment(config)
    extractor = features.make_extractor(experiment, workdir)
    path = statistics_path(experiment, extractor, workdir)
    if path.exists():
        raise InputError(
            f"{path} exists and is not overwritten. Remove it, or set eval.stats_path to another "
            "path."
        )
    count = compute(experiment, extractor, path).moments.count
    print(f"{path}: {count} images, features {extractor.label}")
    return path


def load_or_compute(experiment: Experiment, extractor: Extractor, workdir: str | Path) -> Reference:
    """Load the statistics at config.eval.stats_path or, if that is empty, those in `workdir`.

    Statistics in `workdir` are computed on first use, and again if the file is damaged. Raise
    InputError if stats_path does not exist, and as `load` does.
    """
    path = statistics_path(experiment, extractor, workdir)
    named = bool(experiment.config.eval.stats_path)
    if os.path.lexists(path):
        try:
            arrays = _read(path, "eval.stats_path" if named else "")
        except InputError as error:
            if named:
                raise
            logging.warning("%s The statistics are computed again.", error)
        else:
            expected = expected_protocol(experiment, extractor) | _content(experiment, path)
            return _reference(path, arrays, extractor, expected)
    elif named:
        raise InputError(
            f"eval.stats_path = {str(path)!r} does not exist; --mode=fid_stats writes it."
        )
    return compute(experiment, extractor, path)


def statistics_path(experiment: Experiment, extractor: Extractor, workdir: str | Path) -> Path:
    """The path of the statistics of an experiment."""
    if experiment.config.eval.stats_path:
        return Path(experiment.config.eval.stats_path)
    return Path(workdir) / "statistics" / f"{_name(experiment, extractor)}.npz"


def _name(experiment: Experiment, extractor: Extractor) -> str:
    data, split = experiment.config.data, experiment.config.eval.stats_split
    return f"{data.dataset}_{data.image_size}_{split}_{extractor.label}".lower()


def expected_protocol(experiment: Experiment, extractor: Extractor) -> Protocol:
    """The part of the protocol in which statistics and samples must agree."""
    config = experiment.config
    return {
        "extractor": extractor.name,
        "digest": extractor.digest,
        "preprocessing": extractor.preprocessing,
        "dataset": config.data.dataset.lower(),
        "split": config.eval.stats_split,
        "image_size": config.data.image_size,
        "num_channels": config.data.num_channels,
    }


def _content(experiment: Experiment, path: Path) -> Protocol:
    """The number of the reference images and the hash of their content.

    Both are left out, with a warning, if the images cannot be read: samples can be compared with
    statistics of images that are elsewhere.
    """
    try:
        images = images_of(experiment, experiment.config.eval.stats_split)
        return {"images": len(images), "data_sha256": images.digest}
    except InputError as error:
        logging.warning("%s cannot be compared with its images: %s", path, brief(error))
        return {}


# --- computation ---


def compute(experiment: Experiment, extractor: Extractor, path: Path) -> Reference:
    """Compute statistics, in rounds so that an interrupted run resumes; write them to `path`."""
    images = images_of(experiment, experiment.config.eval.stats_split)
    batch_size = experiment.config.eval.batch_size
    batches = datasets.rounds(images, batch_size)
    folder = path.with_name(path.stem + "_rounds")
    folder.mkdir(parents=True, exist_ok=True)

    def compute_round(index: int) -> Arrays:
        indices, count = batches[index]
        pixels = np.asarray(images.batch(indices[:count]).pixels)
        batch = features.as_samples(experiment, pixels)
        return {"pool": extractor.extract(batch).pool}

    name = f"{_name(experiment, extractor)}_{batch_size}"
    content = {"images": len(images), "data_sha256": images.digest}
    depends = dependencies("statistics", experiment.config) | content
    depends["features"] = extractor.digest
    protocol = expected_protocol(experiment, extractor) | content
    with locked(folder):
        paths = run_rounds(folder, name, len(batches), compute_round, depends)
        reference = _merge_rounds(paths, len(images), protocol)
        # Other processes may still read the rounds, or check whether the file exists.
        sharding.wait("statistics")
        _write(path, reference)
        shutil.rmtree(folder, ignore_errors=True)
    return _with_path(reference, path)


def _merge_rounds(paths: Sequence[Path], total: int, protocol: Protocol) -> Reference:
    """Merge rounds of features; one round is in memory at a time, and the features to keep."""
    positions = np.linspace(0, total - 1, min(MAX_FEATURES, total))
    kept = np.unique(positions.round().astype(int))
    moments, pools, start = None, [], 0
    for path in paths:
        pool = load_rounds([path])["pool"]
        batch_moments = Moments.from_features(pool)
        moments = batch_moments if moments is None else moments.merge(batch_moments)
        end = start + len(pool)
        pools.append(pool[kept[(kept >= start) & (kept < end)] - start])
        start = end
    if moments is None:
        raise ValueError("There are no rounds to merge.")
    return Reference(moments, np.concatenate(pools), protocol)


def _write(path: Path, reference: Reference) -> None:
    arrays = {
        "pool_3": reference.pool,
        "mu": reference.moments.mean,
        "sigma": reference.moments.covariance,
        "protocol": np.array(json.dumps(reference.protocol)),
    }
    write_arrays(path, arrays)


# --- files ---


def load(path: Path, extractor: Extractor, protocol: Protocol) -> Reference:
    """Load statistics written by `compute`, by the official code, or by EDM or pytorch-fid.

    The official files hold `pool_3`, the others `mu` and `sigma`. A file without a protocol is
    assumed to hold features of the published Inception network, with a warning. Raise InputError
    for a damaged or other file, and if the features or the protocol differ from `extractor` or
    `protocol`.
    """
    return _reference(path, _read(path), extractor, protocol)


def _reference(path: Path, arrays: Arrays, extractor: Extractor, protocol: Protocol) -> Reference:
    """Return the statistics in the arrays of a file; see `load`."""
    if "protocol" in arrays:
        found = json.loads(str(arrays["protocol"]))
        _check_protocol(path, found, protocol)
    else:
        _check_published(path, extractor)
        count = len(arrays["pool_3"]) if "pool_3" in arrays else None
        found = {"extractor": "unknown", "images": count}
    pool = arrays.get("pool_3")
    if "mu" in arrays:
        mean, covariance = (arrays[name].astype(np.float64) for name in ("mu", "sigma"))
        moments = Moments(found["images"], mean, covariance)
    else:
        moments = Moments.from_features(arrays["pool_3"])
    return _with_path(Reference(moments, pool, found), path)


def _check_protocol(path: Path, found: Protocol, expected: Protocol) -> None:
    """Raise InputError if the protocol of a file is not the expected one; list the differences."""
    differences = [
        f"  {name}: {found.get(name)!r} in the file, {value!r} in this run"
        for name, value in expected.items()
        if found.get(name) != value
    ]
    if differences:
        raise InputError(
            f"{path} has statistics of another protocol; set eval.stats_path to another file, or "
            "change the config:\n" + "\n".join(differences)
        )


def _check_published(path: Path, extractor: Extractor) -> None:
    """Raise InputError if `extractor` is not the published network; warn about what is unknown."""
    if not extractor.published:
        raise InputError(
            f"{path} does not state its features. Such files hold features of FID's Inception "
            f"network and cannot be compared with features {extractor.label}; --mode=fid_stats "
            "writes a file that can."
        )
    logging.warning(
        "%s does not state its images or how they were resized: see docs/metrics.md.", path
    )


def _read(path: Path, what: str = "") -> Arrays:
    """The arrays of a statistics file. Raise InputError for any other file, and for damaged ones.

    `what` is the config field that names the file, if any.
    """
    if path.suffix == ".pkl":
        raise InputError(
            f"{path} is a pickle, which could execute arbitrary code; EDM also publishes its "
            "statistics as .npz."
        )
    try:
        arrays = read_npz(path, *ARRAYS, what=what)
    except InputError as error:
        raise InputError(
            f"{error} Replace the file, or compute it with --mode=fid_stats."
        ) from error
    if "pool_3" not in arrays and not {"mu", "sigma"} <= arrays.keys():
        raise InputError(
            f"{path} holds no statistics: it has neither 'pool_3' nor both 'mu' and 'sigma'."
        )
    problem = _problem(arrays)
    if problem:
        raise InputError(f"{path} is damaged: {problem}. Compute it again, with --mode=fid_stats.")
    return arrays


PROTOCOL = {"extractor": str, "images?": int}  # What every protocol holds.


def _problem(arrays: Arrays) -> str:
    """What is wrong with the arrays of a statistics file, or ''."""
    shapes = {name: array.shape for name, array in arrays.items() if name != "protocol"}
    bad = not_finite({name: arrays[name] for name in shapes})
    if bad:
        return f"{bad!r} has values that are not finite numbers"
    dims = (shapes.get("mu") or shapes["pool_3"])[-1:]
    pool_is_matrix = len(shapes.get("pool_3", (1, *dims))) == 2 and 0 not in shapes.get(
        "pool_3", ()
    )
    expected = {"pool_3": (*shapes.get("pool_3", ())[:1], *dims), "mu": dims, "sigma": dims * 2}
    if not pool_is_matrix or any(shape != expected[name] for name, shape in shapes.items()):
        return f"its arrays have the shapes {shapes}"
    if ("mu" in arrays) != ("sigma" in arrays):
        return "it has only one of 'mu' and 'sigma'"
    if "sigma" in arrays:
        sigma = arrays["sigma"].astype(np.float64)
        if (np.diag(sigma) < 0).any():
            return "'sigma' has negative variances"
        if np.abs(sigma - sigma.T).max() > 1e-3 * np.abs(sigma).max():
            return "'sigma' is not symmetric"
    return _protocol_problem(arrays) if "protocol" in arrays else ""


def _protocol_problem(arrays: Arrays) -> str:
    """What is wrong with the protocol of a statistics file, or ''."""
    try:
        protocol = json.loads(str(arrays["protocol"]))
    except (RecursionError, ValueError):
        return "its protocol is not JSON"
    problem = mismatch(protocol, PROTOCOL, "its protocol")
    if problem:
        return problem
    count = protocol.get("images")
    if "mu" in arrays and (count is None or count < 1):
        return f"its protocol states {count} images"
    return ""


def _with_path(reference: Reference, path: Path) -> Reference:
    return dataclasses.replace(reference, protocol=reference.protocol | {"path": str(path)})
