"""Tasks of simulation-based inference with reference posteriors, C2ST, and the estimators of sbi.

The tasks are those of Lueckmann et al. 2021 (arXiv:2101.04653, appendix T); SLCP is due to
Papamakarios et al. 2019 (arXiv:1805.07226). Parameters theta have the shape (N, dim), data (N, d).
"""

from __future__ import annotations

import importlib
import math
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.random import Generator
from sklearn.model_selection import KFold, cross_val_score
from sklearn.neural_network import MLPClassifier

SWEEPS = 2000  # of the Markov chains
Estimator = tuple[Callable[[np.ndarray, int], np.ndarray], Callable[[np.ndarray, np.ndarray], Any]]
"""(x (d,), n) -> draws (n, dim), and (theta (1, dim), x (d,)) -> log p (1,), without bounds."""


class Task(NamedTuple):
    """A prior, a simulator and a reference posterior.

    Attributes:
      dim: the number of parameters.
      bound: the prior is uniform between -bound and bound; None for the normal prior N(0, 0.1 I).
      simulate: (rng, theta (N, dim)) -> data (N, d).
      reference: (rng, x (d,), count) -> draws (count, dim) of p(theta | x).
    """

    dim: int
    bound: float | None
    simulate: Callable[[Generator, np.ndarray], np.ndarray]
    reference: Callable[[Generator, np.ndarray, int], np.ndarray]

    def draw(self, rng: Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return `count` parameters of the prior, and their data."""
        size = (count, self.dim)
        theta = rng.uniform(-1, 1, size) * self.bound if self.bound else _normal(rng, size, 0.1)
        return theta, self.simulate(rng, theta)

    def supports(self, theta: np.ndarray) -> np.ndarray:
        """Return whether the prior of each theta (..., dim) is positive."""
        return np.abs(theta).max(-1) <= (self.bound or math.inf)


def accept(
    draw: Callable[[int], np.ndarray], accepts: Callable[[np.ndarray], np.ndarray], count: int
) -> tuple[np.ndarray, float]:
    """Return the first `count` draws (count, dim) that are accepted, and the share of these."""
    found, drawn = draw(count), count
    found = found[accepts(found)]
    while len(found) < count:
        new, drawn = draw(count), drawn + count
        found = np.concatenate([found, new[accepts(new)]])
    return found[:count], len(found) / drawn


def _normal(rng: Generator, size: tuple[int, ...], variance: float) -> np.ndarray:
    return math.sqrt(variance) * rng.normal(size=size)


# --- linear Gaussian, and a mixture of two widths -------------------------------------------------


def _linear(rng: Generator, theta: np.ndarray) -> np.ndarray:
    return theta + _normal(rng, theta.shape, 0.1)


def _linear_posterior(rng: Generator, x: np.ndarray, count: int) -> np.ndarray:
    """The precisions of prior and noise add up."""
    return x / 2 + _normal(rng, (count, len(x)), 0.05)


def _mixture(rng: Generator, theta: np.ndarray) -> np.ndarray:
    """Add noise of standard deviation 1 or 0.1, with equal probability."""
    return theta + rng.choice([1.0, 0.1], (len(theta), 1)) * rng.normal(size=theta.shape)


def _mixture_posterior(rng: Generator, x: np.ndarray, count: int) -> np.ndarray:
    """The noise is symmetric: theta is x with the noise, truncated to the prior."""
    supports = TASKS["Gaussian mixture"].supports
    return accept(lambda n: _mixture(rng, np.tile(x, (n, 1))), supports, count)[0]


# --- two moons ------------------------------------------------------------------------------------


def _moon(rng: Generator, count: int) -> np.ndarray:
    angle, radius = rng.uniform(-np.pi / 2, np.pi / 2, count), rng.normal(0.1, 0.01, count)
    return np.stack([radius * np.cos(angle) + 0.25, radius * np.sin(angle)], -1)


def _two_moons(rng: Generator, theta: np.ndarray) -> np.ndarray:
    """x = moon + (-|u|, v), with the rotated parameters u and v."""
    u, v = theta.sum(-1) / math.sqrt(2), (theta[:, 1] - theta[:, 0]) / math.sqrt(2)
    return _moon(rng, len(theta)) + np.stack([-np.abs(u), v], -1)


def _two_moons_posterior(rng: Generator, x: np.ndarray, count: int) -> np.ndarray:
    """Given x and a moon, |u| and v are known. The change of variables has no Jacobian."""

    def draw(n: int) -> np.ndarray:
        size, v = ((_moon(rng, n) - x) * [1, -1]).T
        u = np.where(size < 0, np.inf, size) * rng.choice([-1, 1], n)
        return np.stack([u - v, u + v], -1) / math.sqrt(2)

    return accept(draw, TASKS["two moons"].supports, count)[0]


# --- SLCP: simple likelihood, complex posterior ---------------------------------------------------


def _slcp(rng: Generator, theta: np.ndarray) -> np.ndarray:
    """Four points of a normal distribution in two dimensions, (x, y, x, y, ...)."""
    noise, correlation = rng.normal(size=(2, 4, len(theta))), np.tanh(theta[:, 4])
    other = correlation * noise[0] + np.sqrt(1 - correlation**2) * noise[1]
    points = [theta[:, i] + theta[:, i + 2] ** 2 * each for i, each in enumerate((noise[0], other))]
    return np.stack(points, -1).swapaxes(0, 1).reshape(len(theta), 8)


def slcp_log_likelihood(theta: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return log p(x (8,) | theta (N, 5)), up to a constant."""
    stds, correlation = np.maximum(theta[:, 2:4] ** 2, 1e-12), np.tanh(theta[:, 4])
    z1, z2 = ((x.reshape(4, 2) - theta[:, None, :2]) / stds[:, None]).transpose(2, 0, 1)
    rest = np.cosh(theta[:, 4]) ** -2  # 1 - correlation^2
    square = (z1**2 + z2**2).sum(-1) - 2 * correlation * (z1 * z2).sum(-1)
    return -4 * np.log(stds).sum(-1) - 2 * np.log(rest) - square / rest / 2


def slcp_chains(rng: Generator, x: np.ndarray, count: int) -> np.ndarray:
    """Return `count` states (count, 5), an even number, after Metropolis steps of as many chains.

    A chain moves along the difference of two chains of the other half (differential evolution, ter
    Braak 2006), and starts at a draw of the prior weighted by its likelihood. The likelihood is
    even in theta[2] and theta[3], whose signs are drawn at the end.
    """
    first = TASKS["SLCP"].draw(rng, 200_000)[0]
    logs = slcp_log_likelihood(first, x)
    weights = np.exp(logs - logs.max())
    theta = first[rng.choice(len(first), count, p=weights / weights.sum())]
    theta[:, 2:4] = np.abs(theta[:, 2:4])
    states, n = theta.reshape(2, count // 2, 5), count // 2
    logs = np.stack([slcp_log_likelihood(each, x) for each in states])
    for sweep in range(2 * SWEEPS):
        half, others = sweep % 2, states[1 - sweep % 2]
        one, shift = rng.integers(n, size=n), rng.integers(1, n, size=n)
        # 2.38 / sqrt(2 dim) suits a normal distribution; 1 leads from one mode to another.
        length = np.where(rng.random(n) < 0.1, 1.0, rng.uniform(0.2, 1, n) * 0.75)
        step = length[:, None] * (others[one] - others[(one + shift) % n])
        proposed = states[half] + step + 1e-4 * rng.normal(size=(n, 5))
        found = slcp_log_likelihood(proposed, x)
        inside = TASKS["SLCP"].supports(proposed) & (proposed[:, 2:4] > 0).all(-1)
        chosen = inside & (np.log(rng.random(n)) < found - logs[half])
        states[half][chosen], logs[half][chosen] = proposed[chosen], found[chosen]
    states[..., 2:4] *= rng.choice([-1, 1], (2, n, 2))
    return states.reshape(count, 5)


TASKS = {
    "linear Gaussian": Task(10, None, _linear, _linear_posterior),
    "Gaussian mixture": Task(2, 10.0, _mixture, _mixture_posterior),
    "two moons": Task(2, 1.0, _two_moons, _two_moons_posterior),
    "SLCP": Task(5, 3.0, _slcp, slcp_chains),
}

# --- classifier two-sample test -------------------------------------------------------------------


def c2st(reference: np.ndarray, samples: np.ndarray, seed: int = 0) -> float:
    """Return the accuracy of a classifier of both sets (N, dim), held out in five folds.

    It is 0.5 for equal distributions. As of Lueckmann et al., the classifier is an MLP with two
    hidden layers of 10 dim units. It stops by its accuracy on a tenth of its data, as that of sbi.
    """
    mean, std = reference.mean(0), reference.std(0)
    x = (np.concatenate([reference, samples]) - mean) / std
    labels = np.repeat([0, 1], [len(reference), len(samples)])
    width = 10 * x.shape[1]
    network = MLPClassifier(
        (width, width), max_iter=1000, early_stopping=True, n_iter_no_change=20, random_state=seed
    )
    folds = KFold(5, shuffle=True, random_state=seed)
    return float(cross_val_score(network, x, labels, cv=folds, scoring="accuracy").mean())


# --- sbi ------------------------------------------------------------------------------------------


def sbi_estimator(method: str, task: Task, pairs: tuple[Any, Any], seed: int) -> Estimator:
    """Train the estimator "NPE" or "NPSE" of sbi, with its defaults; return its posterior."""
    import torch
    from torch.utils.tensorboard.writer import SummaryWriter

    sbi, utils = (importlib.import_module(f"sbi.{name}") for name in ("inference", "utils"))
    tracking = importlib.import_module("sbi.utils.tracking")
    torch.manual_seed(seed)
    ones = torch.ones(task.dim)
    normal = torch.distributions.MultivariateNormal(0 * ones, 0.1 * torch.eye(task.dim))
    prior = utils.BoxUniform(-task.bound * ones, task.bound * ones) if task.bound else normal
    with tempfile.TemporaryDirectory() as folder:
        tracker = tracking.TensorBoardTracker(SummaryWriter(folder))
        trainer = getattr(sbi, method)(prior, tracker=tracker, show_progress_bars=False)
        trainer.append_simulations(*(torch.tensor(each).float() for each in pairs)).train()
    posterior = trainer.build_posterior()

    def draw(x: np.ndarray, n: int) -> np.ndarray:
        options = {"reject_outside_prior": False, "show_progress_bars": False}
        return posterior.sample((n,), x=torch.tensor(x).float(), **options).detach().numpy()

    def log_prob(theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        options = {"norm_posterior": False} if method == "NPE" else {}
        given = (torch.tensor(each).float() for each in (theta, x))
        return posterior.log_prob(*given, **options).detach().numpy()

    return draw, log_prob
