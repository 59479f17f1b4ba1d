"""The inverse problems and the calibration test of `studies.posterior_peers`.

Data are the correlated Gaussian images of `tests.gaussian_posterior`, whose posterior is known,
with the VP SDE. All samplers get the same exact score, and count its evaluations in `CALLS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from api import calibration
from controllable.operators import Operator
from errors import NotFiniteError
from score_sde import Calibration
from sde_lib import VPSDE
from tests import gaussian_posterior
from tests.gaussian_posterior import MEAN, SHAPE, SIZE, Errors

SDE = VPSDE()
COVARIANCE = gaussian_posterior.COVARIANCES["correlated"]
NOISE = 0.2


class Problem(NamedTuple):
    """A linear measurement with noise of standard deviation `noise`.

    Attributes:
      y: one measurement (1, ...).
      u, a: U (M, K) and A (K, SIZE) of full rank with y = U A x, see `gaussian_posterior.matrix`.
    """

    name: str
    operator: Operator
    noise: float
    y: Array
    u: np.ndarray
    a: np.ndarray

    def repeat(self, count: int) -> Array:
        """Return the measurement `count` times (count, ...)."""
        return jnp.repeat(self.y, count, 0)

    def reduce(self, y: Array) -> np.ndarray:
        """Return the measurements y (B, ...) as A x + noise, without the factor U; (B, K)."""
        return np.asarray(y, np.float64).reshape(len(y), -1) @ self.u

    def errors(self, x: np.ndarray) -> Errors:
        """Return the errors of samples x (N, SIZE) given `y`."""
        return gaussian_posterior.errors(x, COVARIANCE, self.operator, self.y, self.noise)


def make_problem(name: str, noise: float = NOISE) -> Problem:
    """Return the problem with this operator of `gaussian_posterior.OPERATORS`."""
    operator = gaussian_posterior.OPERATORS[name]
    y = gaussian_posterior.observe(COVARIANCE, operator, noise)
    return Problem(name, operator, noise, y, *gaussian_posterior.matrix(operator))


class Calls:
    """How often a score, and the gradient of a function of it, were evaluated."""

    evaluations = 0
    gradients = 0

    def add(self, name: str) -> None:
        """Count one."""
        setattr(self, name, getattr(self, name) + 1)


CALLS = Calls()
Draw = Callable[[int], np.ndarray]
"""seed -> one sample for each measurement, float64 (B, SIZE)."""
Prepare = Callable[[Problem, Array, float], Draw]
"""(problem, y (B, ...), step size) -> Draw."""


class Contestant(NamedTuple):
    """A sampler of one library.

    Attributes:
      library, method, steps: its name and the number of its steps.
      prepare: makes its samples.
      prepare_counted: the same, for a sampler that updates `CALLS`.
      scales: the step sizes to choose from; empty for a method without a step size.
      calibrate: (problem, step size, simulations, samples) -> Calibration; None for `calibrate`
        of this module.
    """

    library: str
    method: str
    steps: int
    prepare: Prepare
    prepare_counted: Prepare
    scales: tuple[float, ...] = ()
    calibrate: Callable[[Problem, float, int, int], Calibration] | None = None

    @property
    def name(self) -> str:
        """Its name in tables."""
        return f"{self.library}: `{self.method}`"


# --- what is measured of a sampler ---


def choose_scale(contestant: Contestant, problem: Problem, count: int) -> float:
    """Return the step size with the smallest error of the mean of `count` samples."""
    found = {}
    for scale in contestant.scales:
        try:
            x = contestant.prepare(problem, problem.repeat(count), scale)(0)
            error = problem.errors(x).mean
        except NotFiniteError:
            error = math.nan
        found[scale] = error if math.isfinite(error) else math.inf
    return min(found, key=lambda scale: found[scale], default=1.0)


def count_evaluations(contestant: Contestant, problem: Problem, scale: float) -> dict[str, int]:
    """Return the evaluations of the score, and of its gradient, that one sample needs."""
    draw = contestant.prepare_counted(problem, problem.y, scale)
    draw(0)  # The first call of a sampler may estimate properties of the prior.
    jax.effects_barrier()
    before = CALLS.evaluations, CALLS.gradients
    draw(1)
    jax.effects_barrier()
    return {
        "evaluations": CALLS.evaluations - before[0],
        "gradients": CALLS.gradients - before[1],
    }


def calibrate(
    prepare: Prepare, problem: Problem, scale: float, simulations: int, samples: int
) -> Calibration:
    """Test the spread of a sampler with the statistics of `api.calibration`.

    The images are exact draws of the data. Raises ValueError if a sample is not finite.
    """
    rng = np.random.default_rng(0)
    x, references = rng.multivariate_normal(MEAN, COVARIANCE, (2, simulations))
    noise = jnp.asarray(rng.normal(size=(simulations, *SHAPE)), jnp.float32)
    images = jnp.asarray(x, jnp.float32).reshape(-1, *SHAPE)
    y = problem.operator.observe(images, noise, problem.noise)
    drawn = prepare(problem, jnp.repeat(y, samples, 0), scale)(0)
    if not np.isfinite(drawn).all():
        raise ValueError("The samples are not finite.")
    drawn = drawn.reshape(simulations, samples, SIZE)
    vectors, names = calibration.directions(SHAPE)
    reduced = problem.reduce(y)[:, None]

    def statistics(x: np.ndarray) -> np.ndarray:
        logp = -0.5 * np.square((reduced - x @ problem.a.T) / problem.noise).sum(-1, keepdims=True)
        distance = np.linalg.norm(x - references[:, None], axis=-1, keepdims=True)
        return np.concatenate([x @ vectors.T, logp, distance], -1)

    truth = statistics(x[:, None])[:, 0]
    values = calibration.ranks(truth, statistics(drawn), rng.random(truth.shape))
    return calibration.judge(values, [*names, calibration.LOG_PROB, calibration.DISTANCE])
