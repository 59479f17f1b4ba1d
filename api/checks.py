"""Checks of a score and its SDE, before a prior uses them."""

from __future__ import annotations

import math
import warnings

import jax
import jax.numpy as jnp

import sampling
from api.arguments import check_memory, show, user_code
from api.execution import function_of, is_traced
from errors import InputError
from sde_lib import SDE, Score

MOST_GAP = 0.5  # of the score at time T from that of the SDE's prior, relative to the latter


def check_score(score: Score, sde: SDE, shape: tuple[int, ...]) -> None:
    """Evaluate the score of events of this shape at time T, on samples of the SDE's prior.

    Raises InputError if the kernel of the SDE or the score is not valid. Warns if the score is not
    that of the prior, which log p_T must be close to.
    """
    check_kernel(sde)
    count = next(n for n in range(2, 12) if n not in shape)  # t must not fit x.
    check_memory(count * math.prod(shape), f"shape = {shape}")
    keys, std = jax.random.split(jax.random.key(0), count), sde.prior_std
    x = std * sampling.standard_normal(keys, (count, *shape))
    value = function_of(score)(x, jnp.full(count, sde.T))
    if is_traced(value):
        return
    if not jnp.isfinite(value).all():
        raise InputError(
            f"The score of noise at time T = {sde.T} is not finite. Check that its arguments are a "
            "state x at time t and t itself, for this SDE."
        )
    gap = float(jnp.sqrt(jnp.mean(jnp.square(std * value + x / std))))
    if gap > MOST_GAP:
        warnings.warn(
            f"At time T = {sde.T}, the score differs by {gap:.2g} of its size from that of "
            f"N(0, {std:.4g}^2), where samples start. Samples and densities are wrong. Scale the "
            "data to about mean 0 and standard deviation 1, or use more noise at T.",
            stacklevel=5,  # The caller of the checked constructor.
        )


def check_kernel(sde: SDE) -> None:
    """Raise InputError unless alpha, std and var of the SDE are finite and positive."""
    if not isinstance(sde, SDE):
        raise InputError(f"sde is {show(sde)}, but it must be an SDE such as score_sde.VPSDE().")
    with user_code(f"The SDE {show(sde)} fails"), jax.ensure_compile_time_eval():
        times = jnp.array([sde.t_min, sde.t_end, sde.T])
        kernel = jnp.stack([sde.alpha(times), sde.std(times), sde.var(times)])
        if not (jnp.isfinite(kernel) & (kernel > 0)).all():
            raise InputError(
                f"The SDE {show(sde)} has alpha, std and var {kernel.tolist()} at the times t_min, "
                "t_end and T; all must be finite and above 0 in float32."
            )
