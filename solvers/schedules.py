"""Noise levels std / alpha at which few-step solvers evaluate the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float64

from errors import InputError, choose
from options import SHORT
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
    sde: SDE, schedule: str | Sequence[float], n: int, *, denoise: bool = True
) -> Float64[np.ndarray, " levels"]:
    """Return the n + 1 levels of n steps from time T to t_end.

    With `denoise`, the last step leads to level 0, in a named schedule from time t_end.
    Raises InputError for an unknown schedule, and for other levels than from T to the end.
    """
    with jax.ensure_compile_time_eval():
        first, last = _levels_at(sde, jnp.array([sde.T, sde.t_end]))
        if isinstance(schedule, str):
            evaluate = choose(SCHEDULES, schedule.lower(), "sampling.schedule")
            count = n if denoise else n + 1
            return np.append(evaluate(sde, first, last, count), [0.0] * denoise)
    levels, ends = np.array(schedule, np.float64), [first, 0 if denoise else last]
    if not np.allclose(levels[[0, -1]], ends, rtol=1e-3, atol=0) or np.any(np.diff(levels) >= 0):
        raise InputError(
            f"schedule = {SHORT.repr(schedule)} must descend from {ends[0]:.6g}, the noise level "
            f"of time T, to {ends[1]:.6g}."
        )
    return levels


def schedule_title(schedule: str | Sequence[float]) -> str:
    """Return a schedule in words."""
    if isinstance(schedule, str):
        return f"the schedule {schedule!r}"
    return f"the noise levels {', '.join(f'{level:.3g}' for level in schedule)}"


def frame_indices(noise_to_signal: np.ndarray, count: int) -> np.ndarray:
    """Choose up to `count` of n states to show, evenly spaced in what is seen of the noise.

    In x = alpha x_0 + std z the noise makes an angle of arctan(std / alpha) with the data. The
    chosen states, which include the first and the last one, divide the way of this angle evenly.
    Equal steps in time would mostly show nothing but noise.

    Args:
      noise_to_signal: std / alpha (n,) of the states, in order; 0 and inf are allowed.
      count: at least 2.

    Returns:
      min(count, n) increasing numbers of states.
    """
    angles = np.arctan(noise_to_signal)
    way = np.append(0, np.abs(np.diff(angles))).cumsum()
    count = min(count, len(way))
    nearest = np.abs(way[:, None] - np.linspace(0, way[-1], count)).argmin(0)
    order = np.arange(count)
    distinct = np.maximum.accumulate(nearest - order) + order
    return np.minimum(distinct, len(way) - count + order)


def _levels_at(sde: SDE, t: Array) -> np.ndarray:
    return np.asarray(sde.noise_to_signal(t), np.float64)
