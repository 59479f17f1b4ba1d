"""The paper's Table 1 with exact scores: predictors and correctors without a network.

python -m studies.table1 --folder=DIR [--data=emoji|centered] [--write]

Prints a table of docs/sampling.md, and with --write puts it into the page; a run that is stopped
resumes from DIR. The data are training digits, or color emoji of 32x32 pixels, also without their
mean image, each widened to a Gaussian, so that their score is known at every noise level.
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

import datasets
from benchmarks.records import Records
from benchmarks.tables import header, row
from configs.default_emoji_configs import get_default_configs
from errors import InputError
from score_sde import SDE, Prior
from studies import common, distances
from studies.common import SDES, Estimate
from studies.distances import estimated_distance, levels, sliced_distance

OPTIONS = {"folder": "", "data": "digits", "write": False}
COUNTS = {"digits": (500, 500), "emoji": (100, 200), "centered": (100, 200)}
"""Images, and samples for a seed."""
WIDTH, FEATURES = 0.05, 64  # the standard deviation of each image in [-1, 1]; see `features`
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


@functools.cache
def images(data: str) -> np.ndarray:
    """Return training images (n, D) in [-1, 1]; those of emoji are evenly spaced in their order."""
    count, _ = COUNTS[data]
    if data == "digits":
        return np.asarray(load_digits(return_X_y=True)[0], np.float32)[:count] / 8 - 1
    train = datasets.load(get_default_configs().data, "train")
    chosen = np.linspace(0, len(train) - 1, count).round().astype(int)
    pixels = distances.scale(np.asarray(train.batch(chosen).pixels)).reshape(count, -1)
    return (pixels - (pixels.mean(0) if data == "centered" else 0)).astype(np.float32)


def draw(data: str, seed: int, count: int) -> np.ndarray:
    """Return the `features` of exact samples (count, D) of the data."""
    rng, means = np.random.default_rng(seed), features(images(data))
    noise = rng.normal(size=(count, means.shape[1]))  # Features are orthonormal.
    return means[rng.integers(len(means), size=count)] + WIDTH * noise


def features(x: np.ndarray) -> np.ndarray:
    """Return x (n, D), or for D > FEATURES its coordinates along FEATURES random directions."""
    dims = x.shape[-1]
    if dims <= FEATURES:
        return x
    return x @ np.linalg.qr(np.random.default_rng(0).normal(size=(dims, FEATURES)))[0]


@functools.cache
def quantiles(data: str, count: int) -> np.ndarray:
    """Return the quantiles (count, 2 D) of the features of the data along `directions`."""
    x = draw(data, 0, EXACT)
    return np.quantile(x @ distances.directions(x.shape[1]), levels(count), axis=0)


def prior_of(data: str, sde: SDE, scale: float) -> Prior:
    """Return the prior of the data times `scale`, with its exact score."""
    means = scale * images(data)
    half_norms = 0.5 * np.square(means).sum(-1)

    def score(x: Array, t: Array) -> Array:
        alpha = sde.alpha(t)[:, None]
        var = (alpha * scale * WIDTH) ** 2 + sde.var(t)[:, None]
        logits = alpha * (x @ means.T - alpha * half_norms) / var
        return (alpha * (jax.nn.softmax(logits) @ means) - x) / var

    return Prior(jax.jit(score), sde, means.shape[1:], support=(-scale, scale))


def measure_of(data: str, name: str, records: Records) -> Measure:
    """Return the function that measures samplers of an SDE."""
    scale = 0.5 if name == "VE" else 1.0  # The images of VE are in [0, 1], up to an offset.
    prior, (_, count) = prior_of(data, SDES[name], scale), COUNTS[data]

    def measure(seeds: range, **options: Any) -> Estimate:
        def compute() -> dict[str, Any]:
            sampler, sets = prior.make_sampler("pc", **options), []
            for seed in seeds:
                key = jax.random.key(seed)
                sets.append(prior.draw(sampler, count, key, batch_size=count).x / scale)
            x = features(np.concatenate(sets))
            found = estimated_distance(quantiles(data, len(x)), x)
            return {"about": [data, name, options], "found": found}

        about = [data, name, options, list(seeds), count]
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
    data, records = options.data, Records(Path(options.folder) / "table1.jsonl")
    if data not in COUNTS:
        raise InputError(f"--data={data}: the data are {' and '.join(COUNTS)}.")
    total = COUNTS[data][1] * len(SEEDS)
    sets = (draw(data, seed, total) for seed in range(1, FLOORS + 1))
    floor = common.mean(np.array([sliced_distance(quantiles(data, total), each) for each in sets]))
    lines = header("SDE", "predictor", *COLUMNS)
    for name in SDES:
        lines += rows(name, measure_of(data, name, records), floor)
    text = f"Floor: {total:,} exact samples have the distance {floor} to the data."
    return {"table1" if data == "digits" else f"table1 {data}": [text, "", *lines]}


if __name__ == "__main__":
    common.run(main, OPTIONS, "sampling.md")
