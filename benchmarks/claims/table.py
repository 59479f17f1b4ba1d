"""All claims in the order of their numbers."""

from __future__ import annotations

from benchmarks.claims.checks import Claim
from benchmarks.claims.common import Sizes
from benchmarks.claims.of_images import conditions, encodings, manipulation
from benchmarks.claims.of_networks import later_work, likelihoods, training
from benchmarks.claims.of_samplers import black_box_ode, predictor_corrector, predictors

CLAIMS = (
    *(predictor_corrector, predictors, black_box_ode, likelihoods, training),
    *(encodings, manipulation, conditions, later_work),
)
"""(number, sizes) -> Claim, in the order of their numbers."""


def claims(sizes: Sizes) -> list[Claim]:
    """Return all claims."""
    return [make(number, sizes) for number, make in enumerate(CLAIMS, 1)]
