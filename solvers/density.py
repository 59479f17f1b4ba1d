"""The scaled flow with its trace: by adaptive steps, or at fixed noise levels.

A fixed number of evaluations lets the probes differ between noise levels, as the errors of their
trace estimates then average out. The signs are chosen for this: those of neighboring entries agree
at half of the levels, in turns, so that what they share at successive levels cancels (Walsh
functions, with the fastest for the nearest neighbors). Each probe by itself has the
distribution that it had, and the estimate remains unbiased.
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
from sde_lib import SDE, Score
from solvers.adaptive import MOST_STEPS, step_controller
from solvers.scaled_flow import error_norm, find_endpoints, log_density_change, vector_field

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


def solve_adaptively(
    score: Score, sde: SDE, x: Array, probes: Array, *, tolerance: float
) -> tuple[State, Array]:
    """Return (u, traces (k,), error sum) at T for one image x (...), and its evaluations.

    Bogacki & Shampine's method of order 3. The state is NaN if the solve failed.
    """
    import diffrax  # It and what imports it take a fifth of the start of main.py.

    from solvers.error_sum import Bosh3WithErrorSum

    endpoints = find_endpoints(sde)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(vector_field(score, sde)),
        Bosh3WithErrorSum(),
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
