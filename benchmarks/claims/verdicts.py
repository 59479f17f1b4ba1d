"""Verdicts on claims: pure functions of estimates and of margins that are fixed in advance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

HOLDS, FAILS, UNKNOWN = "holds", "does not hold", "cannot tell"
ERRORS = 2  # standard errors that a verdict requires


class Estimate(NamedTuple):
    """A number and its standard error."""

    value: float
    stderr: float


def log_ratio(a: Estimate, b: Estimate) -> Estimate:
    """Return log(a / b) of positive numbers with independent errors, to first order."""
    error = math.hypot(a.stderr / a.value, b.stderr / b.value)
    return Estimate(math.log(a.value / b.value), error)


def combine(seeds: Sequence[Estimate]) -> Estimate:
    """Return the mean over seeds, with an error over seeds and samples.

    Its square is the variance over the seeds plus the mean square of their errors over samples,
    divided by the number of seeds. The first term contains the second one in expectation. Adding it
    again makes up for a variance that is estimated from few seeds, or from none for a single one.
    """
    values, errors = np.array(seeds, np.float64).T
    spread = values.var(ddof=1) if len(values) > 1 else 0.0
    return Estimate(float(values.mean()), math.sqrt((spread + np.mean(errors**2)) / len(values)))


def verdict(estimate: Estimate, margin: float) -> str:
    """Return whether a number is larger than the margin, by ERRORS standard errors."""
    difference, error = estimate.value - margin, ERRORS * estimate.stderr
    if difference - error > 0:
        return HOLDS
    return FAILS if difference + error < 0 else UNKNOWN
