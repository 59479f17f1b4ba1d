"""Noise levels std / alpha at which few-step solvers evaluate the network."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float64

from errors import choose
from sde_lib import SDE

Schedule = Callable[[SDE, float, float, int], np.ndarray]
"""(sde, first level, last level, n) -> n levels."""


def karras(first: float, last: float, n: int, rho: float = 7.0) -> Float64[np.ndarray, " levels"]:
    """Return n levels from first to last, evenly spaced in level^(1 / rho) (EDM, Eq. (5))."""
    return np.linspace(first ** (1 / rho), last ** (1 / rho), n) ** rho


def _time_levels(sde: SDE, first: float, last: float, n: int) -> np.ndarray:
    return _levels_at(sde, sde.sampling_times(n))


def _log_snr_levels(sde: SDE, first: float, last: float, n: int) -> np.ndarray:
    return np.geomspace(first, last, n)


def _karras_levels(sde: SDE, first: float, last: float, n: int) -> np.ndarray:
    return karras(first, last, n)


SCHEDULES: dict[str, Schedule] = {
    "time": _time_levels,
    "log_snr": _log_snr_levels,
    "karras": _karras_levels,
}


def noise_levels(
    sde: SDE, schedule: str, n: int, *, denoise: bool = True
) -> Float64[np.ndarray, " levels"]:
    """Return the n + 1 levels of n steps from time T to t_end.

    With `denoise`, the last step leads to level 0 and the step before it to t_end.
    Raises InputError for an unknown schedule.
    """
    evaluate = choose(SCHEDULES, schedule, "sampling.schedule")
    with jax.ensure_compile_time_eval():
        first, last = _levels_at(sde, jnp.array([sde.T, sde.t_end]))
        if denoise:
            return np.append(evaluate(sde, first, last, n), 0.0)
        return evaluate(sde, first, last, n + 1)


def _levels_at(sde: SDE, t: Array) -> np.ndarray:
    return np.asarray(sde.noise_to_signal(t), np.float64)
