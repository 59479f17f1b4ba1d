"""The evaluation stage `metrics`: FID, KID, inception score, precision and recall of the samples.

It reads the samples that the stage `sampling` wrote and stores their features in separate rounds.
`METRICS` registers the metrics; `distances.py` has the mathematics.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from errors import InputError
from experiment import Experiment
from metrics import distances, features, reference_statistics, samples_stage
from metrics.distances import Moments, PrecisionRecall
from metrics.features import Extractor
from metrics.splits import NoReferenceError
from metrics.stage import Cell, Context, Measure, Results, Stage, estimate_text
from metrics.statistics_files import Reference
from workdir import Arrays, Depends, load_rounds, run_rounds

MIN_IMAGES = 10  # With fewer images nothing is measured.
FID_IMAGES = 10_000  # With fewer images the name of a Frechet distance contains their number.
JACKKNIFE_GROUPS = 10  # The jackknife leaves out one group of images at a time.
MAX_LISTED = 10  # classes in the description of the reference
KID_IMAGES = 20_000  # Of each set, at most; time grows with the square of the number.


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
    config = experiment.config
    if config.eval.num_samples < MIN_IMAGES:
        raise InputError(
            f"eval.num_samples = {config.eval.num_samples} must be at least {MIN_IMAGES} for "
            "eval.enable_metrics = True."
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
    config = context.experiment.config.eval
    extractor, reference, problem = context.prepared
    samples = samples_stage.sample_paths(context.folder, config)
    depends = {**context.depends, "features": extractor.digest}
    paths = run_features(context.folder, samples, extractor, depends)
    rounding = "truncated" if config.legacy_rounding else "nearest"
    return {"rounding": rounding} | measure(paths, extractor, reference, problem)


def run_features(
    folder: Path, samples: Sequence[Path], extractor: Extractor, depends: Depends
) -> list[Path]:
    """Compute the missing rounds of features, one for each round of `samples`; return all paths."""

    def compute(index: int) -> Arrays:
        images = load_rounds([samples[index]], "samples")["samples"]
        outputs = extractor.extract(images)._asdict()
        return {name: array for name, array in outputs.items() if array is not None}

    return run_rounds(folder, f"features_{extractor.label}", len(samples), compute, depends)


# --- metrics ---


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureSets:
    """The features of generated images, and the reference statistics to compare them with.

    Both are shuffled: images are often sorted by class, and errors come from groups of images.

    Attributes:
      pool: features (N, D).
      logits: class logits (N, K), or None if the extractor has none.
      real: features (M, D) of reference images; None if the file holds too few or only moments.
      reference: the statistics, or None if there is nothing to compare with.
    """

    pool: np.ndarray
    logits: np.ndarray | None
    extractor: Extractor
    real: np.ndarray | None
    reference: Reference | None

    @classmethod
    def shuffled(
        cls,
        pool: np.ndarray,
        logits: np.ndarray | None,
        extractor: Extractor,
        reference: Reference | None,
    ) -> FeatureSets:
        """Shuffle the features of generated images and those of the reference, with fixed seeds."""
        order = np.random.default_rng(0).permutation(len(pool))
        real = reference.pool if reference else None
        if real is not None:
            real = np.random.default_rng(1).permutation(real) if len(real) >= MIN_IMAGES else None
        logits = None if logits is None else logits[order]
        return cls(pool[order], logits, extractor, real, reference)

    @functools.cached_property
    def precision_recall(self) -> PrecisionRecall:
        """Precision and recall. Raise ValueError if `real` is None."""
        if self.real is None:
            raise ValueError("Precision and recall require the features of reference images.")
        return distances.precision_recall(self.real, self.pool)


def frechet(sets: FeatureSets) -> Results:
    """The Frechet distance with its jackknife; `name` states whether it is an FID.

    With fewer images than features the order of the bias in 1 / N is unknown, so that
    `extrapolated` is None. All values are None if there is nothing to compare with.
    """
    if sets.reference is None:
        missing = dict.fromkeys(("value", "stderr", "extrapolated"))
        return {"name": "FD", "rank_deficient": False} | missing
    count, reference = len(sets.pool), sets.reference.moments
    groups = []
    for group in range(JACKKNIFE_GROUPS):
        groups.append(Moments.from_features(sets.pool[group::JACKKNIFE_GROUPS]))

    def distance(moments: Moments) -> float:
        return distances.frechet_distance(moments, reference)

    full = _merge(groups)
    value = distance(full)
    leave_one_out = [
        distance(_merge(groups[:g] + groups[g + 1 :])) for g in range(JACKKNIFE_GROUPS)
    ]
    error = distances.jackknife(value, leave_one_out)
    name = "FID" if sets.extractor.published else "FD"
    if count < FID_IMAGES:
        name += f"_n{count}"
    rank_deficient = full.rank_deficient or reference.rank_deficient
    return {
        "name": name,
        "value": value,
        "stderr": error.stderr,
        "extrapolated": None if rank_deficient else error.extrapolated,
        "rank_deficient": rank_deficient,
    }


def _merge(groups: Sequence[Moments]) -> Moments:
    return functools.reduce(Moments.merge, groups)


def kid(sets: FeatureSets) -> Results | None:
    """The kernel distance of at most KID_IMAGES images of each set; None with too few images.

    `pairs` are the numbers of generated and reference images.
    """
    if sets.real is None or min(len(sets.real), len(sets.pool)) < 3 * JACKKNIFE_GROUPS:
        return None
    real, generated = sets.real[:KID_IMAGES], sets.pool[:KID_IMAGES]
    distance = distances.kernel_distance(real, generated, JACKKNIFE_GROUPS)
    return distance._asdict() | {"pairs": [len(generated), len(real)]}


def inception_score(sets: FeatureSets) -> Results | None:
    """The inception score with the standard error of its jackknife.

    `name` states whether the features are those that define the score.
    """
    if sets.logits is None:
        return None
    value = distances.inception_score(sets.logits)
    leave_one_out = []
    for group in range(JACKKNIFE_GROUPS):
        others = np.delete(sets.logits, np.s_[group::JACKKNIFE_GROUPS], 0)
        leave_one_out.append(distances.inception_score(others))
    return {
        "name": "IS" if sets.extractor.published else "class. score",
        "value": value,
        "stderr": distances.jackknife(value, leave_one_out).stderr,
    }


def precision(sets: FeatureSets) -> Results | None:
    """The precision with its standard error."""
    return None if sets.real is None else sets.precision_recall.precision._asdict()


def recall(sets: FeatureSets) -> Results | None:
    """The recall with its standard error."""
    return None if sets.real is None else sets.precision_recall.recall._asdict()


def measure(
    paths: Sequence[Path], extractor: Extractor, reference: Reference | None, problem: str = ""
) -> Results:
    """Compute all metrics from rounds of features: arrays `pool` and optionally `logits`.

    Without a reference there are no distances, and the entry states the `problem`.
    """
    arrays = load_rounds(paths, "pool", optional=["logits"])
    sets = FeatureSets.shuffled(arrays["pool"], arrays.get("logits"), extractor, reference)
    results = {
        "features": extractor.label,
        "images": len(sets.pool),
        "reference": reference.protocol if reference else {"problem": problem},
    }
    return results | {metric.key: metric.compute(sets) for metric in METRICS}


# --- notes and the registry ---


def _frechet_note(entry: Results) -> str:
    note = f"against {reference_images(entry)}"
    extrapolated = entry["frechet"]["extrapolated"]
    if extrapolated is not None:
        note += f"; {extrapolated:.4g} without the bias of order 1 / N"
    if entry["frechet"]["rank_deficient"]:
        note += "; fewer images than features, not comparable with other values"
    return note


def _kid_note(entry: Results) -> str:
    generated, real = entry["kid"]["pairs"]
    return f"all pairs of {generated} and {real} images"


def _no_note(entry: Results) -> str:
    return ""


class Metric(NamedTuple):
    """A metric of the samples.

    Attributes:
      key: its key in the entry of the stage.
      compute: its `value` and `stderr`, or None if it is not available. A `name` replaces `title`.
      title: its name in the table and the report.
      note: a note for the report, given the entry of the stage.
      width: the width of its column in the table.
    """

    key: str
    compute: Callable[[FeatureSets], Results | None]
    title: str
    note: Callable[[Results], str] = _no_note
    width: int = 18

    def title_in(self, entry: Results) -> str:
        """The name in the table and the report, given the entry of the stage."""
        return (entry[self.key] or {}).get("name", self.title)


METRICS = (
    Metric("frechet", frechet, "FD", _frechet_note),
    Metric("kid", kid, "KID", _kid_note),
    Metric("inception_score", inception_score, "class. score"),
    Metric("precision", precision, "precision", width=16),
    Metric("recall", recall, "recall", width=16),
)
"""All metrics in the order in which they appear in the table and the report."""


def reference_images(entry: Results) -> str:
    """A description of the reference images, as far as the statistics state them."""
    reference = entry["reference"]
    parts = [reference.get(key) for key in ("images", "dataset", "split")]
    text = " ".join(str(part) for part in parts if part) or "images"
    classes = reference.get("classes") or []
    if len(classes) > MAX_LISTED:
        return f"{text} of the requested classes"
    return f"{text} of the classes {', '.join(map(str, classes))}" if classes else text


def _estimate(entry: Results, metric: Metric) -> Results | None:
    """The result of a metric, or None if it has no value."""
    found = entry[metric.key]
    return None if found is None or found["value"] is None else found


def measures(entry: Results) -> list[Measure]:
    """The rows of the report; their names contain the features and the number of images."""
    rows = []
    for metric in METRICS:
        found = _estimate(entry, metric)
        if found:
            name = f"{metric.title_in(entry)} ({entry['features']}, n = {entry['images']})"
            note = metric.note(entry) or _problem(entry)
            rows.append(Measure(name, found["value"], found["stderr"], entry["images"], note))
    return rows


def cells(entry: Results | None) -> list[Cell]:
    """The cells of the printed table."""
    if entry is None:
        return []
    row = [Cell("images", str(entry["images"]), width=8)]
    for metric in METRICS:
        found = _estimate(entry, metric)
        text = estimate_text(found["value"], found["stderr"]) if found else "-"
        row.append(Cell(metric.title_in(entry), text, metric.width))
    return row


def notes(entries: Sequence[Results]) -> list[str]:
    """The features and the reference statistics, which all checkpoints share."""
    entry = entries[0]
    against = f"against {reference_images(entry)} in {entry['reference'].get('path')}"
    return [f"features: {entry['features']}, {_problem(entry) or against}"]


def _problem(entry: Results) -> str:
    """Why there are no distances, or ''."""
    problem = entry["reference"].get("problem")
    return f"no distance: {problem}" if problem else ""


STAGE = Stage(
    name="metrics",
    key="metrics",
    kind="samples",
    needs_classifier=True,
    check=check,
    prepare=prepare,
    run=run,
    measures=measures,
    cells=cells,
    notes=notes,
    requires=("sampling",),
    separate_table=True,
)
