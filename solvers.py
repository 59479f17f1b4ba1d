"""Adaptive integration of black-box ODEs, on the device and with steps of its own for every image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import diffrax
import jax
import jax.numpy as jnp
from jax import Array

State = TypeVar("State")


def integrate(
    field: Callable[[Array, State, Any], State],
    y0: State,
    t0: float,
    t1: float,
    *,
    args: Any = None,
    rtol: float,
    atol: float,
) -> tuple[State, Array]:
    """Solves dy/dt = field(t, y, args) from t0 to t1 by Dormand-Prince 5(4), each image with its own step sizes.

    Args:
      field: of one image: t of shape (), y and args without batch axis.
      y0, args: states and constants, with a leading batch axis B on every leaf.

    Returns:
      y(t1), NaN for an image whose solve failed, and the number of evaluations of the field for each image (B,).
    """
    term = diffrax.ODETerm(field)
    controller = diffrax.PIDController(rtol=rtol, atol=atol)

    def solve(y: State, args: Any) -> tuple[State, Array]:
        solution = diffrax.diffeqsolve(
            term, diffrax.Dopri5(), t0, t1, None, y, args, stepsize_controller=controller, max_steps=2**14, throw=False
        )
        good = solution.result == diffrax.RESULTS.successful
        y1 = jax.tree.map(lambda leaf: jnp.where(good, leaf[0], jnp.nan), solution.ys)
        # Six new stages a step, accepted or not; one evaluation at the start, two for the choice of the first step.
        return y1, 6 * solution.stats["num_steps"] + 3

    return jax.vmap(solve)(y0, args)
