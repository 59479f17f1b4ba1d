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

from errors import InputError
from experiment import Experiment
from metrics import distances, features, reference_statistics, samples_stage
from metrics.distances import Moments
from metrics.features import Extractor
from metrics.reference_statistics import Protocol, Reference
from metrics.stage import Context, Measure, Results, Stage
from runs import Arrays, load_rounds, progress

MIN_IMAGES = 10  # With fewer images nothing is measured.
FID_IMAGES = 10_000  # With fewer images the name of a Frechet distance contains their number.
JACKKNIFE_GROUPS = 10  # The jackknife leaves out one group of images at a time.
KID_IMAGES = 20_000  # Of each set, at most; time grows with the square of the number.
KEYS = ("frechet", "kid", "inception_score", "precision", "recall")


class Prepared(NamedTuple):
    """What all checkpoints share: the feature extractor and the reference statistics."""

    extractor: Extractor
    reference: Reference


def check(experiment: Experiment) -> None:
    """Raise InputError for too few samples, or none."""
    config = experiment.config.eval
    if not config.enable_sampling:
        raise InputError(
            "eval.enable_metrics = True requires eval.enable_sampling = True. Set "
            "--config.eval.enable_sampling (finished rounds on disk are reused), or "
            "--noconfig.eval.enable_metrics."
        )
    if config.num_samples < MIN_IMAGES:
        raise InputError(
            f"eval.num_samples = {config.num_samples} must be at least {MIN_IMAGES} for "
            "eval.enable_metrics = True."
        )


def prepare(experiment: Experiment, workdir: Path) -> Prepared:
    """The extractor and the statistics. Raise InputError without images of the classes."""
    extractor = features.make_extractor(experiment, workdir)
    reference = reference_statistics.load_or_compute(experiment, extractor, workdir)
    return Prepared(extractor, reference)


def run(context: Context) -> Results:
    """Measure the samples of a checkpoint."""
    experiment, extractor = context.experiment, context.prepared.extractor
    samples = samples_stage.sample_paths(context)

    def compute(index: int) -> Arrays:
        images = load_rounds([samples[index]], samples=(-1, *experiment.image_shape))["samples"]
        outputs = extractor.extract(images)._asdict()
        return {name: array for name, array in outputs.items() if array is not None}

    name = f"features_{extractor.label}"
    paths = context.run_rounds(name, len(samples), compute, features=extractor.digest)
    rounding = "truncated" if experiment.config.eval.legacy_rounding else "nearest"
    return {"rounding": rounding} | measure(paths, *context.prepared)


def measure(paths: Sequence[Path], extractor: Extractor, reference: Reference) -> Results:
    """Compute all metrics from rounds of features: arrays `pool` and optionally `logits`.

    Generated and reference images are shuffled with fixed seeds: images are often sorted by class,
    and errors come from groups of images.
    """
    arrays = load_rounds(paths, optional=["logits"], pool=(-1, -1), logits=(-1, -1))
    if len(arrays.get("logits", arrays["pool"])) != len(arrays["pool"]):
        raise InputError(f"{paths[0]} and others do not have one row for each image. Delete them.")
    order = np.random.default_rng(0).permutation(len(arrays["pool"]))
    generated, real = arrays["pool"][order], reference.pool
    results = {"features": extractor.label, "images": len(order), "reference": reference.protocol}
    results |= dict.fromkeys(KEYS)
    with progress.waiting("computing the Frechet distance"):
        results["frechet"] = frechet(generated, extractor.published, reference)
    if real is not None and len(real) >= MIN_IMAGES:
        real = np.random.default_rng(1).permutation(real)
        if min(len(real), len(generated)) >= 3 * JACKKNIFE_GROUPS:
            first, second = real[:KID_IMAGES], generated[:KID_IMAGES]
            with progress.waiting("computing the kernel distance"):
                value, stderr, _ = distances.kernel_distance(first, second, JACKKNIFE_GROUPS)
            note = f"all pairs of {len(second)} and {len(first)} images"
            results["kid"] = {"name": "KID", "value": value, "stderr": stderr, "note": note}
        with progress.waiting("computing precision and recall"):
            found = distances.precision_recall(real, generated)
        for name, (value, stderr, _) in found.items():
            results[name] = {"name": name, "value": value, "stderr": stderr}
    if "logits" in arrays:
        results["inception_score"] = inception_score(arrays["logits"][order], extractor.published)
    return results


def frechet(generated: np.ndarray, published: bool, reference: Reference) -> Results:
    """The Frechet distance of features (N, D) from the reference; `name` says if it is an FID.

    `extrapolated` has no bias of order 1 / N. It is None with fewer images than features, for which
    that order is unknown.
    """
    name, real = "FID" if published else "FD", reference.moments
    parts = [Moments.from_features(generated[i::JACKKNIFE_GROUPS]) for i in range(JACKKNIFE_GROUPS)]

    def merge(kept: np.ndarray) -> Moments:
        return functools.reduce(Moments.merge, [parts[group] for group in kept])

    error = distances.jackknife(
        lambda kept: distances.frechet_distance(merge(kept), real), JACKKNIFE_GROUPS
    )
    singular = merge(np.arange(JACKKNIFE_GROUPS)).rank_deficient or real.rank_deficient
    note = "fewer images than features, not comparable with other values"
    if not singular:
        note = f"{error.extrapolated:.4g} without the bias of order 1 / N"
    return {
        "name": name if len(generated) >= FID_IMAGES else f"{name}_n{len(generated)}",
        "value": error.value,
        "stderr": error.stderr,
        "extrapolated": None if singular else error.extrapolated,
        "rank_deficient": singular,
        "note": f"against {describe(reference.protocol)}; {note}",
    }


def inception_score(logits: np.ndarray, published: bool) -> Results:
    """The inception score; `name` says if the features are those that define it."""
    group = np.arange(len(logits)) % JACKKNIFE_GROUPS
    value, stderr, _ = distances.jackknife(
        lambda kept: distances.inception_score(logits[np.isin(group, kept)]), JACKKNIFE_GROUPS
    )
    return {"name": "IS" if published else "class. score", "value": value, "stderr": stderr}


def describe(protocol: Protocol) -> str:
    """The reference images, as far as the statistics state them."""
    parts = [protocol.get(key) for key in ("images", "dataset", "split")]
    text = " ".join(str(part) for part in parts if part) or "images"
    return f"{text} of the requested classes" if protocol.get("classes") else text


def measures(entry: Results) -> list[Measure]:
    """All metrics; their names contain the features and the number of images."""
    rows, count = [], entry["images"]
    for found in filter(None, map(entry.get, KEYS)):
        name = f"{found['name']} ({entry['features']}, n = {count})"
        rows.append(Measure(name, found["value"], found["stderr"], count, found.get("note", "")))
    return rows


STAGE = Stage(
    name="metrics",
    key="metrics",
    kind="samples",
    check=check,
    prepare=prepare,
    run=run,
    measures=measures,
)
