"""The probability-flow ODE with its trace, in a scaled state and time: log-densities.

The ODE is solved with a changed state and a changed time, because its right-hand side in (x, t)
varies by orders of magnitude between t_min and T. The state is divided by the standard deviation
that it would have for data from N(0, c^2 I), so that the solver integrates only the difference
between the real data and this Gaussian. The time is a function of the noise level along which this
difference changes at a nearly constant rate, so that an adaptive solver needs few steps.

Let sigma = std / alpha, the noise scale of x / alpha, and u = x / a with
a = alpha sqrt(c^2 + sigma^2). With sigma = c sinh(tau), Eq. (13) of arXiv:2011.13456 becomes

  du/dtau = h(u, tau) = -std score(a u, t) - tanh(tau) u,

where h = 0 for N(0, c^2 I) data. tau behaves like log(sigma) for sigma >> c, and is proportional to
sigma for sigma << c, so that no steps are spent on noise far below the scale of the data. If the
score is exact, h decays like 1 / sigma for large sigma, which suggests arctan(sigma / c) as time
(the derivative of u is then the v-prediction of Salimans & Ho 2022, arXiv:2202.00512). But the
errors of a network do not decay, and this time would amplify them. The solver uses a compromise,
s = tanh(k tau) / k, for which ds/dtau is proportional to sigma^(-2 k) at large sigma.

Steps are adaptive, or lead from one fixed noise level to the next. A fixed number of evaluations
lets the probes differ between levels, as the errors of their trace estimates then average out. The
signs are chosen for this: those of neighboring entries agree at half of the levels, in turns, so
that what they share at successive levels cancels (Walsh functions, with the fastest for the nearest
neighbors). Each probe by itself has the distribution that it had, and the estimate is unbiased.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from errors import InputError
from sde_lib import SDE, Score, expand
from solvers.adaptive import MOST_STEPS, step_controller

DATA_STD = 0.5
"""c, an approximate standard deviation of the data. It affects the number of steps only."""

TIME_EXPONENT = 0.35
"""k. Values up to 0.42 need fewer steps with exact scores, but more with networks."""

FIRST_STEP = 0.05
"""Length of the first step in s. A fixed length needs no evaluations of the score."""

COEFFICIENTS = {"pcoeff": 0.4, "icoeff": 0.3}
"""Of the PI controller of step lengths; with these values it rejects few steps."""

TIME_SCALE = 0.05
"""c in the definition of s for fixed levels, in place of DATA_STD.

A smaller one puts more levels at little noise; docs/likelihood.md has its effect. Adaptive steps
find by themselves what features narrower than DATA_STD need.
"""

STEPS = (3, 1000)
"""The smallest and the largest number of fixed levels."""

State = tuple[Array, Array, Array]


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

    The third component of the state holds the sum of estimated errors. `scale` replaces c in the
    definition of s.
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


# --- solvers --------------------------------------------------------------------------------------


def solve_adaptively(
    score: Score, sde: SDE, x: Array, probes: Array, *, tolerance: float
) -> tuple[State, Array]:
    """Return (u, traces (k,), error sum) at T for one image x (...), and its evaluations.

    Bogacki & Shampine's method of order 3. The state is NaN if the solve failed.
    """
    import diffrax

    endpoints = find_endpoints(sde)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(vector_field(score, sde)),
        _bosh3_with_error_sum(),
        endpoints.s[0],
        endpoints.s[1],
        FIRST_STEP,
        (x / endpoints.scale[0], jnp.zeros(len(probes)), jnp.zeros(())),
        probes,
        stepsize_controller=step_controller(
            *endpoints.s, rtol=tolerance, atol=tolerance, norm=error_norm, **COEFFICIENTS
        ),
        max_steps=MOST_STEPS,
        throw=False,
    )
    successful = solution.result == diffrax.RESULTS.successful
    end = jax.tree.map(lambda leaf: jnp.where(successful, leaf[0], jnp.nan), solution.ys)
    # Each step, accepted or rejected, evaluates three stages; the first also a fourth one.
    return end, 3 * solution.stats["num_steps"] + 1


@functools.cache
def _bosh3_with_error_sum() -> Any:
    """Return Bogacki & Shampine's method, which sums the errors of log p as third component."""
    import diffrax  # It takes a fifth of the start of main.py.

    class Bosh3WithErrorSum(diffrax.Bosh3):
        def step(self, terms: Any, t0: Any, t1: Any, y0: Any, *given: Any, **options: Any) -> Any:
            y1, errors, info, *others = super().step(terms, t0, t1, y0, *given, **options)
            (u, traces, total), (u_error, trace_errors, _) = y1, errors
            # The stages in `info` are multiplied by the step length; the last is the one at t1. An
            # image that is done takes steps of length 0 until the others are; they must not divide
            # by it, since the gradient of a value that is not used would be NaN.
            du_ds = info["k"][0][-1] / jnp.where(t1 == t0, 1, t1 - t0)
            error = trace_errors.mean() + log_density_change(u_error, u, du_ds, t1)
            return (u, traces, total + jnp.abs(error)), errors, info, *others

    return Bosh3WithErrorSum()


