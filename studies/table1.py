"""The paper's Table 1 with exact scores: predictors and correctors without a network.

python -m studies.table1 [--samples=500] [--write]

Prints a table of docs/sampling.md, and with --write puts it into the page. The data are training
digits, each widened to a Gaussian, so that their score is known at every noise level.
"""

from __future__ import annotations

import argparse
from typing import Any

import jax
import numpy as np
from sklearn.datasets import load_digits

from benchmarks.tables import header, row
from score_sde import Prior
from studies import common
from studies.distances import Mixture, sliced_distance
from studies.sampling import SDES

OPTIONS = {"samples": 500, "write": False}
PAGE = common.ROOT / "docs" / "sampling.md"
DIGITS, WIDTH = 500, 0.05  # training digits in [-1, 1], and the standard deviation of each
SEEDS = range(1, 5)
SNRS, TUNED_ON = (0.01, 0.05, 0.1, 0.16, 0.25), 0  # the seed, which no row of the table uses
PREDICTORS = {
    "ancestral": {"predictor": "ancestral_sampling"},
    "reverse diffusion": {"predictor": "reverse_diffusion"},
    "probability flow": {"predictor": "reverse_diffusion", "probability_flow": True},
}
COLUMNS = {
    "P1000": {"steps": 1000, "corrector": "none"},
    "P2000": {"steps": 2000, "corrector": "none"},
    "PC1000": {"steps": 1000, "corrector": "langevin"},
}
CORRECTOR_ONLY = {"predictor": "none", "n_steps_each": 2, **COLUMNS["PC1000"]}


def digits(scale: float) -> Mixture:
    """Return the mixture in images of 8x8; `scale` is half the range of its gray levels."""
    gray = np.asarray(load_digits(return_X_y=True)[0][:DIGITS])
    means = scale * (gray / 8 - 1)
    return Mixture(
        means.astype(np.float32), np.full(means.shape, (scale * WIDTH) ** 2, "f4"), (8, 8, 1)
    )


def distances(prior: Prior, quantiles: np.ndarray, count: int, **options: Any) -> common.Estimate:
    """Return the mean distance of `count` samples over SEEDS, and its standard error."""
    sampler = prior.make_sampler("pc", **options)
    found = [prior.draw(sampler, count, jax.random.key(seed), batch_size=count).x for seed in SEEDS]
    return common.mean(np.array([sliced_distance(quantiles, np.asarray(x)) for x in found]))


def tuned(prior: Prior, quantiles: np.ndarray, count: int) -> float:
    """Return the signal-to-noise ratio with the smallest distance of PC1000, as the paper tunes."""

    def distance(snr: float) -> float:
        sampler = prior.make_sampler("pc", snr=snr, **COLUMNS["PC1000"])
        found = prior.draw(sampler, count, jax.random.key(TUNED_ON), batch_size=count)
        return sliced_distance(quantiles, np.asarray(found.x))

    return min(SNRS, key=distance)


def table(count: int) -> list[str]:
    """Return distances, and in brackets what exceeds the floor in quadrature."""
    lines = header("SDE", "predictor", *COLUMNS)
    for name, sde in SDES.items():
        scale = 0.5 if name == "VE" else 1.0  # VE has images in [0, 1], up to an offset.
        mixture = digits(scale)
        quantiles = mixture.quantiles(count)
        exact = [sliced_distance(quantiles, mixture.sample(seed, count)) for seed in range(20)]
        floor = float(np.sqrt(np.mean(np.square(exact))))
        prior = Prior(mixture.score(sde), sde, mixture.shape, support=(-scale, scale))
        snr = tuned(prior, quantiles, count)

        def cell(**options: Any) -> str:
            found = distances(prior, quantiles, count, snr=snr, **options)  # noqa: B023
            excess = np.sqrt(max(found.value**2 - floor**2, 0))  # noqa: B023
            return f"{common.Estimate(*np.divide(found, scale))} ({excess / scale:.4f})"  # noqa: B023

        title = f"{name}, floor {floor / scale:.4f}, snr {snr}"
        for predictor, chosen in PREDICTORS.items():
            if name == "sub-VP" and predictor == "ancestral":
                continue  # It has no discrete chain.
            lines.append(
                row(title, predictor, *(cell(**chosen, **each) for each in COLUMNS.values()))
            )
            print(lines[-1], flush=True)
        lines.append(row(title, "corrector only, 2000", "", "", cell(**CORRECTOR_ONLY)))
        print(lines[-1], flush=True)
    return lines


def main(options: argparse.Namespace) -> None:
    """Measure, and write the table."""
    lines = table(options.samples)
    if options.write:
        about = common.provenance("python -m studies.table1 --write")
        common.write_blocks(PAGE, {"table1": [about, "", *lines]})


if __name__ == "__main__":
    common.run(main, OPTIONS)
