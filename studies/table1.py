"""The paper's Table 1 with exact scores: predictors and correctors without a network.

python -m studies.table1 [--samples=500] [--write]

Prints a table of docs/sampling.md, and with --write puts it into the page. The data are training
digits, each widened to a Gaussian, so that their score is known at every noise level.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import Array
from sklearn.datasets import load_digits

from benchmarks.tables import header, row
from score_sde import SDE, Prior
from studies import common
from studies.distances import directions, levels, sliced_distance
from studies.sampling import SDES

OPTIONS = {"samples": 500, "write": False}
DIGITS, WIDTH = 500, 0.05  # training digits in [-1, 1], and the standard deviation of each
EXACT = 100_000  # exact samples, whose quantiles are those of the data
SEEDS = range(1, 3)
SNRS, TUNED_ON = (0.01, 0.05, 0.1, 0.16, 0.25), 0  # the seed, which no row of the table uses
PREDICTORS = {
    "ancestral sampling": {"predictor": "ancestral_sampling"},
    "reverse diffusion": {"predictor": "reverse_diffusion"},
    "probability flow": {"predictor": "reverse_diffusion", "probability_flow": True},
}
COLUMNS = {
    "P1000": {"steps": 1000, "corrector": "none"},
    "P2000": {"steps": 2000, "corrector": "none"},
    "PC1000": {"steps": 1000, "corrector": "langevin"},
}
CORRECTOR_ONLY = {"predictor": "none", "n_steps_each": 2, **COLUMNS["PC1000"]}
Distance = Callable[..., np.ndarray]
"""(seeds, **options of the sampler 'pc') -> distances of samples, one for each seed."""


def digits() -> np.ndarray:
    """Return digits (DIGITS, 64) in [-1, 1]."""
    return np.asarray(load_digits(return_X_y=True)[0], np.float32)[:DIGITS] / 8 - 1


def draw(seed: int, count: int) -> np.ndarray:
    """Return exact samples (count, 64) of the data."""
    rng, means = np.random.default_rng(seed), digits()
    return means[rng.integers(DIGITS, size=count)] + WIDTH * rng.normal(size=(count, 64))


@functools.cache
def quantiles(count: int) -> np.ndarray:
    """Return the quantiles (count, 128) of the data along `directions`."""
    return np.quantile(draw(0, EXACT) @ directions(64), levels(count), axis=0)


def prior_of(sde: SDE, scale: float) -> Prior:
    """Return the prior of the data times `scale`, with its exact score."""
    means = scale * digits()
    half_norms = 0.5 * np.square(means).sum(-1)

    def score(x: Array, t: Array) -> Array:
        alpha = sde.alpha(t)[:, None]
        var = (alpha * scale * WIDTH) ** 2 + sde.var(t)[:, None]
        logits = alpha * (x @ means.T - alpha * half_norms) / var
        return (alpha * (jax.nn.softmax(logits) @ means) - x) / var

    return Prior(jax.jit(score), sde, (64,), support=(-scale, scale))


def distances(prior: Prior, scale: float, count: int) -> Distance:
    """Return the function that measures samplers of a prior by `count` samples for each seed."""
    exact = quantiles(count)

    def distance(seeds: range, **options: Any) -> np.ndarray:
        sampler, found = prior.make_sampler("pc", **options), []
        for seed in seeds:
            x = prior.draw(sampler, count, jax.random.key(seed), batch_size=count).x
            found.append(sliced_distance(exact, np.asarray(x) / scale))
        return np.array(found)

    return distance


def table(count: int) -> list[str]:
    """Return the distances of all samplers."""
    lines = header("SDE", "predictor", *COLUMNS)
    for name, sde in SDES.items():
        scale = 0.5 if name == "VE" else 1.0  # The images of VE are in [0, 1], up to an offset.
        measure = distances(prior_of(sde, scale), scale, count)
        tuning = {
            snr: measure(range(TUNED_ON, TUNED_ON + 1), snr=snr, **COLUMNS["PC1000"])[0]
            for snr in SNRS
        }
        snr = min(SNRS, key=tuning.__getitem__)
        rows = {predictor: list(COLUMNS.values()) for predictor in PREDICTORS}
        if name == "sub-VP":
            del rows["ancestral sampling"]  # It has no discrete chain.
        for predictor, columns in rows.items():
            cells = [measure(SEEDS, snr=snr, **PREDICTORS[predictor], **each) for each in columns]
            lines.append(row(f"{name}, snr {snr}", predictor, *map(cell, cells)))
            print(lines[-1], flush=True)
        alone = measure(SEEDS, snr=snr, **CORRECTOR_ONLY)
        lines.append(row(f"{name}, snr {snr}", "none, 2 corrections a step", "", "", cell(alone)))
    return lines


def cell(found: np.ndarray) -> str:
    """Return the mean distance with its standard error."""
    return str(common.mean(found))


def main(options: argparse.Namespace) -> None:
    """Measure, and write the table."""
    count, seeds = options.samples, range(1, 21)
    exact = [sliced_distance(quantiles(count), draw(seed, count)) for seed in seeds]
    floor = f"Exact samples have the distance {common.mean(np.array(exact))}."
    about = common.provenance("python -m studies.table1 --write")
    blocks = {"table1": [about, floor, "", *table(count)]}
    common.publish("sampling.md", blocks, write=options.write)


if __name__ == "__main__":
    common.run(main, OPTIONS)
