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

import features
import metrics
import reference_statistics
from errors import InputError
from experiment import Arrays, Experiment, Params, round_paths, run_rounds
from features import Extractor
from metrics import Moments
from reference_statistics import Reference

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
        raise InputError(f"eval.num_samples = {config.num_samples} must be at least {LEAST} for eval.enable_metrics.")
    extractor = features.make(experiment, workdir)
    reference = reference_statistics.find(experiment, extractor, workdir)

    def stage(experiment: Experiment, ema: Params, folder: Path, dequantize: Any) -> Results:
        del ema, dequantize
        count = -(-config.num_samples // config.batch_size)
        samples = round_paths(folder, "samples", count)

        def compute(index: int) -> Arrays:
            found = extractor.extract(np.load(samples[index])["samples"])
            return {name: array for name, array in found._asdict().items() if array is not None}

        paths = run_rounds(folder, f"features_{extractor.label}", count, compute)
        rounding = "truncated" if config.legacy_rounding else "nearest"
        return {"metrics": {"rounding": rounding} | measure(paths, extractor, reference)}

    return stage


def measure(paths: list[Path], extractor: Extractor, reference: Reference) -> Results:
    """All measures of the images whose features are in the files `paths`: arrays `pool`, and perhaps `logits`."""
    pool, logits = _load(paths, "pool"), _load(paths, "logits")
    results = {"features": extractor.label, "images": len(pool), "reference": reference.protocol}
    results["frechet"] = _frechet(pool, extractor, reference)
    results |= dict.fromkeys(("kid", "inception_score", "precision", "recall"))
    if logits is not None:
        keep = [np.delete(logits, np.s_[group::GROUPS], 0) for group in range(GROUPS)]
        score = metrics.inception_score(logits)
        error = metrics.jackknife(score, [metrics.inception_score(kept) for kept in keep])
        results["inception_score"] = {"value": score, "stderr": error.stderr}
    if reference.pool is not None and len(reference.pool) >= LEAST:
        results["kid"] = _kid(reference.pool, pool)
        found = metrics.precision_recall(reference.pool, pool)
        for name, images in (("precision", len(pool)), ("recall", len(reference.pool))):
            value = getattr(found, name)
            results[name] = {"value": value, "stderr": math.sqrt(value * (1 - value) / images)}
    return results


def _load(paths: list[Path], name: str) -> np.ndarray | None:
    rounds = [np.load(path) for path in paths]
    return np.concatenate([each[name] for each in rounds]) if name in rounds[0] else None


def _frechet(pool: np.ndarray, extractor: Extractor, reference: Reference) -> Results:
    """The distance with its jackknife; `name` says what it may be called.

    With fewer images than features, its bias is of no known order, and nothing is extrapolated.
    """
    count = len(pool)
    groups = [Moments.of(pool[group::GROUPS]) for group in range(GROUPS)]
    merge = lambda parts: functools.reduce(Moments.merge, parts)
    distance = lambda moments: metrics.frechet_distance(moments, reference.moments)
    whole = merge(groups)
    value = distance(whole)
    error = metrics.jackknife(value, [distance(merge(groups[:g] + groups[g + 1 :])) for g in range(GROUPS)])
    deficient = whole.rank_deficient or reference.moments.rank_deficient
    return {
        "name": ("FID" if extractor.published else "FD") + ("" if count >= ENOUGH else f"_n{count}"),
        "value": value,
        "stderr": error.stderr,
        "extrapolated": None if deficient else error.extrapolated,
        "rank_deficient": deficient,
    }


def _kid(real: np.ndarray, generated: np.ndarray) -> Results:
    most = max(len(real), len(generated))
    blocks = min(max(GROUPS, -(-most // BLOCK)), len(real) // 2, len(generated) // 2)
    size = -(-most // blocks)
    return metrics.kernel_distance(real, generated, size)._asdict() | {"block": size}


# --- the table --------------------------------------------------------------------------------------------------------


def table(results: dict[int, Results]) -> list[str]:
    """Lines of text with the measures of each checkpoint, none if there are none."""
    found = {number: result["metrics"] for number, result in results.items() if "metrics" in result}
    if not found:
        return []
    some = next(iter(found.values()))
    score = "IS" if some["frechet"]["name"].startswith("FID") else "class. score"
    header = ("checkpoint", "images", some["frechet"]["name"], "KID", score, "precision", "recall")
    names = ("frechet", "kid", "inception_score", "precision", "recall")
    lines = [header]
    for number, result in found.items():
        lines.append((str(number), str(result["images"]), *(_cell(result[name]) for name in names)))
    widths = (10, 8, 18, 18, 18, 16, 16)
    reference = some["reference"]
    images = " ".join(str(reference[key]) for key in ("images", "dataset", "split") if reference.get(key))
    notes = f"features: {some['features']}, against {images or 'images'} in {reference['path']}"
    return [*("  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths)) for line in lines), notes]


def _cell(estimate: Results | None) -> str:
    return f"{estimate['value']:.4f} +- {estimate['stderr']:.4f}" if estimate else "-"
