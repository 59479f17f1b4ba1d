"""Metrics of generated images with their standard errors, from features and reference statistics.

`distances.py` has the mathematics. A metric is `(sets) -> {"value", "stderr", ...}`, or None if it
is not available for these sets.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from metrics import distances
from metrics.distances import Moments, PrecisionRecall
from metrics.extractor import Extractor
from metrics.stage import Results
from metrics.statistics_files import Reference

MIN_IMAGES = 10  # With fewer images nothing is measured.
FID_IMAGES = 10_000  # With fewer images the name of a Frechet distance contains their number.
JACKKNIFE_GROUPS = 10  # The jackknife leaves out one group of images at a time.
KID_IMAGES = 20_000  # Of each set, at most; time grows with the square of the number.


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
