"""Files of reference statistics: written, read and checked.

A statistics file holds `pool_3`, `mu` and `sigma`, like the files of the official code and of EDM,
and a `protocol`, which those lack: the features, and the images that they were computed from.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from errors import InputError, advice
from metrics.distances import Moments
from metrics.features import Extractor
from metrics.splits import NoReferenceError
from readers.files import mismatch, not_finite, parse_json, read_npz
from runs import Arrays, write_arrays

STATISTICS = ("pool_3", "mu", "sigma")  # The arrays of a file.
PROTOCOL = {"extractor": str, "images?": int}  # What every protocol holds.

Protocol = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Reference:
    """Statistics of the images that samples are compared with.

    Attributes:
      moments: the moments of the features of all images; None without any such images.
      pool: features (N, D) of all images, or of some, evenly spaced; None if the file has only
        moments.
      protocol: the protocol stated in the file, and the file's path; without images, the `problem`.
    """

    moments: Moments | None
    pool: np.ndarray | None
    protocol: Protocol


def write(path: Path, moments: Moments, pool: np.ndarray, protocol: Protocol) -> None:
    """Write a statistics file."""
    arrays = {"pool_3": pool, "mu": moments.mean, "sigma": moments.covariance}
    write_arrays(path, arrays | {"protocol": np.array(json.dumps(protocol))})


def load(path: Path, extractor: Extractor, expected: Protocol, what: str = "") -> Reference:
    """Load statistics written by this code, by the official code, or by EDM or pytorch-fid.

    The official files hold `pool_3`, the others `mu` and `sigma`. A file without a protocol is
    assumed to hold features of the published Inception network, with a warning. `what` is the
    config field that names the file, if any. Raise InputError for a damaged or other file, and if
    the features or the protocol differ from `extractor` or the `expected` protocol;
    NoReferenceError if the latter names classes and the file has none.
    """
    if path.suffix == ".pkl":
        raise InputError(
            f"{path} is a pickle, which could execute arbitrary code; EDM also publishes its "
            "statistics as .npz."
        )
    with advice("Replace the file, or compute it with --mode=fid_stats."):
        arrays = read_npz(path, *STATISTICS, "protocol", what=what)
        protocol = _read_protocol(path, arrays)
        moments, pool = _read_statistics(path, arrays)
    if protocol is None:
        _check_published(path, extractor, expected)
        protocol = {"extractor": "unknown", "images": None if pool is None else len(pool)}
    else:
        _check_protocol(path, protocol, expected)
    return Reference(moments, pool, protocol | {"path": str(path)})


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
        raise NoReferenceError(
            f"guidance.classes needs statistics of these classes; {path} does not state the "
            "classes of its images."
        )


def _read_statistics(path: Path, arrays: Arrays) -> tuple[Moments, np.ndarray | None]:
    """The moments, and features if there are any. Raise InputError unless they are statistics."""
    arrays = {name: array for name, array in arrays.items() if name in STATISTICS}
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


def _read_protocol(path: Path, arrays: Arrays) -> Protocol | None:
    """The protocol, or None if the file has none. Raise InputError if it is damaged."""
    if "protocol" not in arrays:
        return None
    try:
        protocol = parse_json(str(arrays["protocol"]))
    except ValueError:
        protocol = None
    problem = mismatch(protocol, PROTOCOL, "its protocol")
    if problem:
        raise InputError(f"{path} is damaged: {problem}.")
    return protocol