def solve_in_steps(
    score: Score, sde: SDE, x: Array, probes: Array, *, steps: int
) -> tuple[State, Array]:
    """Return what `solve_adaptively` does, from one evaluation at each of `steps` levels.

    Radau quadrature integrates the trace, and the method of Adams & Bashforth (order 3) moves u
    from level to level. The error sum is the difference to the method of order 2, and lacks the
    error of the quadrature.

    Raises InputError unless `steps` is in the range of STEPS.
    """
    rule, endpoints = levels(steps), find_endpoints(sde, TIME_SCALE)
    field, length = vector_field(score, sde, TIME_SCALE), endpoints.s[1] - endpoints.s[0]
    walsh = jnp.asarray(signs(steps, x.shape), probes.dtype)

    def step(carry: tuple[State, Array], row: tuple[Array, ...]) -> tuple[Any, None]:
        ((u, traces, total), older), (node, weight, order3, order2, sign) = carry, row
        s = endpoints.s[0] + length * node
        derivative, trace, _ = field(s, (u, traces, total), probes * sign)
        known = jnp.concatenate([older[1:], derivative[None]])
        change, other = (length * jnp.tensordot(each, known, 1) for each in (order3, order2))
        error = log_density_change(change - other, u, derivative, s, TIME_SCALE)
        state = u + change, traces + length * weight * trace, total + jnp.abs(error)
        return (state, known), None

    start = x / endpoints.scale[0], jnp.zeros(len(probes)), jnp.zeros(())
    rows = (*(jnp.asarray(each, jnp.float32) for each in rule), walsh)
    (end, _), _ = lax.scan(step, (start, jnp.zeros((3, *x.shape))), rows)
    return end, jnp.asarray(steps)


class Levels(NamedTuple):
    """Nodes of the unit interval (n,), their quadrature weights (n,), and two Adams methods (n, 3).

    Row i has the weights of the derivatives at the nodes i - 2 to i in the change from node i to
    node i + 1, or to 1.
    """

    nodes: np.ndarray
    weights: np.ndarray
    order3: np.ndarray
    order2: np.ndarray


@functools.cache
def levels(count: int) -> Levels:
    """Return the left Radau rule, exact for polynomials of degree 2 count - 2, and its steps."""
    if not STEPS[0] <= count <= STEPS[1]:
        raise InputError(
            f"steps = {count}, but a likelihood takes {STEPS[0]} to {STEPS[1]} fixed levels. Leave "
            "steps out for adaptive steps."
        )
    legendre = np.polynomial.legendre.Legendre
    roots = legendre([0.0] * (count - 1) + [1, 1]).roots().real
    roots[0] = -1
    weights = (1 - roots) / (count * legendre.basis(count - 1)(roots)) ** 2 / 2
    nodes = (1 + roots) / 2
    methods = (_adams(nodes, order) for order in (3, 2))
    return Levels(nodes, weights, *methods)


def _adams(nodes: np.ndarray, order: int) -> np.ndarray:
    """Return the weights (n, 3) of an Adams method, of a lower order at the first nodes."""
    rows = np.zeros((len(nodes), 3))
    for i, (node, after) in enumerate(zip(nodes, [*nodes[1:], 1.0], strict=True)):
        h, past = after - node, nodes[max(0, i - order + 1) : i + 1] - node
        powers = np.arange(len(past))
        moments = h / (powers + 1)
        rows[i, 3 - len(past) :] = np.linalg.solve((past / h) ** powers[:, None], moments)
    return rows


def signs(count: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return a sign for each level and entry (count, *shape).

    Bit j of the number of the level flips the entries that have a 1 as bit j of their position:
    the lowest bits of all axes, from the last to the first, and then the next ones.
    """
    axes = [(size, index) for size, index in zip(shape, np.indices(shape), strict=True)][::-1]
    bits = [
        index >> place & 1
        for place in range(max(shape, default=1).bit_length())
        for size, index in axes
        if size > 1 << place
    ]
    flips = np.zeros((count, *shape), int)
    for j, bit in enumerate(bits[: (count - 1).bit_length()]):
        flips += np.multiply.outer(np.arange(count) >> j & 1, bit)
    return 1 - 2 * (flips & 1)


Solve = Callable[[Score, SDE, Array, Array], tuple[State, Array]]


def solver(tolerance: float, steps: int | None) -> Solve:
    """Return the solver with this number of levels, or with the tolerance if it is None."""
    if steps is None:
        return functools.partial(solve_adaptively, tolerance=tolerance)
    return functools.partial(solve_in_steps, steps=steps)
