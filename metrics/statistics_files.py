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

from errors import InputError
from metrics.distances import Moments
from metrics.extractor import Extractor
from metrics.splits import NoReferenceError
from readers.files import mismatch, not_finite, read_npz
from runs import Arrays, write_arrays

ARRAYS = ("pool_3", "mu", "sigma", "protocol")  # In a statistics file.
PROTOCOL = {"extractor": str, "images?": int}  # What every protocol holds.

Protocol = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Reference:
    """Statistics of the images that samples are compared with.

    Attributes:
      moments: the moments of the features of all images.
      pool: features (N, D) of all images, or of some, evenly spaced; None if the file has only
        moments.
      protocol: the protocol stated in the file, and the file's path.
    """

    moments: Moments
    pool: np.ndarray | None
    protocol: Protocol


def write(path: Path, reference: Reference) -> None:
    """Write a statistics file with a protocol."""
    arrays = {
        "pool_3": reference.pool,
        "mu": reference.moments.mean,
        "sigma": reference.moments.covariance,
        "protocol": np.array(json.dumps(reference.protocol)),
    }
    write_arrays(path, arrays)


def load(path: Path, extractor: Extractor, protocol: Protocol) -> Reference:
    """Load statistics written by this code, by the official code, or by EDM or pytorch-fid.

    The official files hold `pool_3`, the others `mu` and `sigma`. A file without a protocol is
    assumed to hold features of the published Inception network, with a warning. Raise InputError
    for a damaged or other file, and if the features or the protocol differ from `extractor` or
    `protocol`; NoReferenceError if the protocol names classes and the file has none.
    """
    return from_arrays(path, read(path), extractor, protocol)


def from_arrays(path: Path, arrays: Arrays, extractor: Extractor, protocol: Protocol) -> Reference:
    """Return the statistics in the arrays of a file; see `load`."""
    if "protocol" in arrays:
        found = json.loads(str(arrays["protocol"]))
        _check_protocol(path, found, protocol)
    else:
        _check_published(path, extractor)
        if protocol.get("classes"):
            raise NoReferenceError(
                f"guidance.classes needs statistics of these classes; {path} does not state the "
                "classes of its images."
            )
        count = len(arrays["pool_3"]) if "pool_3" in arrays else None
        found = {"extractor": "unknown", "images": count}
    pool = arrays.get("pool_3")
    if "mu" in arrays:
        mean, covariance = (arrays[name].astype(np.float64) for name in ("mu", "sigma"))
        moments = Moments(found["images"], mean, covariance)
    else:
        moments = Moments.from_features(arrays["pool_3"])
    return with_path(Reference(moments, pool, found), path)


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


def read(path: Path, what: str = "") -> Arrays:
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


def with_path(reference: Reference, path: Path) -> Reference:
    """Return the statistics with the path of their file in the protocol."""
    return dataclasses.replace(reference, protocol=reference.protocol | {"path": str(path)})
