"""Measures of generated images against those of a data set: FID, KID, inception score, precision and recall.

They read the rounds of samples that evaluation left on disk, and keep features in rounds of their own.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from errors import InputError
from experiment import Experiment
from metrics import distances, features, reference_statistics
from metrics.distances import Moments
from metrics.features import Extractor
from metrics.reference_statistics import Reference
from models.building import Params
from workdir import Arrays, load_rounds, round_paths, run_rounds

Results = dict[str, Any]
Stage = Callable[[Experiment, Params, Path, Any], Results]

LEAST = 10  # images, below which nothing is measured
ENOUGH = 10_000  # images, below which an FID has their number in its name
GROUPS = 10  # of images, of which the jackknife leaves out one at a time; also the least number of KID's blocks
BLOCK = 1000  # images in a block of KID, unless there are too few for as many blocks


def make_stage(experiment: Experiment, workdir: str) -> Stage:
    """The stage of evaluation that measures its samples; makes or reads the statistics to compare them with.

    Raises InputError for too few samples, and for whatever is wrong with the features and statistics.
    """
    config = experiment.config.eval
    if config.num_samples < LEAST:
        raise InputError(
            f"eval.num_samples = {config.num_samples} must be at least {LEAST} for eval.enable_metrics."
        )
    extractor = features.make(experiment, workdir)
    reference = reference_statistics.find(experiment, extractor, workdir)

    def stage(experiment: Experiment, ema: Params, folder: Path, dequantize: Any) -> Results:
        del ema, dequantize
        samples = round_paths(folder, "samples", -(-config.num_samples // config.batch_size))
        paths = run_features(folder, samples, extractor)
        rounding = "truncated" if config.legacy_rounding else "nearest"
        return {"metrics": {"rounding": rounding} | measure(paths, extractor, reference)}

    return stage


def run_features(folder: Path, samples: list[Path], extractor: Extractor) -> list[Path]:
    """A round of features for each of the rounds of images `samples`, as far as they are not on disk yet."""

    def compute(index: int) -> Arrays:
        found = extractor.extract(load_rounds(samples[index : index + 1], "samples")["samples"])
        return {name: array for name, array in found._asdict().items() if array is not None}

    return run_rounds(folder, f"features_{extractor.label}", len(samples), compute, {})


def measure(paths: list[Path], extractor: Extractor, reference: Reference) -> Results:
    """All measures of the images whose features are in the files `paths`: arrays `pool`, and perhaps `logits`."""
    arrays = load_rounds(paths, "pool", "logits")
    pool, logits = arrays["pool"], arrays.get("logits")
    results = {"features": extractor.label, "images": len(pool), "reference": reference.protocol}
    results["frechet"] = _frechet(pool, extractor, reference)
    results |= dict.fromkeys(("kid", "inception_score", "precision", "recall"))
    if logits is not None:
        without = lambda group: np.delete(logits, np.s_[group::GROUPS], 0)
        score = distances.inception_score(logits)
        error = distances.jackknife(
            score, [distances.inception_score(without(group)) for group in range(GROUPS)]
        )
        results["inception_score"] = {"value": score, "stderr": error.stderr}
    if reference.pool is not None and len(reference.pool) >= LEAST:
        results["kid"] = _kid(reference.pool, pool)
        found = distances.precision_recall(reference.pool, pool)
        for name, images in (("precision", len(pool)), ("recall", len(reference.pool))):
            value = getattr(found, name)
            results[name] = {"value": value, "stderr": math.sqrt(value * (1 - value) / images)}
    return results


def _frechet(pool: np.ndarray, extractor: Extractor, reference: Reference) -> Results:
    """The distance with its jackknife; `name` says what it may be called.

    With fewer images than features, its bias is of no known order, and nothing is extrapolated.
    """
    count = len(pool)
    groups = [Moments.of(pool[group::GROUPS]) for group in range(GROUPS)]
    merge = lambda parts: functools.reduce(Moments.merge, parts)
    distance = lambda moments: distances.frechet_distance(moments, reference.moments)
    whole = merge(groups)
    value = distance(whole)
    error = distances.jackknife(
        value, [distance(merge(groups[:g] + groups[g + 1 :])) for g in range(GROUPS)]
    )
    deficient = whole.rank_deficient or reference.moments.rank_deficient
    return {
        "name": ("FID" if extractor.published else "FD")
        + ("" if count >= ENOUGH else f"_n{count}"),
        "value": value,
        "stderr": error.stderr,
        "extrapolated": None if deficient else error.extrapolated,
        "rank_deficient": deficient,
    }


def _kid(real: np.ndarray, generated: np.ndarray) -> Results:
    most = max(len(real), len(generated))
    blocks = min(max(GROUPS, -(-most // BLOCK)), len(real) // 2, len(generated) // 2)
    size = -(-most // blocks)
    return distances.kernel_distance(real, generated, size)._asdict() | {"block": size}


# --- the table --------------------------------------------------------------------------------------------------------


def table(results: dict[int, Results]) -> list[str]:
    """Lines of text with the measures of each checkpoint, none if there are none."""
    found = {number: result["metrics"] for number, result in results.items() if "metrics" in result}
    if not found:
        return []
    some = next(iter(found.values()))
    lines = [("checkpoint", "images", *names(some).values())]
    for number, result in found.items():
        lines.append(
            (str(number), str(result["images"]), *(_cell(result[name]) for name in names(some)))
        )
    widths = (10, 8, 18, 18, 18, 16, 16)
    notes = f"features: {some['features']}, against {compared_with(some)} in {some['reference']['path']}"
    return [
        *("  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths)) for line in lines),
        notes,
    ]


def names(result: Results) -> dict[str, str]:
    """What the measures of one checkpoint are called, by their names in it."""
    frechet = result["frechet"]["name"]
    score = "IS" if frechet.startswith("FID") else "class. score"
    return {
        "frechet": frechet,
        "kid": "KID",
        "inception_score": score,
        "precision": "precision",
        "recall": "recall",
    }


def compared_with(result: Results) -> str:
    """The images that samples were compared with, as far as their statistics say."""
    found = [result["reference"].get(key) for key in ("images", "dataset", "split")]
    return " ".join(str(each) for each in found if each) or "images"


def _cell(estimate: Results | None) -> str:
    return f"{estimate['value']:.4f} +- {estimate['stderr']:.4f}" if estimate else "-"
