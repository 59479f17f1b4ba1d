"""How often `calibrate` finds planted errors, by the number of simulations.

python -m studies.calibration [--repetitions=25] [--write]

Prints a table of docs/inverse_problems.md, and with --write puts it into the page. Events have
DIMS entries: the first is +-1 with noise of STD, the others are standard normal. y is the first
entry with noise of NOISE, and a random sign. The posterior is known, and so is each error.
"""

from __future__ import annotations

import argparse

import numpy as np

from api import calibration
from benchmarks.tables import header, row
from studies import common

OPTIONS = {"repetitions": 25, "write": False}
PAGE = common.ROOT / "docs" / "inverse_problems.md"
DIMS, SAMPLES, STD, NOISE = 8, 63, 0.2, 1.0
COUNTS = (100, 200, 400)
ERRORS = {
    "none": {},
    "weights of modes off by 0.1, with the sign of y": {"weights": 0.1},
    "by 0.15": {"weights": 0.15},
    "by 0.2": {"weights": 0.2},
    "spread 5 % too small": {"spread": 0.95},
    "10 % too small": {"spread": 0.9},
    "20 % too small": {"spread": 0.8},
    "means off by 0.1 standard deviations": {"bias": 0.1},
    "by 0.2 standard deviations": {"bias": 0.2},
}


def judge(
    rng: np.random.Generator,
    count: int,
    *,
    weights: float = 0.0,
    spread: float = 1.0,
    bias: float = 0.0,
) -> calibration.Calibration:
    """Judge samples of the posterior with planted errors.

    Args:
      rng, count: of the simulations.
      weights: the error of the weight of a mode, times the sign that y states.
      spread, bias: the factor and the mean of the samples of all entries but the first.
    """
    mode, sign = rng.choice([-1.0, 1.0], (2, count))
    x = rng.normal(size=(count, DIMS))
    x[:, 0] = mode + STD * x[:, 0]
    y = x[:, 0] + NOISE * rng.normal(size=count)
    total = STD**2 + NOISE**2
    right = 1 / (1 + np.exp(-2 * y / total))
    drawn_mode = np.where(rng.random((SAMPLES, count)) < right + weights * sign, 1.0, -1.0)
    drawn = bias + spread * rng.normal(size=(SAMPLES, count, DIMS))
    mean = drawn_mode + STD**2 / total * (y - drawn_mode)
    drawn[..., 0] = mean + STD * NOISE / np.sqrt(total) * rng.normal(size=mean.shape)
    vectors, names = calibration.directions((DIMS,))
    truth, samples = x @ vectors.T, (drawn @ vectors.T).swapaxes(0, 1)
    ranks = calibration.ranks(truth, samples, rng.random(truth.shape))
    return calibration.judge(ranks, names, calibration.features(np.stack([y, sign], 1)))


def rejected(repetitions: int, count: int, **errors: float) -> int:
    """Return how many of so many repetitions are called wrong."""
    found = (judge(np.random.default_rng(seed), count, **errors) for seed in range(repetitions))
    return sum(each.kind != "calibrated" for each in found)


def table(repetitions: int) -> list[str]:
    """Return the share of repetitions that are called wrong, by error and simulations."""
    lines = header("error of the samples", *(f"{count} simulations" for count in COUNTS))
    for name, errors in ERRORS.items():
        shares = (rejected(repetitions, count, **errors) / repetitions for count in COUNTS)
        lines.append(row(name, *(f"{share:.2f}" for share in shares)))
        print(lines[-1], flush=True)
    return lines


def main(options: argparse.Namespace) -> None:
    """Measure, and write the table."""
    lines = table(options.repetitions)
    if options.write:
        about = common.provenance("python -m studies.calibration --write")
        common.write_blocks(PAGE, {"power": [about, "", *lines]})


if __name__ == "__main__":
    common.run(main, OPTIONS)
