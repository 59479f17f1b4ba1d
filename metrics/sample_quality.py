"""The evaluation stage `metrics`: FID, KID, inception score, precision and recall of the samples.

It reads the samples that the stage `sampling` wrote and stores their features in separate rounds.
`distances.py` has the mathematics. All standard errors but those of precision and recall are those
of the jackknife over groups of images.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

import progress
from errors import InputError
from experiment import Experiment
from metrics import distances, features, reference_statistics, samples_stage
from metrics.distances import Moments
from metrics.features import Extractor
from metrics.splits import NoReferenceError
from metrics.stage import Context, Measure, Results, Stage
from metrics.statistics_files import Protocol, Reference
from runs import Arrays, load_rounds

MIN_IMAGES = 10  # With fewer images nothing is measured.
FID_IMAGES = 10_000  # With fewer images the name of a Frechet distance contains their number.
JACKKNIFE_GROUPS = 10  # The jackknife leaves out one group of images at a time.
KID_IMAGES = 20_000  # Of each set, at most; time grows with the square of the number.
MAX_LISTED = 10  # classes in the description of the reference


class Prepared(NamedTuple):
    """What all checkpoints share.

    Attributes:
      extractor: the feature extractor.
      reference: the reference statistics, or None if there are none of the requested classes.
      problem: why there are none, or ''.
    """

    extractor: Extractor
    reference: Reference | None
    problem: str = ""


def check(experiment: Experiment) -> None:
    """Raise InputError for too few samples."""
    count = experiment.config.eval.num_samples
    if count < MIN_IMAGES:
        raise InputError(
            f"eval.num_samples = {count} must be at least {MIN_IMAGES} for eval.enable_metrics = "
            "True."
        )


def prepare(experiment: Experiment, workdir: Path) -> Prepared:
    """Load the feature extractor and load or compute the reference statistics.

    Raise InputError if either cannot be loaded or does not fit the other.
    """
    extractor = features.make_extractor(experiment, workdir)
    try:
        reference = reference_statistics.load_or_compute(experiment, extractor, workdir)
    except NoReferenceError as error:
        return Prepared(extractor, None, str(error))
    return Prepared(extractor, reference)


def run(context: Context) -> Results:
    """Measure the samples of a checkpoint."""
    extractor = context.prepared.extractor
    samples = samples_stage.sample_paths(context)

    def compute(index: int) -> Arrays:
        shape = (-1, *context.experiment.image_shape)
        outputs = extractor.extract(load_rounds([samples[index]], samples=shape)["samples"])
        return {name: array for name, array in outputs._asdict().items() if array is not None}

    name = f"features_{extractor.label}"
    paths = context.run_rounds(name, len(samples), compute, features=extractor.digest)
    legacy = context.experiment.config.eval.legacy_rounding
    return {"rounding": "truncated" if legacy else "nearest"} | measure(paths, *context.prepared)


def measure(
    paths: Sequence[Path], extractor: Extractor, reference: Reference | None, problem: str = ""
) -> Results:
    """Compute all metrics from rounds of features: arrays `pool` and optionally `logits`.

    Generated and reference images are shuffled with fixed seeds: images are often sorted by class,
    and errors come from groups of images. Without a reference there are no distances, and the entry
    states the `problem`.
    """
    arrays = load_rounds(paths, optional=["logits"], pool=(-1, -1), logits=(-1, -1))
    if len(arrays.get("logits", arrays["pool"])) != len(arrays["pool"]):
        raise InputError(f"{paths[0]} and others have not one row for each image. Delete them.")
    order = np.random.default_rng(0).permutation(len(arrays["pool"]))
    generated = arrays["pool"][order]
    results = {
        "features": extractor.label,
        "images": len(generated),
        "reference": reference.protocol if reference else {"problem": problem},
    }
    with progress.waiting("computing the Frechet distance"):
        results["frechet"] = frechet(generated, extractor.published, reference, problem)
    real = reference.pool if reference else None
    if real is None or len(real) < MIN_IMAGES:
        results |= dict.fromkeys(("kid", "precision", "recall"))
    else:
        real = np.random.default_rng(1).permutation(real)
        with progress.waiting("computing the kernel distance"):
            results["kid"] = kid(real, generated)
        with progress.waiting("computing precision and recall"):
            found = distances.precision_recall(real, generated)._asdict()
        results |= {name: {"name": name, **each._asdict()} for name, each in found.items()}
    results["inception_score"] = None
    if "logits" in arrays:
        results["inception_score"] = inception_score(arrays["logits"][order], extractor.published)
    return results


def frechet(
    generated: np.ndarray, published: bool, reference: Reference | None, problem: str = ""
) -> Results:
    """The Frechet distance of features (N, D) from the reference; `name` says if it is an FID.

    `extrapolated` has no bias of order 1 / N. It is None with fewer images than features, for which
    that order is unknown. All values are None if there is nothing to compare with.
    """
    name = "FID" if published else "FD"
    if reference is None:
        missing = dict.fromkeys(("value", "stderr", "extrapolated"))
        return {"name": name, **missing, "note": f"no distance: {problem}"}
    groups = range(JACKKNIFE_GROUPS)
    parts = [Moments.from_features(generated[group::JACKKNIFE_GROUPS]) for group in groups]

    def merge(parts: Sequence[Moments]) -> Moments:
        return functools.reduce(Moments.merge, parts)

    def distance(moments: Moments) -> float:
        return distances.frechet_distance(moments, reference.moments)

    moments = merge(parts)
    value = distance(moments)
    without = [distance(merge(parts[:group] + parts[group + 1 :])) for group in groups]
    error = distances.jackknife(value, without)
    singular = moments.rank_deficient or reference.moments.rank_deficient
    note = f"against {describe(reference.protocol)}; " + (
        "fewer images than features, not comparable with other values"
        if singular
        else f"{error.extrapolated:.4g} without the bias of order 1 / N"
    )
    return {
        "name": name if len(generated) >= FID_IMAGES else f"{name}_n{len(generated)}",
        "value": value,
        "stderr": error.stderr,
        "extrapolated": None if singular else error.extrapolated,
        "rank_deficient": singular,
        "note": note,
    }


def kid(real: np.ndarray, generated: np.ndarray) -> Results | None:
    """The kernel distance of at most KID_IMAGES images of each set; None with too few images."""
    if min(len(real), len(generated)) < 3 * JACKKNIFE_GROUPS:
        return None
    real, generated = real[:KID_IMAGES], generated[:KID_IMAGES]
    distance = distances.kernel_distance(real, generated, JACKKNIFE_GROUPS)
    note = f"all pairs of {len(generated)} and {len(real)} images"
    return {"name": "KID", **distance._asdict(), "note": note}


def inception_score(logits: np.ndarray, published: bool) -> Results:
    """The inception score; `name` says if the features are those that define it."""
    value = distances.inception_score(logits)
    without = [
        distances.inception_score(np.delete(logits, np.s_[group::JACKKNIFE_GROUPS], 0))
        for group in range(JACKKNIFE_GROUPS)
    ]
    return {
        "name": "IS" if published else "class. score",
        "value": value,
        "stderr": distances.jackknife(value, without).stderr,
    }


def describe(protocol: Protocol) -> str:
    """The reference images, as far as the statistics state them."""
    parts = [protocol.get(key) for key in ("images", "dataset", "split")]
    text = " ".join(str(part) for part in parts if part) or "images"
    classes = protocol.get("classes") or []
    if len(classes) > MAX_LISTED:
        return f"{text} of the requested classes"
    return f"{text} of the classes {', '.join(map(str, classes))}" if classes else text


def measures(entry: Results) -> list[Measure]:
    """All metrics; their names contain the features and the number of images."""
    rows = []
    for key in ("frechet", "kid", "inception_score", "precision", "recall"):
        found = entry[key]
        if found is not None:
            name = f"{found['name']} ({entry['features']}, n = {entry['images']})"
            row = Measure(name, found["value"], found["stderr"], entry["images"])
            rows.append(row._replace(note=found.get("note", "")))
    return rows


STAGE = Stage(
    name="metrics",
    key="metrics",
    kind="samples",
    check=check,
    prepare=prepare,
    run=run,
    measures=measures,
    requires=("sampling",),
)
