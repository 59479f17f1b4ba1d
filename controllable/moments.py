"""x_0 and y given states of particles: a Gaussian near each, by moment matching, and proposals."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from controllable.measurements import Evidence, Measurement, Observation
from controllable.operators import linear
from sde_lib import SDE, Score
from solvers.loop import standard_normal

POINTS = 32  # of x_0, at which a function is compared with its linearization
LARGEST = 1e15  # of differences, so that their squares are finite
NODES, WIDTHS = 17, (5.0, 0.6, 0.08, 0.01)  # of integrals, in standard deviations
NEGLIGIBLE = 1e-6  # the smallest eigenvalue of C / s^2; rounding may give one below 0

einsum, matmul = linear.einsum, linear.matmul


class Local(NamedTuple):
    """The Gaussian of x_0 and y given states u (N, D): x_0 = D + V offset.

    Attributes:
      mean: D (N, D).
      variances, axes: eigenvalues (N, D) of the covariance C, and its eigenvectors V (N, D, D).
      residual: y - f(D), (N, M).
      slope: the derivative of f along the axes (N, M, D).
      noise_var: the variance of the noise of y (N, M).
      log_scale: what the logarithm of this Gaussian of y lacks of the density of y (N,).
      chol: the Cholesky factor of the covariance of y (N, M, M).
      log_twist: log p(y | u), (N,).
      square: the squared Mahalanobis distance of the residual (N,); None for a log-likelihood.
    """

    mean: Array
    variances: Array
    axes: Array
    residual: Array
    slope: Array
    noise_var: Array
    log_scale: Array
    chol: Array
    log_twist: Array
    square: Array | None


class LocalModel:
    """x_0 and y given states: a Gaussian near each of N particles."""

    def __init__(
        self, score: Score, sde: SDE, measurement: Evidence, shape: tuple[int, ...]
    ) -> None:
        self._score, self._sde, self._measurement = score, sde, measurement
        self._shape, self._size = shape, math.prod(shape)
        self._is_linear = isinstance(measurement, Measurement)
        if isinstance(measurement, Measurement):
            left, self._matrix = _measured_part(measurement, shape)
            self._y = matmul(measurement.y.reshape(-1, len(left)), left)

    def near(self, u: Array, level: Array, t: Array) -> Local:
        """Return the Gaussian given states u (N, D) at a noise level and its time t."""
        alpha, times = self._sde.alpha(t), jnp.broadcast_to(t, len(u))

        def denoise(u: Array) -> Array:
            x = (alpha * u).reshape(-1, *self._shape)
            return u + level**2 * alpha * self._score(x, times).reshape(u.shape)

        mean, push = jax.linearize(denoise, u)
        directions = jnp.broadcast_to(jnp.eye(self._size)[:, None], (self._size, *u.shape))
        jacobian = jax.vmap(push, out_axes=-1)(directions)
        symmetric = (jacobian + jacobian.swapaxes(1, 2)) / 2
        shares, axes = jnp.linalg.eigh(symmetric, symmetrize_input=False)
        variances = level**2 * jnp.maximum(shares, NEGLIGIBLE)
        residual, slope, noise_var, log_scale = self._linearize(mean, variances, axes)
        chol = _cholesky(slope, variances, noise_var)
        log_normal, square = _log_normal(residual, chol)
        known = residual, slope, noise_var, log_scale, chol, log_scale + log_normal
        has_residual = isinstance(self._measurement, Observation)
        return Local(mean, variances, axes, *known, square if has_residual else None)

    def _linearize(self, mean: Array, variances: Array, axes: Array) -> tuple[Array, ...]:
        """Return residual, slope, noise_var and log_scale of `Local`."""
        measurement, count = self._measurement, len(mean)
        if isinstance(measurement, Measurement):
            residual = self._y - matmul(mean, self._matrix.T)
            noise_var = jnp.full(residual.shape, measurement.noise_std**2)
            return residual, matmul(self._matrix, axes), noise_var, jnp.zeros(count)
        if not isinstance(measurement, Observation):
            return self._expand(mean, jnp.sqrt(variances), axes)
        near = measurement.linearize(mean.reshape(-1, *self._shape), jnp.ones(count))

        def along(axis: Array) -> Array:
            return near.forward(axis.reshape(-1, *self._shape)).reshape(count, -1)

        slope = jax.vmap(along, in_axes=-1, out_axes=-1)(axes)
        noise_var = jnp.broadcast_to(near.noise_var, near.residual.shape)
        residual, noise_var = (each.reshape(count, -1) for each in (near.residual, noise_var))
        offset, rest = self._nonlinear_part(measurement, mean, jnp.sqrt(variances), axes, slope)
        return residual - offset, slope, noise_var + rest, jnp.zeros(count)

    def _nonlinear_part(
        self, measurement: Observation, mean: Array, stds: Array, axes: Array, slope: Array
    ) -> tuple[Array, Array]:
        """Return mean and variance (N, M) of f(x_0) minus its linearization, by POINTS of x_0.

        They count as noise of y, so that y has little effect until the linearization holds.
        """
        z = np.random.default_rng(0).normal(size=(POINTS // 2, self._size)).astype(np.float32)
        offsets = stds * np.concatenate([z, -z])[:, None]  # (POINTS, N, D)
        x = mean + einsum("nij,knj->kni", axes, offsets)

        def predict(x: Array) -> Array:
            return measurement.predict(x.reshape(-1, *self._shape)).reshape(len(x), -1)

        found = jax.lax.map(predict, x) - predict(mean) - einsum("nmd,knd->knm", slope, offsets)
        found = jnp.clip(jnp.where(jnp.isnan(found), 0, found), -LARGEST, LARGEST)
        return found.mean(0), found.var(0)

    def _expand(self, mean: Array, stds: Array, axes: Array) -> tuple[Array, ...]:
        """Return `_linearize` of a log-likelihood l: a Gaussian of y with the right moments.

        In x_0 = D + V sqrt(C) Q e, e is standard normal, and Q has the eigenvectors of the Hessian
        of l at D, or of its gradient where it is nearly linear. Along each entry of e, the mass,
        the mean and the variance given y are integrated. So a likelihood that is narrower than C,
        or has heavy tails, is as wide as C lets it be. This is exact if l is a sum of functions of
        the entries of e.
        """

        def log_prob(x: Array) -> Array:
            return self._measurement.log_prob(x.reshape(-1, *self._shape))

        def gradient(x: Array) -> Array:
            return jax.grad(lambda x: log_prob(x).sum())(x)

        value, (slope, along) = log_prob(mean), jax.linearize(gradient, mean)
        scaled = jnp.moveaxis(axes * stds[:, None], -1, 0)  # V sqrt(C), the columns first
        hessian = einsum("ind,jnd->nij", scaled, jax.vmap(along)(scaled))
        g = einsum("ind,nd->ni", scaled, slope)
        g = g / (1e-30 + jnp.linalg.norm(g, axis=1, keepdims=True))
        matrix = 0.01 * g[:, :, None] * g[:, None] - hessian
        _, q = jnp.linalg.eigh(jnp.where(jnp.isfinite(matrix), matrix, 0), symmetrize_input=True)

        def along_line(direction: Array) -> tuple[Array, ...]:
            def log_density(e: Array) -> Array:
                change = log_prob(mean + e[:, None] * direction) - value
                return jnp.where(jnp.isfinite(value), change, 0) - 0.5 * e**2

            return integrate(jax.vmap(log_density, 1, 1), len(mean))

        log_mass, shift, var = jax.lax.map(along_line, einsum("ind,nij->jnd", scaled, q))
        log_mass, shift, var = log_mass.sum(0), shift.T, var.T
        h = jnp.maximum(1 / var - 1, jnp.square(shift) / 100 + NEGLIGIBLE)  # for rounding
        residual = shift * (1 + h) / jnp.sqrt(h)
        log_scale = 0.5 * (residual**2 / (1 + h) + jnp.log1p(h) + math.log(2 * math.pi))
        matrix = jnp.sqrt(h)[..., None] * q.swapaxes(1, 2) / stds[:, None]
        return residual, matrix, jnp.ones_like(h), value + log_mass + log_scale.sum(-1)

    def propose(
        self, keys: Array, u: Array, local: Local, level: Array, next_level: Array
    ) -> tuple[Array, Array]:
        """Return states at the next level given y (N, D), and log p(y | next state, u) (N,).

        x_0 is drawn given y by correcting a draw without y (Matheron's rule). The ratio of the
        transitions without and with y is p(y | u) / p(y | next state, u), by Bayes' rule.
        """
        size, count = self._size, local.residual.shape[1]
        noise = standard_normal(keys, (len(u), 2 * size + count))
        z, jump, error = noise[:, :size], noise[:, size : 2 * size], noise[:, 2 * size :]
        offset = jnp.sqrt(local.variances) * z
        predicted = einsum("nmd,nd->nm", local.slope, offset) + jnp.sqrt(local.noise_var) * error
        gain = jax.scipy.linalg.cho_solve(
            (local.chol, True), (local.residual - predicted)[..., None]
        )
        offset += local.variances * einsum("nmd,nm->nd", local.slope, gain[..., 0])
        kept = (next_level / level) ** 2
        var = next_level**2 * (1 - kept)  # of the transition given x_0
        # The coordinates of the next state, of which offset (N, D) is known up to variance `rest`.
        moved = (1 - kept) * offset + jnp.sqrt(var) * jump
        u = kept * u + (1 - kept) * local.mean + einsum("nij,nj->ni", local.axes, moved)
        total = (1 - kept) ** 2 * local.variances + var
        known = (1 - kept) * local.variances / total * moved
        # 0 * known: not before `gain`. Batches of LAPACK that run at the same time wait for each
        # other forever if there are as few threads as batches (jaxlib 0.10, on CPUs).
        rest = local.variances * var / total + 0 * known
        is_last = next_level == 0
        # A linear measurement needs no correction at the end, and may be free of noise.
        skipped = is_last if self._is_linear else jnp.zeros_like(is_last)
        residual = local.residual - einsum("nmd,nd->nm", local.slope, known)
        chol = _cholesky(local.slope, rest, local.noise_var + skipped)
        log_density = local.log_scale + _log_normal(residual, chol)[0]
        return u, jnp.where(skipped, 0, log_density)

    def last_log_weight(self, x: Array) -> Array:
        """Return log p(y | x) (N,), where the last proposal does not contain it exactly."""
        if self._is_linear:
            return jnp.zeros(len(x))
        return self._measurement.log_prob(x) + self._measurement.log_constant


def _measured_part(
    measurement: Measurement, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Return U (M, K) with orthonormal columns, and U' A (K, D), for flattened events and y."""
    size = math.prod(shape)
    with jax.ensure_compile_time_eval():
        columns = measurement.predict(jnp.eye(size).reshape(size, *shape)).reshape(size, -1)
        u, s, vt = np.linalg.svd(np.asarray(columns, np.float64).T, full_matrices=False)
    kept = s > linear.NEGLIGIBLE * max(s.max(), 1e-30)
    return u[:, kept].astype(np.float32), (s[:, None] * vt)[kept].astype(np.float32)


def integrate(log_density: Callable[[Array], Array], count: int) -> tuple[Array, Array, Array]:
    """Return log mass, mean and variance (N,) of densities of one number, up to sqrt(2 pi).

    `log_density` maps numbers (N, K), `count` = N, to the logarithms. Nodes are evenly spaced at
    first, and then denser and denser about the largest value.
    """
    best = jnp.zeros((count, 1))
    nodes, logs = best, log_density(best)
    for width in WIDTHS:
        new = best + width * np.linspace(-1, 1, NODES, dtype=np.float32)
        found = log_density(new)
        nodes = jnp.concatenate([nodes, new], 1)
        logs = jnp.concatenate([logs, jnp.where(jnp.isnan(found), -jnp.inf, found)], 1)
        best = jnp.take_along_axis(nodes, logs.argmax(1)[:, None], 1)
    order = nodes.argsort(1)
    nodes, logs = (jnp.take_along_axis(each, order, 1) for each in (nodes, logs))
    ends = jnp.concatenate([nodes[:, :1], nodes, nodes[:, -1:]], 1)
    largest = logs.max(1)
    masses = jnp.exp(logs - largest[:, None]) * (ends[:, 2:] - ends[:, :-2]) / 2
    mass = masses.sum(1)
    mean = (masses * nodes).sum(1) / mass
    var = (masses * jnp.square(nodes - mean[:, None])).sum(1) / mass
    least = (WIDTHS[-1] / NODES) ** 2
    return largest + jnp.log(mass / math.sqrt(2 * math.pi)), mean, jnp.maximum(var, least)


def _cholesky(slope: Array, variances: Array, noise_var: Array) -> Array:
    """Return the Cholesky factors (N, M, M) of the covariances of slope offset + noise (N, M)."""
    covariance = einsum("nid,nd,njd->nij", slope, variances, slope)
    return jnp.linalg.cholesky(covariance + noise_var[..., None] * jnp.eye(slope.shape[1]))


def _log_normal(residual: Array, chol: Array) -> tuple[Array, Array]:
    """Return the log-density (N,) of residuals (N, M), and their squared Mahalanobis distance.

    `chol` has the Cholesky factors (N, M, M) of their covariances.
    """
    z = jax.scipy.linalg.solve_triangular(chol, residual[..., None], lower=True)[..., 0]
    log_scale = jnp.log(jnp.diagonal(chol, axis1=1, axis2=2)) + 0.5 * math.log(2 * math.pi)
    square = jnp.square(z).sum(-1)
    return -0.5 * square - log_scale.sum(-1), square
