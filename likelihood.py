"""Log-likelihoods and latent codes by the probability-flow ODE (arXiv:2011.13456, Appendix D.2).

The ODE is solved for a scaled state u = x / a and a time tau, `solvers.scaled_flow`. With its
right-hand side h the result is

  log p(x) = log p(x_T) + dims log(a_T / a) + integral of tr(dh/du) dtau.

Hutchinson's estimator with a probe v replaces tr(dh/du) by v.(dh/du)v and dims by |v|^2; this
equals the estimate of the official code for the same probe.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Key, Num

from errors import InputError, choose
from sde_lib import SDE, Score, expand
from solvers.adaptive import by_event
from solvers.density import solver
from solvers.loop import fold_in, standard_normal, uniform
from solvers.scaled_flow import DATA_STD, Endpoints, find_endpoints, scaled_residual

TOLERANCE = 1e-3
"""Error per step of u and of log p per dimension, relative and absolute; see docs/likelihood.md."""

MOST_NOISE = 0.999
"""The largest share of noise in the variance at t_min that `model_error` resolves."""


class Likelihood(NamedTuple):
    """Log-likelihoods of B images, by k probes.

    Attributes:
      logp: log-density in nats (B,), averaged over the probes.
      per_probe: estimates by the single probes (B, k), in nats; their variance is that of
        Hutchinson's estimator.
      z: latent codes (B, ...).
      nfe: number of score evaluations per image (B,). An evaluation includes the derivatives along
        all probes.
      error: the solver's estimate of its error in logp, in nats (B,): the sum over steps of the
        absolute difference between the embedded solutions of orders 3 and 2. A difference in u is
        converted to one in log p by the gradient of log p, the score. The solution of order 3 is
        used, so the true error is usually smaller. With fixed levels, the traces are left out.
    """

    logp: Array
    per_probe: Array
    z: Array
    nfe: Array
    error: Array


class Bound(NamedTuple):
    """An upper bound of -log p of B images.

    Attributes:
      nats: the bound (B,).
      stderr: the standard error of its estimate (B,), in nats.
      parts: what the parts of the range of noise levels add to the bound for N(0, c^2 I) data
        (pairs, B), in nats, from the lowest levels to the highest; see `elbo`.
    """

    nats: Array
    stderr: Array
    parts: Array


def _rademacher(key: Array, shape: tuple[int, ...]) -> Array:
    return jax.random.rademacher(key, shape, jnp.float32)


def _gaussian(key: Array, shape: tuple[int, ...]) -> Array:
    return jax.random.normal(key, shape)


def _unit_vectors(key: Array, shape: tuple[int, ...]) -> Array:
    del key
    dims = shape[0]
    return math.sqrt(dims) * jnp.eye(dims).reshape(shape)


PROBES = {"Rademacher": _rademacher, "Gaussian": _gaussian, "exact": _unit_vectors}
"""(key, (k, ...)) -> probes (k, ...), by `eval.bpd_trace`."""


def draw_probes(
    keys: Key[Array, " b"], shape: tuple[int, ...], kind: str = "Rademacher", count: int = 1
) -> Float[Array, "b k ..."]:
    """Draw the probes (B, k, ...) of the trace estimator, Eq. (40); those of image i from keys[i].

    Args:
      keys: one random key per image.
      shape: the shape (B, ...) of the images.
      kind: 'Rademacher'; 'Gaussian', whose variance is larger because the lengths of the probes
        vary; or 'exact', the k = dims unit vectors times sqrt(dims), whose mean estimate is the
        exact trace. The cost of 'exact' is that of dims probes.
      count: the number of random probes per image; ignored if kind is 'exact'.

    Raises InputError for an unknown kind.
    """
    draw = choose(PROBES, kind, "the kind of Hutchinson probe")
    image_shape = shape[1:]
    size = math.prod(image_shape) if kind == "exact" else count
    return jax.vmap(lambda key: draw(key, (size, *image_shape)))(keys)


def log_likelihood(
    score: Score,
    sde: SDE,
    x: Num[Array, "b ..."],
    probes: Float[Array, "b k ..."],
    *,
    tolerance: float = TOLERANCE,
    steps: int | None = None,
) -> Likelihood:
    """Compute log p(x) by the instantaneous change of variables, Eq. (39).

    The prior is used as p_T. For VE, the prior N(0, sigma_max^2 I) ignores the mean m and the
    variance s^2 of the data, which lowers log p by m^2 / (2 sigma_max^2) + s^4 / (4 sigma_max^4)
    nats per dimension on average (the Kullback-Leibler divergence). The error of one image is at
    most |z m| / sigma_max + |z^2 - 1| s^2 / (2 sigma_max^2) per dimension, z being standard normal.
    For data in [-1, 1] and sigma_max = 50 the average is at most 2e-4. For VP and sub-VP the same
    holds with alpha(T) / std(T) = 7e-3 in place of 1 / sigma_max; the average is below 3e-5.

    Args:
      score: the score function.
      sde: the SDE; x is interpreted as a state at its t_min.
      x: dequantized data (B, ...), in the range that the model was trained on.
      probes: (B, k, ...), see `draw_probes`. Adaptive steps use the same ones at all levels: others
        at each evaluation would make the ODE a random one.
      tolerance: of the adaptive steps, which differ between images.
      steps: evaluates the score at this number of fixed noise levels instead, with signs of the
        probes that differ between levels: a smaller error of random probes and a larger one of
        the solver, see docs/likelihood.md.

    Raises InputError for integer gray levels, which have no density, and for invalid `steps`.
    """
    check_dequantized(x)
    endpoints, solve = find_endpoints(sde), solver(tolerance, steps)
    data, score_of = by_event(score)

    def solve_one(x: Array, probes: Array, data: list[Array]) -> tuple[Any, Array]:
        return solve(score_of(data), sde, x, probes)

    (u, traces, error), nfe = jax.vmap(solve_one)(x, probes, data)
    z = endpoints.scale[1] * u
    dims = math.prod(x.shape[1:])
    squares = jnp.sum(jnp.square(probes.reshape(*probes.shape[:2], -1)), -1)
    log_scale = squares * jnp.log(endpoints.scale[1] / endpoints.scale[0])
    per_probe = sde.prior_logp(z)[:, None] + log_scale + dims * traces
    return Likelihood(per_probe.mean(1), per_probe, z, nfe, dims * error)


def elbo(
    score: Score, sde: SDE, x: Num[Array, "b ..."], keys: Key[Array, " b"], *, pairs: int = 16
) -> Bound:
    """Estimate an upper bound of -log p(x) for the density p of the reverse SDE, Eq. (6), at t_min.

    This is Theorem 3 of Song et al. (2021b, arXiv:2101.09258), for a forward process that starts
    from x at t_min, as does the ODE of `log_likelihood`. Let std' z with z ~ N(0, I) be the noise
    added between t_min and t. Then the bound is the mean of

      -log prior(x_T) + 1/2 integral of g^2 |score + z / std'|^2 - g^2 |z / std'|^2 - 2 div f dt.

    It is tight if the score is that of a process whose p_T is the prior. In general p is not the
    density of `log_likelihood`, which may lie on either side of the bound.

    The integral is estimated at random noise levels. The paper draws log(sigma) uniformly, because
    g^2 dt = 2 std^2 dlog(sigma). Here q is uniform, where sigma = sigma(t_min) cosh(q): this is
    log(sigma) except near t_min, where the variance of z / std' would be infinite. The bound for
    N(0, c^2 I) data, -log N(x; 0, a^2 I), is known and subtracted. What remains is the integral of
    tanh(q) (|h|^2 + 2 tanh(tau) h.u) - 2 h.z over q.

    Args:
      score, sde, x: as for `log_likelihood`.
      keys: random keys (B,), one per image.
      pairs: number of equal parts of the range of q. Each has two random times, from whose
        difference the standard error is computed; the score is evaluated 2 `pairs` times.

    Raises InputError for integer gray levels, which have no density.
    """
    check_dequantized(x)
    endpoints = find_endpoints(sde)
    sigma_min = endpoints.sigma[0]
    q_max = jnp.arccosh(endpoints.sigma[1] / sigma_min)

    def integrand(index: Array) -> Array:
        q_keys, z_keys = (fold_in(fold_in(keys, index), purpose) for purpose in range(2))
        q = (index // 2 + uniform(q_keys, x.shape[:1])) / pairs * q_max
        z = standard_normal(z_keys, x.shape)
        sigma = sigma_min * jnp.cosh(q)
        total_std = jnp.hypot(DATA_STD, sigma)
        noised = x / endpoints.alpha[0] + expand(sigma_min * jnp.sinh(q), x) * z
        u = noised / expand(total_std, x)
        h = scaled_residual(score, sde, u, sde.time_at(sigma))
        squares = h**2 + 2 * expand(sigma / total_std, u) * h * u
        return jnp.tanh(q) * _sum_per_image(squares) - 2 * _sum_per_image(h * z)

    # Training uses few pairs, which are evaluated in one batch; evaluation bounds its memory.
    indices = jnp.arange(2 * pairs)
    values = jax.vmap(integrand)(indices) if pairs <= 2 else lax.map(integrand, indices)
    values = q_max * values.reshape(pairs, 2, -1)
    stderr = jnp.sqrt(jnp.sum((values[:, 0] - values[:, 1]) ** 2, 0)) / (2 * pairs)
    parts = values.mean(1) / pairs
    return Bound(_gaussian_bound(sde, endpoints, x) + parts.sum(0), stderr, parts)


def model_error(score: Score, sde: SDE, x: Array, z: Array, probes: Array) -> Array:
    """Return how far log p(x) of `log_likelihood` is from that of the data, in nats (B,).

    It is the sum of two estimates. With s = grad log p_t and its derivative J, from the score:

    - log p_T(z) minus that of the prior. p_T is close to a Gaussian with the precision -J, so that
      log p_T(z) = (s(0) + s(z)).z / 2 + a constant, which follows from the mean and the mean
      precision. Both are exact for Gaussian data, the constant if the data have covariance c^2 I.
    - log p_0(x) minus log p_t(x) at t = t_min. Let U = -var J be the share of the variance of x_t
      that is noise. For Gaussian data, removing it changes log p by
      log det(1 - U) / 2 + s.(1 - U)^-1 s var / 2. Here U has the value u = tr U^2 / tr U in
      tr U / u dimensions, and 0 in the others. Dividing x by alpha adds (dims + s.x) log(alpha).
      U is negative between modes. What goes beyond first order in var is added as its error.

    Probes estimate the traces as in `log_likelihood`. Errors of the score are not seen, nor are
    features of the data far below std(t_min) that are rare.
    """
    dims, prior_var = math.prod(x.shape[1:]), sde.prior_std**2
    s, trace, _ = _score_and_traces(score, z, sde.T, probes)
    origin = score(jnp.zeros_like(z), jnp.full(len(z), sde.T))
    precision = jnp.maximum(-trace, 1e-3 * dims / prior_var) / dims
    squares = 0.5 * _sum_per_image(z * (s + origin + z / prior_var))
    at_end = squares - 0.5 * _sum_per_image(origin**2) / precision
    at_end += 0.5 * dims * jnp.log(precision * prior_var)

    t = jnp.float32(sde.t_min)
    s, trace, squared_trace = _score_and_traces(score, x, sde.t_min, probes)
    var = sde.var(t)
    bound = var * jnp.sqrt(squared_trace)  # of the absolute values of all shares
    share = var * squared_trace / jnp.where(trace == 0, 1e-30, -trace)
    share = jnp.clip(share, -bound, jnp.minimum(bound, MOST_NOISE))
    count = jnp.minimum(trace**2 / jnp.maximum(squared_trace, 1e-30), dims)
    squares = _sum_per_image(s**2)
    gaussian = 0.5 * (count * jnp.log1p(-share) + var * squares / (1 - share))
    unsure = gaussian - 0.5 * var * (trace + squares)
    scaling = jnp.log(sde.alpha(t)) * (dims + _sum_per_image(s * x))
    return jnp.abs(at_end) + jnp.abs(gaussian + scaling) + jnp.abs(unsure)


def _score_and_traces(
    score: Score, x: Array, t: float, probes: Array
) -> tuple[Array, Array, Array]:
    """Return s = score(x, t) (B, ...), and tr J and tr J^2 (B,) of its derivative J."""
    times = jnp.full(len(x), t)
    s, push = jax.linearize(lambda x: score(x, times), x)
    products = jax.lax.map(push, probes.swapaxes(0, 1)).swapaxes(0, 1)
    flat, pushed = (each.reshape(*probes.shape[:2], -1) for each in (probes, products))
    return s, (flat * pushed).sum(-1).mean(1), jnp.square(pushed).sum(-1).mean(1)


def probe_stderr(per_probe: Array, kind: str) -> Array:
    """Return the standard error (B,) of means over the probes, in the units of `per_probe` (B, k).

    It is 0 for the kind 'exact' of `draw_probes`, and NaN for a single random probe.
    """
    batch, count = per_probe.shape
    if kind == "exact":
        return jnp.zeros(batch)
    if count == 1:
        return jnp.full(batch, jnp.nan)
    return per_probe.std(1, ddof=1) / math.sqrt(count)


def bits_per_dim(logp: Array, dims: int, log_scale: float) -> Array:
    """Convert log p(x) in nats to bits/dim of the gray levels u, where x = scale u + shift.

    The change of variables gives log p(u) = log p(x) + dims log(scale). With uniform dequantization
    of u, the mean is an upper bound of the bits/dim of the discrete images (Theis et al. 2016).

    Args:
      logp: log-densities of any shape, which is also that of the result.
      dims: number of dimensions of x.
      log_scale: log(scale).
    """
    return -(logp + dims * log_scale) / (dims * math.log(2.0))


def _gaussian_bound(sde: SDE, endpoints: Endpoints, x: Array) -> Array:
    """The bound (B,) for the exact score of N(0, c^2 I) data, in nats.

    It is -log N(x; 0, a^2 I) plus the mean of log N(x_T; 0, a_T^2 I) - log prior(x_T) over forward
    paths from x at t_min.
    """
    dims, square = math.prod(x.shape[1:]), _sum_per_image(x**2)
    start, end = endpoints.scale
    mean_square = endpoints.alpha[1] ** 2 * (
        square / endpoints.alpha[0] ** 2
        + dims * (endpoints.sigma[1] ** 2 - endpoints.sigma[0] ** 2)
    )
    nll = 0.5 * square / start**2 + dims * (jnp.log(start) + 0.5 * math.log(2 * math.pi))
    return (
        nll
        + dims * jnp.log(sde.prior_std / end)
        + 0.5 * mean_square * (1 / sde.prior_std**2 - 1 / end**2)
    )


def _sum_per_image(values: Array) -> Array:
    return values.reshape(values.shape[0], -1).sum(-1)


def check_dequantized(x: Array) -> None:
    """Raise InputError if x has an integer type."""
    dtype = jnp.asarray(x).dtype
    if not jnp.issubdtype(dtype, jnp.floating):
        raise InputError(
            f"The likelihood requires floating-point data, not {dtype}: integer gray levels have "
            f"no density. Add uniform noise with `Scaler.dequantize`."
        )
