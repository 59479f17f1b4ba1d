"""The probability-flow ODE with a scaled state and time.

The ODE is solved with a changed state and a changed time, because its right-hand side in (x, t)
varies by orders of magnitude between t_min and T. The state is divided by the standard deviation
that it would have for data from N(0, c^2 I), so that the solver integrates only the difference
between the real data and this Gaussian. The time is a function of the noise level along which this
difference changes at a nearly constant rate, so that an adaptive solver needs few steps.

In formulas: let sigma = std / alpha, the noise scale of x / alpha, and u = x / a with
a = alpha sqrt(c^2 + sigma^2). With sigma = c sinh(tau), Eq. (13)
of arXiv:2011.13456 becomes

  du/dtau = h(u, tau) = -std score(a u, t) - tanh(tau) u,

where h = 0 for N(0, c^2 I) data. tau behaves like log(sigma) for sigma >> c, and is proportional to
sigma for sigma << c, so that no steps are spent on noise far below the scale of the data. If the
score is exact, h decays like 1 / sigma for large sigma, which suggests arctan(sigma / c) as time
(the derivative of u is then the v-prediction of Salimans & Ho 2022, arXiv:2202.00512). But the
errors of a network do not decay, and this time would amplify them. The solver uses a compromise,
s = tanh(k tau) / k, for which ds/dtau is proportional to sigma^(-2 k) at large sigma.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from sde_lib import SDE, Score, expand

DATA_STD = 0.5
"""c, an approximate standard deviation of the data. It affects the number of steps only."""

TIME_EXPONENT = 0.35
"""k. Values up to 0.42 need fewer steps with exact scores, but more with networks."""


class Endpoints(NamedTuple):
    """s, alpha, sigma and a (as `scale`) of the module docstring at t_min and at T; shapes (2,)."""

    s: Array
    alpha: Array
    sigma: Array
    scale: Array


def find_endpoints(sde: SDE, scale: float = DATA_STD) -> Endpoints:
    """Return the endpoints of the flow, with `scale` in place of c in the definition of s."""
    t = jnp.array([sde.t_min, sde.T], jnp.float32)
    alpha, sigma = sde.alpha(t), sde.noise_to_signal(t)
    s = jnp.tanh(TIME_EXPONENT * jnp.arcsinh(sigma / scale)) / TIME_EXPONENT
    return Endpoints(s, alpha, sigma, alpha * jnp.hypot(DATA_STD, sigma))


def scaled_residual(score: Score, sde: SDE, u: Array, t: Array) -> Array:
    """h(u, tau) for u (B, ...) at times t (B,), in the shape of u."""
    sigma = sde.noise_to_signal(t)
    total_std = jnp.hypot(DATA_STD, sigma)
    x = expand(sde.alpha(t) * total_std, u) * u
    return -expand(sde.std(t), u) * score(x, t) - expand(sigma / total_std, u) * u


def vector_field(
    score: Score, sde: SDE, scale: float = DATA_STD
) -> Callable[..., tuple[Array, Array, Array]]:
    """The ODE of one image: (s, (u, traces (k,), 0), probes (k, ...)) -> derivatives by s.

    The third component of the state holds the error estimate of `error_sum`. `scale` replaces c in
    the definition of s.
    """

    def field(
        s: Array, state: tuple[Array, Array, Array], probes: Array
    ) -> tuple[Array, Array, Array]:
        u, _, _ = state
        sigma, dtau_ds = _level(s, scale)
        t = sde.time_at(sigma)

        def du_ds(u: Array) -> Array:
            return dtau_ds * scaled_residual(score, sde, u[None], t[None])[0]

        derivative, tangent = jax.linearize(du_ds, u)
        traces = jax.vmap(lambda probe: jnp.mean(probe * tangent(probe)))(probes)
        return derivative, traces, jnp.zeros(())

    return field


def _level(s: Array, scale: float) -> tuple[Array, Array]:
    """Return sigma and dtau/ds at s."""
    sigma = scale * jnp.sinh(jnp.arctanh(TIME_EXPONENT * s) / TIME_EXPONENT)
    stretch = jnp.hypot(scale, sigma) / jnp.hypot(DATA_STD, sigma)
    return sigma, stretch / (1 - (TIME_EXPONENT * s) ** 2)


def log_density_change(
    error: Array, u: Array, du_ds: Array, s: Array, scale: float = DATA_STD
) -> Array:
    """Return by how much an error of u changes log p per dimension, to first order.

    It is -mean(error (h coth(tau) + u)), by the definition of h.
    """
    sigma, dtau_ds = _level(s, scale)
    coth = jnp.hypot(DATA_STD, sigma) / sigma
    return -jnp.mean(error * (du_ds / dtau_ds * coth + u))


def error_norm(state: Any) -> Array:
    """The error that the tolerance bounds, for the errors of a state (u, traces, error sum).

    It is the larger of the root mean square of u and the mean of the traces per dimension.
    """
    u, traces, _ = state
    square = jnp.mean(u**2)
    is_zero = square == 0  # In steps of length 0; the gradient of the root would be infinite.
    root = jnp.where(is_zero, 0, jnp.sqrt(jnp.where(is_zero, 1, square)))
    return jnp.maximum(root, jnp.abs(jnp.mean(traces)))
