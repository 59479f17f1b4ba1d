"""How often `calibrate` finds planted errors, by the number of simulations.

python -m studies.calibration [--repetitions=25] [--write]

Prints tables of docs/inverse_problems.md, and with --write puts them into the page. In the first,
events have DIMS entries: the first is +-1 with noise of STD, the others are standard normal. y is
the first entry with noise of NOISE, and a random sign. The posterior is known, and so is each
error. In the second, the prior is a mixture, `modes`, and `moment_matching` has its own errors.
"""

from __future__ import annotations

import argparse

import numpy as np

from api import calibration
from api.calibration import Calibration
from benchmarks.tables import header, row
from score_sde import Prior, operators
from sde_lib import SDE, VPSDE
from studies import common
from studies.posterior_cases import FOUR
from studies.posterior_own import exact_score
from studies.posterior_priors import Mixture, random_modes

OPTIONS = {"repetitions": 25, "write": False}
DIMS, SAMPLES, STD, NOISE = 8, 63, 0.2, 1.0
MODES_NOISE = 0.1
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
    rng: np.random.Generator, count: int, weights: float = 0, spread: float = 1, bias: float = 0
) -> Calibration:
    """Judge samples of the posterior, given `count` simulations, with planted errors.

    The weight of a mode is off by `weights` times the sign that y states. Samples of the other
    entries have the standard deviation `spread` and the mean `bias`.
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


def is_wrong(found: Calibration) -> bool:
    return found.kind != "calibrated"


def table(repetitions: int) -> list[str]:
    """Return the share of repetitions that are called wrong, by error and simulations."""
    lines = header("error of the samples", *(f"{count} simulations" for count in COUNTS))
    for name, errors in ERRORS.items():
        shares = []
        for count in COUNTS:
            rngs = map(np.random.default_rng, range(repetitions))
            shares.append(np.mean([is_wrong(judge(rng, count, **errors)) for rng in rngs]))
        lines.append(row(name, *(f"{share:.2f}" for share in shares)))
        print(lines[-1], flush=True)
    return lines


def modes(dims: int = DIMS) -> tuple[Mixture, np.ndarray]:
    """Return a mixture of 4 correlated Gaussians, and the matrix of two measurements."""
    return random_modes(FOUR, dims, 1.0, (0.05, 0.5), 2)


def prior_of(mixture: Mixture, sde: SDE) -> Prior:
    """Return the prior with the exact score of a mixture."""
    return Prior(exact_score(mixture, sde), sde, mixture.means.shape[1:])


def judge_exact(rng: np.random.Generator, count: int) -> Calibration:
    """Judge exact draws from the posteriors of simulated measurements."""
    (vectors, names), (mixture, matrix) = calibration.directions((DIMS,)), modes()
    x = mixture.draw(rng, count)
    y = x @ matrix.T + MODES_NOISE * rng.normal(size=(count, 2))
    posteriors = (mixture.posterior(matrix, each, MODES_NOISE)[0] for each in y)

    def statistics(x: np.ndarray) -> np.ndarray:
        misfit = np.square(x @ matrix.T - y.reshape(count, *(1,) * (x.ndim - 2), 2)).sum(-1)
        return np.concatenate([x @ vectors.T, -misfit[..., None]], -1)

    truth = statistics(x)
    samples = statistics(np.stack([each.draw(rng, SAMPLES) for each in posteriors]))
    ranks = calibration.ranks(truth, samples, rng.random(truth.shape))
    return calibration.judge(ranks, [*names, calibration.LOG_PROB], calibration.features(y))


def table_of_modes(repetitions: int, count: int = COUNTS[-1]) -> list[str]:
    """Return how often `moment_matching` and exact draws of the mixture are called wrong."""
    mixture, matrix = modes()
    posterior = prior_of(mixture, VPSDE()).posterior(
        None, operators.dense((DIMS,), matrix), noise=MODES_NOISE, method="moment_matching"
    )
    exact = [judge_exact(np.random.default_rng(seed), count) for seed in range(4 * repetitions)]
    own = [posterior.calibrate(count, SAMPLES, i, batch_size=8192) for i in range(repetitions)]
    lines = header("samples", f"called wrong, {count} simulations", "median p, dependence on y")
    for name, found in {"exact draws": exact, "`moment_matching`": own}.items():
        p = np.median([each.p_values[calibration.INDEPENDENCE[0]] for each in found])
        lines.append(row(name, f"{sum(map(is_wrong, found))} of {len(found)}", f"{p:.2g}"))
    return lines


def main(options: argparse.Namespace) -> dict[str, list[str]]:
    return {"power": table(options.repetitions), "modes": table_of_modes(options.repetitions)}


if __name__ == "__main__":
    common.run(main, OPTIONS, "inverse_problems.md")
