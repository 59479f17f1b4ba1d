"""The evaluation stage `metrics`: FID, KID, inception score, precision and recall of the samples.

It reads the samples that the stage `sampling` wrote and stores their features in separate rounds.
`METRICS` registers the metrics of `sample_quality.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import progress
from errors import InputError
from experiment import Experiment
from metrics import features, reference_statistics, samples_stage
from metrics.extractor import Extractor
from metrics.sample_quality import (
    MIN_IMAGES,
    FeatureSets,
    frechet,
    inception_score,
    kid,
    precision,
    recall,
)
from metrics.splits import NoReferenceError
from metrics.stage import Cell, Context, Measure, Results, Stage, estimate_text
from metrics.statistics_files import Reference
from runs import Arrays, Depends, load_rounds, run_rounds

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
    for metric in METRICS:
        with progress.waiting(f"computing the metric {metric.key}"):
            results[metric.key] = metric.compute(sets)
    return results


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
