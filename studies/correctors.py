"""Predictor and corrector of the paper's Table 1 beside the Metropolis-adjusted corrector.

python -m studies.correctors [--samples=2000] [--write]

Prints a table of docs/sampling.md, and with --write puts it into the page. The data are mixtures of
4 correlated Gaussians with exact scores. All samplers have the same number of evaluations: the
predictor alone takes twice as many steps as with a corrector of one evaluation, and four times as
many as with 'metropolis', which has three.
"""

from __future__ import annotations

import argparse

import jax
import numpy as np

import sampling
from benchmarks.tables import header, row
from solvers import predictor_corrector
from studies import common
from studies.calibration import modes, prior_of
from studies.common import SDES
from studies.posterior_priors import Mixture
from studies.sampling import CORRECTED

OPTIONS = {"samples": 2000, "write": False}
DIMS, BUDGETS = (8, 64), (200, 1000)
TITLES = {
    "none": "predictor alone",
    "langevin": "`langevin`, official",
    "langevin_per_image": "`langevin_per_image`",
    "metropolis": "`metropolis`",
}
CELL = "{:.1f} / {:+.1f}"
FLOORS = 20  # sets of exact samples


def errors(mixture: Mixture, x: np.ndarray) -> tuple[float, float]:
    """Return the errors of samples x (N, dims) in percent.

    They are the total variation of the weights of modes, and the error of the standard deviation
    within modes, relative to the right one along each axis of each mode.
    """
    values, vectors = np.linalg.eigh(mixture.covariances)
    z = np.einsum("nkd,kde->nke", x[:, None] - mixture.means, vectors) / np.sqrt(values)
    k = (-0.5 * (np.square(z) + np.log(values)).sum(-1)).argmax(1)
    shares = np.bincount(k, minlength=4) / len(x)
    variances = [z[k == i, i].var(0).mean() for i in range(4) if (k == i).any()]
    weights = 50 * np.abs(shares - mixture.weights).sum()
    return float(weights), float(100 * np.sqrt(np.mean(variances)) - 100)


def measure(mixture: Mixture, sde: str, corrector: str, budget: int, count: int) -> str:
    """Return the errors of samples with about `budget` evaluations."""
    prior = prior_of(mixture, SDES[sde])
    steps = budget // (1 + predictor_corrector.calls(sampling.CORRECTORS[corrector]))
    sampler = prior.make_sampler("pc", steps, corrector=corrector, **CORRECTED[sde])
    found = prior.draw(sampler, count, jax.random.key(0), batch_size=count)
    return CELL.format(*errors(mixture, np.asarray(found.x, np.float64)))


def table(count: int) -> list[str]:
    """Return errors of weights and spread, by corrector, and SDE, dimensions and evaluations."""
    columns = [(sde, dims, budget) for sde in ("VE", "VP") for dims in DIMS for budget in BUDGETS]
    lines = header("corrector", *(f"{sde}, {dims}-D, {n}" for sde, dims, n in columns))
    mixtures, floors = {dims: modes(dims)[0] for dims in DIMS}, {}
    for dims, mixture in mixtures.items():
        rng = np.random.default_rng(0)
        found = [errors(mixture, mixture.draw(rng, count)) for _ in range(FLOORS)]
        floors[dims] = CELL.format(*np.mean(np.abs(found), 0))
    lines.append(row("exact samples (mean of sizes)", *(floors[dims] for _, dims, _ in columns)))
    for corrector, title in TITLES.items():
        cells = [measure(mixtures[dims], sde, corrector, n, count) for sde, dims, n in columns]
        lines.append(row(title, *cells))
        print(lines[-1], flush=True)
    return lines


def main(options: argparse.Namespace) -> dict[str, list[str]]:
    return {"correctors": table(options.samples)}


if __name__ == "__main__":
    common.run(main, OPTIONS, "sampling.md")
