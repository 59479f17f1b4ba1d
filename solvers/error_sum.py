"""The solver of likelihoods. A file of its own, since importing Diffrax takes half a second."""

from __future__ import annotations

from typing import Any

import diffrax
import jax.numpy as jnp

from solvers.density import log_density_change


class Bosh3WithErrorSum(diffrax.Bosh3):
    """The method of Bogacki & Shampine (order 3), which sums the errors of log p per dimension.

    The sum is the third component of the state.
    """

    def step(
        self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any, solver_state: Any, made_jump: Any
    ) -> Any:
        y1, errors, info, solver_state, result = super().step(
            terms, t0, t1, y0, args, solver_state, made_jump
        )
        (u, traces, total), (u_error, trace_errors, _) = y1, errors
        # The stages in `info` are multiplied by the step length; the last is the one at t1. An
        # image that is done takes steps of length 0 until the others are; they must not divide by
        # it, since the gradient of a value that is not used would be NaN.
        du_ds = info["k"][0][-1] / jnp.where(t1 == t0, 1, t1 - t0)
        error = trace_errors.mean() + log_density_change(u_error, u, du_ds, t1)
        return (u, traces, total + jnp.abs(error)), errors, info, solver_state, result
