"""Inverse problems whose posteriors are known: mixtures of Gaussians, and signals of 64 entries.

An event of a signal has its increments, which are independent, so that their score is known, and
the operator contains the running sum. (Noise of the signal would not be white in the increments.)
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from sklearn.datasets import load_digits

from errors import NotFiniteError
from sde_lib import SDE, VPSDE
from studies.posterior_priors import (
    ENTRIES,
    Increments,
    Mixture,
    Points,
    gibbs,
    increments,
    random_modes,
)

VP = VPSDE()
INTERVAL = 0.05, 0.95  # the quantiles at the ends of intervals
CALLS: Counter[str] = Counter()
"""How often a score ("evaluations"), and the gradient of a function of it, were evaluated."""


class Problem(NamedTuple):
    """Measurements of events with known posteriors.

    Attributes:
      prior: the distribution of events (D,).
      matrix, noise: y = matrix x + noise of this standard deviation.
      y: measurements (B, M).
      exact, others: two independent sets of exact draws given each y, (B, N, D).
      shares: by the number of y, the function of events (N, D) to the shares that are compared, or
        empty.
      log_evidence: log p(y) (B,), if it is known.
      operator: as `Prior.posterior` takes it; None for that of the matrix.
      sde: the SDE of the scores.
      statistics: without shares, the function of events (..., D) to the numbers whose intervals are
        compared; by default, the running sum.
      support: the range of the data, to which guided samplers clip the mean of x_0, or None.
    """

    prior: Any
    matrix: np.ndarray
    noise: float
    y: np.ndarray
    exact: np.ndarray
    others: np.ndarray
    shares: Sequence[Callable[[np.ndarray], np.ndarray]] = ()
    log_evidence: np.ndarray | None = None
    operator: Any = None
    sde: SDE = VP
    statistics: Callable[[np.ndarray], np.ndarray] = functools.partial(np.cumsum, axis=-1)
    support: tuple[float, float] | None = None

    def errors(self, x: np.ndarray) -> dict[str, float]:
        """Return the errors of samples x (B, N, D) given each y.

        Those of the mean and of the marginal standard deviations are root mean squares over
        entries, in standard deviations of the prior, averaged over y. Coverage is the probability,
        in percent, that the exact posterior gives to intervals of the samples.
        """
        exact, std = self.exact, self.prior.std

        def rms(difference: np.ndarray) -> float:
            return float(np.sqrt(np.mean(difference**2, -1)).mean() / std)

        found = {"mean": rms(x.mean(1) - exact.mean(1)), "std": rms(x.std(1) - exact.std(1))}
        if self.shares:
            pairs = zip(self.shares, x, exact)
            gaps = [0.5 * np.abs(shares(a) - shares(b)).sum() for shares, a, b in pairs]
            return found | {"weights": float(np.mean(gaps))}
        truth = self.statistics(exact)
        low, high = np.quantile(self.statistics(x), INTERVAL, axis=1)[:, :, None]
        return found | {"coverage": 100 * float(((truth >= low) & (truth <= high)).mean())}


TWO, THREE = np.array([0.7, 0.3]), np.array([0.5, 0.3, 0.2])
FOUR, TEN = np.array([0.4, 0.3, 0.2, 0.1]), np.linspace(0.19, 0.01, 10)
TWO_MODES = Mixture(
    *(TWO, np.array([[-1, 1], [1, -1.0]])),
    np.array([np.diag([0.04, 0.09]), [[0.05, 0.03], [0.03, 0.05]]]),
)
OVERLAPPING = Mixture(
    *(THREE, np.array([[0, 0], [0.8, 0.5], [-0.5, 0.8]])),
    np.array([np.diag([0.5, 0.05]), np.diag([0.1, 0.4]), [[0.2, 0.15], [0.15, 0.2]]]),
)
SPARSE = Increments(np.array([0.75, 0.25]), np.array([0.05**2, 1.0]), 10)
MEANS = np.kron(np.eye(5), [0.5, 0.5]) @ np.tril(np.ones((10, 10)))
MIXTURES: dict[str, tuple[Mixture | Increments, np.ndarray, float]] = {
    "2-D, 2 modes, 1, 0.3": (TWO_MODES, np.array([[1, 0.8]]), 0.3),
    "2-D, 3 overlapping modes, 1, 0.3": (OVERLAPPING, np.ones((1, 2)), 0.3),
    "8-D, 4 modes, 2, 0.1": (*random_modes(FOUR, 8, 1.0, (0.05, 0.5), 2), 0.1),
    "8-D, 4 narrow modes, 2, 0.5": (*random_modes(FOUR, 8, 0.5, (0.03, 0.03), 2), 0.5),
    "10-D, sparse increments, 5, 0.1": (SPARSE, MEANS, 0.1),
    "16-D, 10 modes, 4, 0.05": (*random_modes(TEN, 16, 0.7, (0.05, 0.3), 4), 0.05),
}
"""Prior, matrix and noise, by entries and modes of the prior, entries of y, and noise."""


@functools.cache
def mixture_problem(name: str, count: int, draws: int = 4096) -> Problem:
    """Return a problem of MIXTURES with `count` measurements, and exact draws of each."""
    return linear_problem(*MIXTURES[name], np.random.default_rng(100), count, draws)


def linear_problem(
    prior: Mixture | Increments,
    matrix: np.ndarray,
    noise: float,
    rng: np.random.Generator,
    count: int,
    draws: int,
) -> Problem:
    """Return the problem of a prior that is a mixture, with `count` measurements."""
    mixture = prior.mixture() if isinstance(prior, Increments) else prior
    y = prior.draw(rng, count) @ matrix.T + noise * rng.normal(size=(count, len(matrix)))
    found, logs = zip(*(mixture.posterior(matrix, each, noise) for each in y))
    exact, others = (np.stack([each.draw(rng, draws) for each in found]) for _ in range(2))
    shares = [each.shares if prior is mixture else prior.shares for each in found]
    return Problem(prior, matrix, noise, y, exact, others, shares, np.array(logs))


def signal_matrix(name: str) -> np.ndarray:
    """Return the matrix (M, ENTRIES) from increments to measurements by an operator."""
    frequencies = np.random.default_rng(1).choice(np.arange(1, ENTRIES // 2), 11, replace=False)
    angles = 2 * np.pi * np.outer(frequencies, np.arange(ENTRIES)) / ENTRIES
    waves = [np.full((1, ENTRIES), 0.5**0.5), np.cos(angles), np.sin(angles)]
    kept = np.random.default_rng(2).choice(ENTRIES, 16, replace=False)
    starts = np.arange(0, ENTRIES - 4, 2)[:, None]
    observed = {
        "blur": ((np.arange(ENTRIES) >= starts) & (np.arange(ENTRIES) < starts + 5)) / 5,
        "missing": np.eye(ENTRIES)[np.sort(kept)],
        "Fourier": np.concatenate(waves) * (2 / ENTRIES) ** 0.5,
    }[name]
    return observed @ np.tril(np.ones((ENTRIES, ENTRIES)))


SIGNAL_NOISE = 0.3


@functools.cache
def signal_problem(
    operator: str, kind: str, count: int, *, chains: int = 8, sweeps: int = 800
) -> Problem:
    """Return the problem of a signal with `count` measurements; half of the chains are `exact`."""
    prior, matrix, rng = increments(kind), signal_matrix(operator), np.random.default_rng(100)
    noise = SIGNAL_NOISE * rng.normal(size=(count, len(matrix)))
    y = prior.draw(rng, count) @ matrix.T + noise
    repeated = np.tile(y, (chains, 1))
    found = gibbs(prior, matrix, repeated, SIGNAL_NOISE, rng, count=sweeps, burn_in=sweeps // 4)
    halves = found.reshape(2, chains // 2, count, sweeps, -1).swapaxes(1, 2)
    exact, others = halves.reshape(2, count, -1, ENTRIES)
    return Problem(prior, matrix, SIGNAL_NOISE, y, exact, others)


HALVES = np.kron(np.eye(2), np.full(4, 0.25))  # from 8 entries to the means of both halves
DIGITS: dict[str, tuple[np.ndarray, float]] = {
    "means of 4x4 pixels, noise 0.05": (np.kron(HALVES, HALVES), 0.05),
    "every fourth pixel, noise 0.3": (np.eye(ENTRIES)[2::4], 0.3),
}
"""Matrix and noise of problems of digits."""
POINTS, WIDTH = 300, 0.15


@functools.cache
def digits_problem(name: str, count: int) -> Problem:
    """Return a problem of DIGITS with `count` measurements.

    The prior has a narrow Gaussian around each of POINTS digits in [-1, 1]. So its score, the
    posterior and log p(y) are known in closed form.
    """
    grey, labels = (np.asarray(each)[:POINTS] for each in load_digits(return_X_y=True))
    covariances = np.tile(WIDTH**2 * np.eye(ENTRIES), (POINTS, 1, 1))
    prior = Points(np.full(POINTS, 1 / POINTS), grey / 8 - 1, covariances)

    def shares(x: np.ndarray) -> np.ndarray:
        nearest = (x @ prior.means.T - 0.5 * np.square(prior.means).sum(1)).argmax(1)
        return np.bincount(labels[nearest], minlength=10) / len(x)

    problem = linear_problem(prior, *DIGITS[name], np.random.default_rng(100), count, 2048)
    return problem._replace(shares=[shares] * count)


Draw = Callable[[float], tuple[np.ndarray, dict[str, float]]]
"""step size -> samples (B, N, D) given each y, and more numbers; it updates CALLS."""


def measure(problem: Problem, draw: Draw, scales: Sequence[float]) -> dict[str, float]:
    """Return errors and costs, with the step size that has the smallest error of the mean."""
    best = {"mean": math.inf}
    for scale in scales:
        CALLS.clear()
        try:
            x, more = draw(scale)
        except NotFiniteError:
            continue
        found = problem.errors(x) | more | {"scale": scale}
        if found["mean"] < best["mean"]:
            best = found | {name: CALLS[name] for name in ("evaluations", "gradients")}
    return best
