"""Log-likelihoods and latent codes through the probability-flow ODE (arXiv:2011.13456, Section 4.3 and Appendix D.2).

The ODE is solved in coordinates in which there is little to solve. With sigma = std / alpha, the noise scale of
x / alpha, and c the standard deviation of data, roughly, the state is u = x / a, where a = alpha sqrt(c^2 + sigma^2) is
the standard deviation of x if that of the data is c. With sigma = c sinh(tau), Eq. (13) becomes

  du/dtau = h(u, tau) = -std score(a u, t) - tanh(tau) u,

which is 0 for N(0, c^2 I) data: what is solved is how the noise that the score predicts differs from theirs. tau is
log(sigma) where noise prevails and sigma where data do, so that no steps go to noise too small to matter. There h falls
like 1 / sigma if the score is exact, which the angle arctan(sigma / c) would undo (du by that is the v-prediction of
Salimans & Ho 2022, arXiv:2202.00512); but the errors of a network, which do not fall, it would blow up. Between the two
lies the time s = tanh(k tau) / k, by which the ODE is solved, with sigma^(-2 k) for the length of steps in it. Then

  log p(x) = log p(x_T) + dims log(a_T / a) + integral of tr(dh/du) dtau,

where a probe v has |v|^2 in place of dims and v.(dh/du)v in place of the trace, which makes it the official estimate.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
from jax import Array, lax

from errors import InputError, choose
from sampling import fold_in, standard_normal, uniform
from sde_lib import SDE, Score, expand

DATA_STD = 0.5  # c. A wrong one costs steps, not exactness.
TOLERANCE = 1e-3  # Of u and of log p per dimension, relative and absolute, in a step; docs/likelihood.md has others.
BEND = 0.35  # k. With exact scores more saves steps, to 0.42 and on; with the network of the digits it costs some.
FIRST_STEP = 0.05  # In s, where the scale of data is 1; no evaluations are spent on choosing it.
CONTROL = {"pcoeff": 0.4, "icoeff": 0.3}  # Of a PI controller: next to no steps are refused.
PROBES = {
    "Rademacher": lambda key, shape: jax.random.rademacher(key, shape, jnp.float32),
    "Gaussian": jax.random.normal,
    "exact": lambda _, shape: math.sqrt(shape[0]) * jnp.eye(shape[0]).reshape(shape),
}


class Likelihood(NamedTuple):
    """What `log_likelihood` says of B images.

    Attributes:
      logp: log-density in nats (B,), the mean over the probes.
      per_probe: the estimates by the single probes (B, k), in nats; their spread is that of Hutchinson's estimator.
      z: latent codes (B, ...).
      nfe: evaluations of the score for each image (B,); one counts once, with its tangents along all probes.
      error: the solver's estimate of its own error in logp, in nats (B,): the sum over its steps of |difference between
        the embedded solutions of orders 3 and 2|, where that of u counts by the slope of log p, which is the score.
        The solution of order 3 is the one kept, so that the true error is usually less.
    """

    logp: Array
    per_probe: Array
    z: Array
    nfe: Array
    error: Array


class Bound(NamedTuple):
    """An upper bound of -log p in nats (B,), and the standard error of its Monte-Carlo estimate (B,)."""

    nats: Array
    stderr: Array


def draw_probes(
    keys: Array, shape: tuple[int, ...], kind: str = "Rademacher", count: int = 1
) -> Array:
    """Probes (B, k, ...) for the Skilling-Hutchinson trace estimator of x of `shape` (B, ...), image i from keys[i].

    Random ones are k = `count` in number; the Gaussian are noisier, as they differ in length. 'exact' means all
    k = dims unit vectors, times sqrt(dims) so that the mean over the probes is the trace again; as many tangents of the
    network are for small images only.
    """
    probe = choose(PROBES, kind, "the kind of Hutchinson probe")
    size = math.prod(shape[1:]) if kind == "exact" else count
    return jax.vmap(lambda key: probe(key, (size, *shape[1:])))(keys)


def log_likelihood(
    score: Score, sde: SDE, x: Array, probes: Array, *, tolerance: float = TOLERANCE
) -> Likelihood:
    """log p(x) by the instantaneous change of variables, with Hutchinson's estimate of the trace (Appendix D.2).

    The prior stands for p_T. That of VE, N(0, sigma_max^2 I), ignores the mean m and the variance s^2 of data in x_T,
    which lowers log p by m^2 / (2 sigma_max^2) + s^4 / (4 sigma_max^4) nats a dimension on average, the divergence of
    the two; by up to |z m| / sigma_max + |z^2 - 1| s^2 / (2 sigma_max^2) for a standard normal z in a single one.
    That is at most 2e-4 on average for data in [-1, 1] and sigma_max = 50. For VP and sub-VP it is, with alpha(T) /
    std(T) = 7e-3 in place of 1 / sigma_max, below 3e-5.

    Args:
      x: (B, ...), dequantized data in the range that the model was trained on, taken for states at time sde.t_min.
      probes: (B, k, ...), `draw_probes`; held fixed through the solve, so that the ODE stays an ODE.
      tolerance: of the adaptive steps, which every image has of its own.

    Raises InputError for grey levels that are not dequantized: these have no density.
    """
    _check_dequantized(x)
    ends, dims = _ends(sde), math.prod(x.shape[1:])
    squares = jnp.sum(
        jnp.square(probes.reshape(*probes.shape[:2], -1)), -1
    )  # dims, unless they are Gaussian.

    def field(
        s: Array, state: tuple[Array, Array, Array], probes: Array
    ) -> tuple[Array, Array, Array]:
        t = sde.time_at(DATA_STD * jnp.sinh(jnp.arctanh(BEND * s) / BEND))
        rate = 1 / (1 - (BEND * s) ** 2)  # dtau / ds
        slope, tangent = jax.linearize(
            lambda u: rate * _field(score, sde, u[None], t[None])[0], state[0]
        )
        return (
            slope,
            jax.vmap(lambda probe: jnp.mean(probe * tangent(probe)))(probes),
            jnp.zeros(()),
        )

    term = diffrax.ODETerm(field)
    controller = diffrax.PIDController(rtol=tolerance, atol=tolerance, norm=_norm, **CONTROL)
    options = {"stepsize_controller": controller, "max_steps": 2**14, "throw": False}

    def solve(x: Array, probes: Array) -> tuple[tuple[Array, Array, Array], Array]:
        y = x / ends.scale[0], jnp.zeros(len(probes)), jnp.zeros(())
        solution = diffrax.diffeqsolve(
            term, _Bosh3(), ends.s[0], ends.s[1], FIRST_STEP, y, probes, **options
        )
        good = solution.result == diffrax.RESULTS.successful
        y = jax.tree.map(lambda leaf: jnp.where(good, leaf[0], jnp.nan), solution.ys)
        return y, 3 * solution.stats[
            "num_steps"
        ] + 1  # Three new stages a step, accepted or not; one at the start.

    (u, traces, error), nfe = jax.vmap(solve)(x, probes)
    z = ends.scale[1] * u
    per_probe = (
        sde.prior_logp(z)[:, None]
        + squares * jnp.log(ends.scale[1] / ends.scale[0])
        + dims * traces
    )
    return Likelihood(per_probe.mean(1), per_probe, z, nfe, dims * error)


def elbo(score: Score, sde: SDE, x: Array, keys: Array, *, pairs: int = 16) -> Bound:
    """Bounds -log p(x) from above, where p is the law of the reverse SDE, Eq. (6), at t_min if it starts in the prior.

    This is Theorem 3 of Song et al. (2021b, arXiv:2101.09258) for the forward process that starts in x at t_min, where
    the ODE starts, too. If std' z is the noise that it has added by time t, with z ~ N(0, I), the bound is the mean of

      -log prior(x_T) + 1/2 integral of g^2 |score + z / std'|^2 - g^2 |z / std'|^2 - 2 div f dt.

    The bound is tight for the score of a process that ends in the prior. Otherwise p is not the density of
    `log_likelihood`, which may lie on either side.

    The paper's importance sampling makes log(sigma) uniform, as g^2 dt = 2 std^2 dlog(sigma). Here q is uniform, where
    sigma = sigma(t_min) cosh(q): log(sigma) but for the beginning, where z / std' has no finite variance otherwise.
    What the bound is for N(0, c^2 I) data, -log N(x; 0, a^2 I), is known and taken out. There remains the integral of
    tanh(q) (|h|^2 + 2 tanh(tau) h.u) - 2 h.z over q.

    Args:
      x: as in `log_likelihood`. keys: (B,), one per image.
      pairs: the range of q has as many equal parts, each with two random times (hence the standard error), so that the
        score is evaluated 2 `pairs` times.

    Raises InputError as `log_likelihood` does.
    """
    _check_dequantized(x)
    ends = _ends(sde)
    longest = jnp.arccosh(ends.sigma[1] / ends.sigma[0])

    def integrand(index: Array) -> Array:
        time_keys, noise_keys = (fold_in(fold_in(keys, index), purpose) for purpose in range(2))
        q, z = (
            (index // 2 + uniform(time_keys, x.shape[:1])) / pairs * longest,
            standard_normal(noise_keys, x.shape),
        )
        sigma = ends.sigma[0] * jnp.cosh(q)
        spread = jnp.hypot(DATA_STD, sigma)
        u = (x / ends.alpha[0] + expand(ends.sigma[0] * jnp.sinh(q), x) * z) / expand(spread, x)
        h = _field(score, sde, u, sde.time_at(sigma))
        return jnp.tanh(q) * _sum(h**2 + 2 * expand(sigma / spread, u) * h * u) - 2 * _sum(h * z)

    indices = jnp.arange(2 * pairs)
    values = (
        jax.vmap(integrand)(indices) if pairs <= 2 else lax.map(integrand, indices)
    )  # Few are for training.
    values = longest * values.reshape(pairs, 2, -1)
    stderr = jnp.sqrt(jnp.sum((values[:, 0] - values[:, 1]) ** 2, 0)) / (2 * pairs)
    return Bound(_bound_of_reference(sde, ends, x) + values.mean((0, 1)), stderr)


def bits_per_dim(logp: Array, dims: int, log_scale: float) -> Array:
    """-log2 p per dimension of the grey levels u, for x = scale u + shift with log p(x) in nats.

    By the change of variables log p(u) = log p(x) + dims log(scale). With uniform dequantization of u its mean bounds
    the bits/dim of the discrete images from above (Theis et al. 2016).
    """
    return -(logp + dims * log_scale) / (dims * math.log(2.0))


# --- coordinates ------------------------------------------------------------------------------------------------------


class _Ends(NamedTuple):
    """s, alpha, sigma = std / alpha and a (`scale`) at t_min and at T, all of shape (2,)."""

    s: Array
    alpha: Array
    sigma: Array
    scale: Array


def _ends(sde: SDE) -> _Ends:
    t = jnp.array([sde.t_min, sde.T], jnp.float32)
    alpha, sigma = sde.alpha(t), sde.noise_to_signal(t)
    s = jnp.tanh(BEND * jnp.arcsinh(sigma / DATA_STD)) / BEND
    return _Ends(s, alpha, sigma, alpha * jnp.hypot(DATA_STD, sigma))


def _field(score: Score, sde: SDE, u: Array, t: Array) -> Array:
    """h(u, tau) for u (B, ...), at the tau of t (B,)."""
    sigma = sde.noise_to_signal(t)
    spread = jnp.hypot(DATA_STD, sigma)
    return (
        -expand(sde.std(t), u) * score(expand(sde.alpha(t) * spread, u) * u, t)
        - expand(sigma / spread, u) * u
    )


def _bound_of_reference(sde: SDE, ends: _Ends, x: Array) -> Array:
    """-log N(x; 0, a^2 I) + the mean of log N(x_T; 0, a_T^2 I) - log prior(x_T) over paths from x at t_min; (B,)."""
    dims, (start, end), square = math.prod(x.shape[1:]), ends.scale, _sum(x**2)
    mean_square = ends.alpha[1] ** 2 * (
        square / ends.alpha[0] ** 2 + dims * (ends.sigma[1] ** 2 - ends.sigma[0] ** 2)
    )
    entropy = 0.5 * square / start**2 + dims * (jnp.log(start) + 0.5 * math.log(2 * math.pi))
    return (
        entropy
        + dims * jnp.log(sde.prior_std / end)
        + 0.5 * mean_square * (1 / sde.prior_std**2 - 1 / end**2)
    )


def _sum(a: Array) -> Array:
    return a.reshape(a.shape[0], -1).sum(-1)


def _check_dequantized(x: Array) -> None:
    dtype = jnp.asarray(x).dtype
    if not jnp.issubdtype(dtype, jnp.floating):
        raise InputError(
            f"Images of {dtype} have no density; give them uniform noise first: `Scaler.dequantize`."
        )


# --- solver -----------------------------------------------------------------------------------------------------------


class _Bosh3(diffrax.Bosh3):
    """The method of Bogacki & Shampine, of order 3, which adds up the errors of log p per dimension in its third state.

    An error e of u makes one of e . grad log p = -e . (h coth(tau) + u), by the definition of h.
    """

    def step(
        self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any, solver_state: Any, made_jump: Any
    ) -> Any:
        y1, errors, info, solver_state, result = super().step(
            terms, t0, t1, y0, args, solver_state, made_jump
        )
        (u, traces, total), (u_error, trace_errors, _) = y1, errors
        slope = info["k"][0][-1] / (
            t1 - t0
        )  # diffrax keeps stages times the length of the step; the last is at t1.
        h, tau = (1 - (BEND * t1) ** 2) * slope, jnp.arctanh(BEND * t1) / BEND
        local = trace_errors.mean() - jnp.mean(u_error * (h / jnp.tanh(tau) + u))
        return (u, traces, total + jnp.abs(local)), errors, info, solver_state, result


def _norm(y: Any) -> Array:
    """What the tolerance is for: the larger of the root mean square of u and the mean of the traces per dimension."""
    u, traces, _ = y
    return jnp.maximum(jnp.sqrt(jnp.mean(u**2)), jnp.abs(jnp.mean(traces)))
