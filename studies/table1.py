"""The paper's Table 1 with exact scores: predictors and correctors without a network.

python -m studies.table1 --folder=DIR [--samples=500] [--write]

Prints a table of docs/sampling.md, and with --write puts it into the page; a run that is stopped
resumes from DIR. The data are training digits, each widened to a Gaussian, so that their score is
known at every noise level.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array
from sklearn.datasets import load_digits

from benchmarks.records import Records
from benchmarks.tables import header, row
from score_sde import SDE, Prior
from studies import common
from studies.common import Estimate
from studies.distances import directions, estimated_distance, levels, sliced_distance
from studies.sampling import SDES

OPTIONS = {"folder": "", "samples": 500, "write": False}
DIGITS, WIDTH = 500, 0.05  # training digits in [-1, 1], and the standard deviation of each
EXACT, FLOORS = 100_000, 20  # exact samples, whose quantiles are those of the data; other sets
SEEDS, TUNED_ON = range(1, 7), range(1)  # of the rows, and of the signal-to-noise ratios
SNRS = (0.01, 0.02, 0.05, 0.1, 0.16, 0.25, 0.4)
SNR = {"VE": 0.16, "VP": 0.01, "sub-VP": 0.01}  # those of the paper, where none is tuned
STEPS = (50, 250)  # of P and PC of digits; the paper has 1,000
PREDICTORS: dict[str, dict[str, Any]] = {
    "ancestral sampling": {"predictor": "ancestral_sampling"},
    "reverse diffusion": {"predictor": "reverse_diffusion"},
    "probability flow": {"predictor": "reverse_diffusion", "probability_flow": True},
}
LANGEVIN: dict[str, Any] = {"steps": 1000, "corrector": "langevin"}
COLUMNS: dict[str, dict[str, Any]] = {
    **{f"P{n}": {"steps": n, "corrector": "none"} for n in (50, 100, 250, 500)},
    **{f"PC{n}": LANGEVIN | {"steps": n} for n in STEPS},
    **{f"P{n}": {"steps": n, "corrector": "none"} for n in (1000, 2000)},
    "C2000": LANGEVIN | {"n_steps_each": 2, "predictor": "none"},
    "PC1000": LANGEVIN,
}
TUNED = ("C2000", "PC1000")  # columns whose signal-to-noise ratio is tuned, as in the paper
FID = {  # of the last four columns, in Table 1
    "VE": {
        "ancestral sampling": (4.98, 4.88, 20.43, 3.62),
        "reverse diffusion": (4.79, 4.74, 20.43, 3.60),
        "probability flow": (15.41, 10.54, 20.43, 3.51),
    },
    "VP": {
        "ancestral sampling": (3.24, 3.24, 19.06, 3.21),
        "reverse diffusion": (3.21, 3.19, 19.06, 3.18),
        "probability flow": (3.59, 3.23, 19.06, 3.06),
    },
}
Measure = Callable[..., Estimate]
"""(seeds, **options of the sampler 'pc') -> distance of the samples of all seeds."""


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


def measure_of(name: str, records: Records, count: int) -> Measure:
    """Return the function that measures samplers of an SDE by `count` samples for each seed."""
    scale = 0.5 if name == "VE" else 1.0  # The images of VE are in [0, 1], up to an offset.
    prior = prior_of(SDES[name], scale)

    def measure(seeds: range, **options: Any) -> Estimate:
        def compute() -> dict[str, Any]:
            sampler, sets = prior.make_sampler("pc", **options), []
            for seed in seeds:
                key = jax.random.key(seed)
                sets.append(prior.draw(sampler, count, key, batch_size=count).x / scale)
            x = np.concatenate(sets)
            return {"about": [name, options], "found": estimated_distance(quantiles(len(x)), x)}

        about = [name, options, list(seeds), count]
        return Estimate(*records.cached(common.key(about, "studies.table1"), compute)["found"])

    return measure


def rows(name: str, measure: Measure, floor: Estimate) -> Iterator[str]:
    """Yield rows of an SDE: excess over the floor, tuned ratios, and FID of the paper."""
    for predictor, options in PREDICTORS.items():
        if (name, predictor) == ("sub-VP", "ancestral sampling"):
            continue  # It has no discrete chain.
        cells = []
        for title, column in COLUMNS.items():
            chosen, note = column if "predictor" in column else options | column, ""
            if title in TUNED:
                tuned = {snr: measure(TUNED_ON, snr=snr, **chosen).value for snr in SNRS}
                note = f", snr {min(SNRS, key=tuned.__getitem__)}"
                chosen = chosen | {"snr": min(SNRS, key=tuned.__getitem__)}
            elif column["corrector"] != "none":
                chosen = chosen | {"snr": SNR[name]}
            cells.append(f"{common.excess(measure(SEEDS, **chosen), floor).brief()}{note}")
        for i, fid in enumerate(FID.get(name, {}).get(predictor, ()), -4):
            cells[i] += f" [{fid:.2f}]"
        yield row(name, predictor, *cells)


def main(options: argparse.Namespace) -> dict[str, list[str]]:
    records, total = Records(Path(options.folder) / "table1.jsonl"), options.samples * len(SEEDS)
    sets = (draw(seed, total) for seed in range(1, FLOORS + 1))
    floor = common.mean(np.array([sliced_distance(quantiles(total), each) for each in sets]))
    lines = header("SDE", "predictor", *COLUMNS)
    for name in SDES:
        lines += rows(name, measure_of(name, records, options.samples), floor)
    text = f"Floor: {total:,} exact samples have the distance {floor} to the data."
    return {"table1": [text, "", *lines]}


if __name__ == "__main__":
    common.run(main, OPTIONS, "sampling.md")
