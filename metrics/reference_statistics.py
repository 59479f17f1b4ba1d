"""`--mode=fid_stats`: features of a whole split of a data set, which samples are compared with, and files of others.

A file of ours has `pool_3`, `mu` and `sigma`, as the files of the official code and of EDM do, and a `protocol`, which
theirs lack: what the features are, and of which images.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

import datasets
import sharding
from configs.default import Config
from errors import InputError, brief, choose
from experiment import Experiment
from metrics import features
from metrics.distances import Moments
from metrics.features import Extractor
from workdir import Arrays, load_rounds, run_rounds, write_atomically

KEPT = 50_000  # images whose features are kept for KID, precision and recall, evenly spaced; moments are of all.

Protocol = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Reference:
    """Statistics of the images that samples are compared with.

    Attributes:
      moments: of all images' features. pool: features (N, D) of at most KEPT of them, or None if the file has none.
      protocol: what the file says of them, and its path.
    """

    moments: Moments
    pool: np.ndarray | None
    protocol: Protocol


def fid_stats(config: Config, workdir: str) -> Path:
    """Writes the statistics of config.eval.stats_split to config.eval.stats_path, or else below `workdir`.

    All images count, the last partial batch too, as they are: neither flipped nor dequantized. Raises InputError if
    there is such a file already.
    """
    experiment = Experiment(config)
    extractor = features.make(experiment, workdir)
    path = path_of(experiment, extractor, workdir)
    if path.exists():
        raise InputError(
            f"{path} exists; nothing is overwritten. Remove it, or name another with eval.stats_path."
        )
    count = make(experiment, extractor, path).moments.count
    print(f"{path}: {count} images, features {extractor.label}")
    return path


def find(experiment: Experiment, extractor: Extractor, workdir: str) -> Reference:
    """The statistics that config.eval.stats_path names; without a name, those below `workdir`, made if need be."""
    path = path_of(experiment, extractor, workdir)
    if not path.exists():
        if experiment.config.eval.stats_path:
            raise InputError(
                f"eval.stats_path = {str(path)!r} does not exist; --mode=fid_stats makes it."
            )
        return make(experiment, extractor, path)
    return load(path, extractor, expected(experiment, extractor))


def path_of(experiment: Experiment, extractor: Extractor, workdir: str) -> Path:
    """Where the statistics of an experiment lie."""
    named = experiment.config.eval.stats_path
    return (
        Path(named)
        if named
        else Path(workdir) / "statistics" / f"{_name(experiment, extractor)}.npz"
    )


def _name(experiment: Experiment, extractor: Extractor) -> str:
    config = experiment.config
    return f"{config.data.dataset}_{config.data.image_size}_{config.eval.stats_split}_{extractor.label}".lower()


def expected(experiment: Experiment, extractor: Extractor) -> Protocol:
    """The part of the protocol on which statistics and samples must agree."""
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


# --- making -----------------------------------------------------------------------------------------------------------


def make(experiment: Experiment, extractor: Extractor, path: Path) -> Reference:
    """Computes the statistics and writes them to `path`, in rounds: what is interrupted goes on where it was."""
    split = choose(SPLITS, experiment.config.eval.stats_split, "eval.stats_split")
    images = split(experiment)
    jobs = datasets.rounds(images, experiment.config.eval.batch_size)
    folder = path.with_name(path.stem + "_rounds")
    folder.mkdir(parents=True, exist_ok=True)

    def compute(index: int) -> Arrays:
        indices, count = jobs[index]
        batch = features.spread(experiment, images.pixels[indices[:count]])
        digests = [hashlib.sha256(image.tobytes()).digest() for image in batch]
        return {
            "pool": extractor.extract(batch).pool,
            "digests": np.frombuffer(b"".join(digests), np.uint8),
        }

    name = f"{_name(experiment, extractor)}_{experiment.config.eval.batch_size}"
    paths = run_rounds(folder, name, len(jobs), compute, {})
    reference = _gather(paths, len(images), expected(experiment, extractor))
    sharding.wait(
        "statistics"
    )  # Others may still read the rounds, or look whether there is a file.
    moments, pool, protocol = reference.moments, reference.pool, json.dumps(reference.protocol)
    arrays = {
        "pool_3": pool,
        "mu": moments.mean,
        "sigma": moments.covariance,
        "protocol": np.array(protocol),
    }
    write_atomically(path, lambda file: np.savez(file, **arrays))
    shutil.rmtree(folder, ignore_errors=True)
    return _at(path, reference)


def _gather(paths: list[Path], total: int, protocol: Protocol) -> Reference:
    """Merges rounds of features, one of them in memory at a time, but for those to keep."""
    kept = np.unique(np.linspace(0, total - 1, min(KEPT, total)).round().astype(int))
    moments, pools, digest, start = [], [], hashlib.sha256(), 0
    for path in paths:
        arrays = load_rounds([path])
        pool = arrays["pool"]
        digest.update(arrays["digests"].tobytes())
        moments = [functools.reduce(Moments.merge, [*moments, Moments.of(pool)])]
        pools.append(pool[kept[(kept >= start) & (kept < start + len(pool))] - start])
        start += len(pool)
    protocol = protocol | {"images": total, "data_sha256": digest.hexdigest()}
    return Reference(moments[0], np.concatenate(pools), protocol)


SPLITS = {"train": lambda experiment: experiment.train, "test": lambda experiment: experiment.test}


# --- reading ----------------------------------------------------------------------------------------------------------


def load(path: Path, extractor: Extractor, protocol: Protocol) -> Reference:
    """Statistics in a file of ours, of the official code (`pool_3`), or of EDM and pytorch-fid (`mu` and `sigma`).

    Raises InputError for another file, features that are not those of `extractor`, and a protocol that differs from
    `protocol`; a file without one is taken for statistics of the published Inception features, with a warning.
    """
    arrays = _read(path)
    if "protocol" in arrays:
        found = json.loads(str(arrays["protocol"]))
        differing = [name for name, value in protocol.items() if found.get(name) != value]
        if differing:
            lines = (
                f"  {name}: {found.get(name)!r} there, {protocol[name]!r} now" for name in differing
            )
            raise InputError(f"{path} has statistics of another protocol:\n" + "\n".join(lines))
    elif not extractor.published:
        raise InputError(
            f"{path} does not say of which features it is; such files are of FID's Inception, and cannot be compared "
            f"with features {extractor.label}."
        )
    else:
        logging.warning(
            "%s does not say of which images it is, nor how they were resized: see docs/metrics.md.",
            path,
        )
        found = {
            "extractor": "not said",
            "images": len(arrays["pool_3"]) if "pool_3" in arrays else None,
        }
    pool = arrays.get("pool_3")
    if "mu" in arrays:
        moments = Moments(
            found["images"], *(arrays[name].astype(np.float64) for name in ("mu", "sigma"))
        )
    else:
        moments = Moments.of(pool)
    return _at(path, Reference(moments, pool, found))


def _read(path: Path) -> Arrays:
    if path.suffix == ".pkl":
        raise InputError(
            f"{path} is a pickle, which could run anything; EDM has its statistics as .npz, too."
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {
                name: file[name]
                for name in file.files
                if name in ("pool_3", "mu", "sigma", "protocol")
            }
    except Exception as error:  # Damage has no one exception type.
        raise InputError(f"{path} is no complete .npz file of arrays: {brief(error)}") from error
    if "pool_3" not in arrays and not {"mu", "sigma"} <= arrays.keys():
        raise InputError(f"{path} has no statistics: neither 'pool_3' nor 'mu' and 'sigma'.")
    return arrays


def _at(path: Path, reference: Reference) -> Reference:
    return dataclasses.replace(reference, protocol=reference.protocol | {"path": str(path)})
