"""Inverse problems of Gaussian data: the exact posterior, and the errors of restoration methods."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import sampling
import solvers
from controllable import operators
from controllable.measurements import Measurement
from controllable.methods import METHODS, choose_method
from controllable.operators import Operator, linear
from sde_lib import SDE, Score, expand

SHAPE, SIZE, STD = (4, 4, 1), 16, 0.5
MEAN = np.full(SIZE, 0.3)
ALONG = np.exp(-np.abs(np.subtract.outer(np.arange(4), np.arange(4))) / 2)
COVARIANCES = {"isotropic": STD**2 * np.eye(SIZE), "correlated": STD**2 * np.kron(ALONG, ALONG)}
OPERATORS = {
    "mask": operators.mask(operators.box(SHAPE, 0.5)),
    "block_mean": operators.block_mean(SHAPE, 2),
    "dense": operators.dense(SHAPE, np.random.default_rng(0).normal(size=(5, SIZE))),
    "convolution": operators.convolution(SHAPE, operators.motion_kernel(2, 45)),
}


class Errors(NamedTuple):
    """Errors of posterior samples for one measurement.

    Attributes:
      mean: root mean square error of their mean, in standard deviations of the data.
      covariance: error of their covariance, relative to the norm of the covariance of the data.
      floor: the Monte-Carlo error of `mean`.
    """

    mean: float
    covariance: float
    floor: float


def exact_score(sde: SDE, covariance: np.ndarray) -> Score:
    """The score of N(MEAN, covariance) data."""
    values, vectors = (np.asarray(a, np.float32) for a in np.linalg.eigh(covariance))

    def score(x: Array, t: Array) -> Array:
        alpha, var = expand(sde.alpha(t), x[:, :, 0, 0]), expand(sde.var(t), x[:, :, 0, 0])
        centred = (x.reshape(-1, SIZE) - alpha * MEAN.astype(np.float32)) @ vectors
        return -((centred / (alpha**2 * values + var)) @ vectors.T).reshape(x.shape)

    return score


def matrix(operator: Operator) -> tuple[np.ndarray, np.ndarray]:
    """Return U (M, K) and A (K, SIZE) of rank K, so that y = U A x for flattened x and y; float64.

    U has orthonormal columns.
    """
    columns = np.asarray(operator.forward(jnp.eye(SIZE).reshape(SIZE, *SHAPE)), np.float64)
    return measured_part(columns.reshape(SIZE, -1).T)


def measured_part(a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return U (M, K) with orthonormal columns, and U* a, for a matrix (M, SIZE).

    U spans the singular vectors that operators measure.
    """
    u, s, _ = np.linalg.svd(a, full_matrices=False)
    u = u[:, s > linear.NEGLIGIBLE * s.max()]
    return u, u.T @ a


def posterior(
    covariance: np.ndarray, operator: Operator, y: Array, noise_std: float
) -> tuple[np.ndarray, np.ndarray]:
    """Mean (SIZE,) and covariance (SIZE, SIZE) of images given y, in float64."""
    u, a = matrix(operator)
    y = u.T @ np.asarray(y, np.float64).reshape(-1)
    gain = covariance @ a.T @ np.linalg.inv(a @ covariance @ a.T + noise_std**2 * np.eye(len(a)))
    return MEAN + gain @ (y - a @ MEAN), covariance - gain @ a @ covariance


def observe(covariance: np.ndarray, operator: Operator, noise_std: float) -> Array:
    """A measurement of one image, always the same; (1, ...)."""
    truth = jnp.asarray(
        np.random.default_rng(3).multivariate_normal(MEAN, covariance), jnp.float32
    ).reshape(1, *SHAPE)
    return operator.observe(truth, jax.random.normal(jax.random.key(6), truth.shape), noise_std)


def errors(
    x: np.ndarray, covariance: np.ndarray, operator: Operator, y: Array, noise_std: float
) -> Errors:
    """Errors of samples x (N, SIZE) of the images given y."""
    mean, exact = posterior(covariance, operator, y, noise_std)
    return Errors(
        float(np.sqrt(np.mean((x.mean(0) - mean) ** 2)) / STD),
        float(np.linalg.norm(np.cov(x.T) - exact) / np.linalg.norm(covariance)),
        float(np.sqrt(exact.trace() / SIZE / len(x)) / STD),
    )


def measure(
    sde: SDE,
    kind: str,
    name: str,
    noise_std: float,
    method: str,
    *,
    steps: int,
    count: int = 2000,
    **options: float,
) -> Errors:
    """Errors of `count` posterior samples.

    A guided score is sampled by `steps` steps of DEIS, another method by as many predictor steps.
    `kind` and `name` select from COVARIANCES and OPERATORS; `options` are those of the method.
    """
    covariance, operator = COVARIANCES[kind], OPERATORS[name]
    chosen, condition = dict(choose_method(method, **options).options), METHODS[method].condition
    assert condition, "The method is a sampler of its own."
    y = observe(covariance, operator, noise_std)
    measurement = Measurement(operator, jnp.repeat(y, count, 0), noise_std)
    keys = sampling.image_keys(jax.random.key(1), jnp.arange(count))
    solver, levels = solvers.SOLVERS["deis"], solvers.noise_levels(sde, "karras", steps)
    grid = sde.steps(sde.sampling_times(steps))

    @jax.jit
    def sample(keys: Array) -> Array:
        prior = sampling.prior_sample(keys, sde, (count, *SHAPE))
        score, x, changes = condition(
            exact_score(sde, covariance), sde, measurement, prior, **chosen
        )
        if not changes:
            prediction = {"noise_prediction": solver.noise_prediction}
            return solvers.few_step(keys, score, sde, x, solver.plan(levels), 0.0, **prediction)[0]
        predictor = changes.pop("wrap_predictor", lambda each: each)(sampling.reverse_diffusion)
        return sampling.predictor_corrector(
            keys, score, sde, x, grid, predictor=predictor, **changes
        )[0]

    x = np.asarray(sample(keys), np.float64).reshape(count, SIZE)
    return errors(x, covariance, operator, y, noise_std)
