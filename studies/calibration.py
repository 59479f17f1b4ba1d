"""How often `calibrate` finds planted errors, by the number of simulations.

python -m studies.calibration [--repetitions=25] [--write]

Prints tables of docs/inverse_problems.md, and with --write puts them into the page. In the first,
events have DIMS entries: the first is +-1 with noise of STD, the others are standard normal. y is
the first entry with noise of NOISE, and a random sign. The posterior is known, and so is each
error. In the second, the prior is the mixture `Modes`, and `moment_matching` has its own errors.
"""

from __future__ import annotations

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.special import logsumexp

from api import calibration
from benchmarks.tables import header, row
from score_sde import Prior, operators
from sde_lib import SDE, VPSDE, Score
from studies import common

OPTIONS = {"repetitions": 25, "write": False}
PAGE = common.ROOT / "docs" / "inverse_problems.md"
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


# --- a mixture ------------------------------------------------------------------------------------


class Modes:
    """A mixture of 4 correlated Gaussians, and two measurements with noise of MODES_NOISE.

    Mode k has the covariance roots[k] roots[k]^T, and the columns of its root are orthogonal.
    """

    def __init__(self, dims: int = DIMS) -> None:
        rng, self.dims = np.random.default_rng(7), dims
        self.weights, self.means = np.array([0.4, 0.3, 0.2, 0.1]), rng.normal(size=(4, dims))
        axes = np.linalg.qr(rng.normal(size=(4, dims, dims)))[0]
        self.stds = rng.uniform(0.05, 0.5, (4, dims))
        self.roots = axes * self.stds[:, None]
        self.matrix = rng.normal(size=(2, dims)) / np.sqrt(dims)

    def score(self, sde: SDE) -> Score:
        """Return the score of the noised mixture."""
        means, stds, roots = (
            jnp.asarray(each, jnp.float32) for each in (self.means, self.stds, self.roots)
        )
        axes, variances, log_weights = roots / stds[:, None], stds**2, jnp.log(self.weights)

        def score(x: Array, t: Array) -> Array:
            alpha, var = sde.alpha(t)[:, None, None], sde.var(t)[:, None, None]
            along = jnp.einsum("bkd,kde->bke", x[:, None] - alpha * means, axes)
            total = alpha**2 * variances + var
            logps = log_weights - 0.5 * (along**2 / total + jnp.log(total)).sum(-1)
            gradients = -jnp.einsum("kde,bke->bkd", axes, along / total)
            return jnp.einsum("bk,bkd->bd", jax.nn.softmax(logps), gradients)

        return score

    def simulate(self, rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return events (count, dims) and measurements of them (count, 2)."""
        k, z = rng.choice(4, count, p=self.weights), rng.normal(size=(count, self.dims))
        x = self.means[k] + np.einsum("nde,ne->nd", self.roots[k], z)
        return x, x @ self.matrix.T + MODES_NOISE * rng.normal(size=(count, 2))

    def given(self, rng: np.random.Generator, y: np.ndarray) -> np.ndarray:
        """Return exact draws (N, SAMPLES, dims) given measurements y (N, 2)."""
        covariances = self.roots @ self.roots.swapaxes(1, 2)
        of_y = self.matrix @ covariances @ self.matrix.T + MODES_NOISE**2 * np.eye(2)
        gain = covariances @ self.matrix.T @ np.linalg.inv(of_y)
        rest = np.linalg.cholesky(covariances - gain @ self.matrix @ covariances)
        residual = y[:, None] - self.means @ self.matrix.T  # (N, K, 2)
        squares = np.einsum("nki,kij,nkj->nk", residual, np.linalg.inv(of_y), residual)
        logs = np.log(self.weights) - 0.5 * (squares + np.linalg.slogdet(of_y)[1])
        shares = np.exp(logs - logsumexp(logs, axis=1, keepdims=True)).cumsum(1)
        k = np.minimum((rng.random((len(y), SAMPLES, 1)) > shares[:, None]).sum(-1), 3)
        means = self.means + np.einsum("kdi,nki->nkd", gain, residual)
        z = rng.normal(size=(*k.shape, self.dims))
        return means[np.arange(len(y))[:, None], k] + np.einsum("nlde,nle->nld", rest[k], z)


def judge_exact(modes: Modes, rng: np.random.Generator, count: int) -> calibration.Calibration:
    """Judge exact draws from the posteriors of simulated measurements."""
    vectors, names = calibration.directions((DIMS,))
    x, y = modes.simulate(rng, count)

    def statistics(x: np.ndarray) -> np.ndarray:
        misfit = np.square(x @ modes.matrix.T - y.reshape(count, *(1,) * (x.ndim - 2), 2)).sum(-1)
        return np.concatenate([x @ vectors.T, -misfit[..., None]], -1)

    truth, samples = statistics(x), statistics(modes.given(rng, y))
    ranks = calibration.ranks(truth, samples, rng.random(truth.shape))
    return calibration.judge(ranks, [*names, calibration.LOG_PROB], calibration.features(y))


def table_of_modes(repetitions: int, count: int = COUNTS[-1]) -> list[str]:
    """Return how often `moment_matching` and exact draws of the mixture are called wrong."""
    modes, sde = Modes(), VPSDE()
    prior = Prior(modes.score(sde), sde, (DIMS,))
    measured = operators.dense((DIMS,), modes.matrix)
    posterior = prior.posterior(None, measured, noise=MODES_NOISE, method="moment_matching")
    results = {
        "exact draws": [
            judge_exact(modes, np.random.default_rng(seed), count)
            for seed in range(4 * repetitions)
        ],
        "`moment_matching`": [
            posterior.calibrate(count, SAMPLES, seed, batch_size=8192)
            for seed in range(repetitions)
        ],
    }
    lines = header("samples", f"called wrong, {count} simulations", "median p, dependence on y")
    for name, found in results.items():
        wrong = sum(each.kind != "calibrated" for each in found)
        p = np.median([each.p_values[calibration.INDEPENDENCE[0]] for each in found])
        lines.append(row(name, f"{wrong} of {len(found)}", f"{p:.2g}"))
    return lines


def main(options: argparse.Namespace) -> None:
    """Measure, and write the tables."""
    lines = table(options.repetitions)
    of_modes = table_of_modes(options.repetitions)
    print("\n".join(of_modes))
    if options.write:
        about = common.provenance("python -m studies.calibration --write")
        common.write_blocks(PAGE, {"power": [about, "", *lines], "modes": [about, "", *of_modes]})


if __name__ == "__main__":
    common.run(main, OPTIONS)
