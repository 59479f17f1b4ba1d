"""Scores of users: as functions that samplers take, and checked before a prior uses them."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from api.arguments import is_traced, show, user_code, warn
from errors import InputError
from sde_lib import SDE, Score
from sharding import check_memory

MOST_GAP = 0.5  # of the score at time T from that of the SDE's prior, relative to the latter
STANDARDIZE = "Train on data of mean 0 and standard deviation 1, and pass loc and scale"
NOISE_LEVELS = 8  # at which the standard deviation of the data is estimated


OF_OTHERS = "score_sde.from_torch and from_numpy convert functions of PyTorch and NumPy."


def function_of(score: Score) -> Score:
    """Return a score as a plain function, which samplers do not take for a guided score.

    It raises InputError for what the score raises, and for values of another shape or type.
    """

    def evaluate(x: Array, t: Array) -> Array:
        given = f"The score of x with shape {x.shape} and t with shape {t.shape}"
        with user_code(f"{given} fails ({OF_OTHERS[:-1]})"):
            value = score(x, t)
        if isinstance(value, np.ndarray) or type(value).__module__ == "torch":
            raise InputError(f"{given} is not a JAX array. {OF_OTHERS}")
        shape = getattr(value, "shape", type(value).__name__)
        if shape != x.shape:
            raise InputError(
                f"{given} has shape {shape}; it must be that of x. Apply jax.vmap to a "
                "function of one event; add axes to t before it multiplies x."
            )
        if not jnp.issubdtype(value.dtype, jnp.floating):
            raise InputError(f"{given} has the type {value.dtype}; it must hold real numbers.")
        return value

    return evaluate


# --- checks ---------------------------------------------------------------------------------------


def check_score(score: Score, sde: SDE, shape: tuple[int, ...]) -> None:
    """Evaluate the score of events of this shape at time T, on samples of the SDE's prior.

    Raises InputError if the kernel of the SDE or the score is not valid. Warns if the score is not
    that of the prior, which log p_T must be close to, or if the data vary less than the noise of
    the last step of samplers.
    """
    check_kernel(sde)
    fewest = -(-32 // max(math.prod(shape), 1))
    repeats = next(n for n in range(fewest, fewest + 9) if n * NOISE_LEVELS not in shape)
    count = repeats * NOISE_LEVELS  # An axis of this size would let t fit x.
    check_memory(count * math.prod(shape), f"shape = {shape}")
    std, random = sde.prior_std, np.random.default_rng(0)
    x = std * random.standard_normal((count, *shape), np.float32)
    times = jnp.full(count, sde.T)
    value = function_of(score)(jnp.asarray(x), times)
    if is_traced(value):
        return
    value = np.asarray(value, np.float32)
    if not np.isfinite(value).all():
        raise InputError(
            f"The score of noise at time T = {sde.T} is not finite. Check that its arguments are a "
            "state x at time t and t itself, for this SDE."
        )
    gap = math.sqrt(np.square(std * value + x / std).mean())
    if gap > MOST_GAP:
        warn(
            f"At time T = {sde.T}, the score differs by {gap:.2g} of its size from that of "
            f"N(0, {std:.4g}^2), where samples start. Samples and densities are wrong. "
            f"{STANDARDIZE}, or use more noise at T."
        )
    center = _posterior_mean(sde, value, x, times).mean(0)
    spread, level = _smallest_spread(score, sde, center, repeats)
    if spread < level:
        warn(
            f"The data have a standard deviation of about {spread:.2g}, but the noise of the last "
            f"step of samplers has {level:.2g}. Samples are too narrow and densities too wide. "
            f"{STANDARDIZE}, or lower t_end and t_min."
        )


def _smallest_spread(
    score: Score, sde: SDE, center: np.ndarray, repeats: int
) -> tuple[float, float]:
    """Return about the standard deviation of the data, and the noise level at t_end.

    `center` (*shape) is the mean of the data. At the noise level sigma, E[x_0 | x_t] of Gaussian
    data of standard deviation s differs from it by sigma s^2 / (s^2 + sigma^2), root mean square.
    This is largest, s / 2, where sigma = s. If it is less than half of the level at t_end at all
    levels, s follows from its value there; the result is that or, as a lower bound, the level.
    """
    low, high = np.asarray(sde.noise_to_signal(jnp.array([sde.t_end, sde.T]))).tolist()
    levels = np.repeat(np.geomspace(low, high, NOISE_LEVELS), repeats)
    times = sde.time_at(jnp.asarray(levels, jnp.float32))
    noise = np.random.default_rng(1).standard_normal((len(times), *center.shape))
    alpha, level = (_expand(each, noise) for each in (sde.alpha(times), levels))
    x = (alpha * (center + level * noise)).astype(np.float32)
    value = np.asarray(function_of(score)(jnp.asarray(x), times), np.float32)
    moved = np.square(_posterior_mean(sde, value, x, times) - center)
    by_level = np.sqrt(moved.reshape(NOISE_LEVELS, -1).mean(1))
    share = float(by_level.max() / low)
    return low * math.sqrt(share / (1 - share)) if share < 0.5 else low, low


def _posterior_mean(sde: SDE, value: np.ndarray, x: np.ndarray, t: Array) -> np.ndarray:
    """Return `sde.posterior_mean` by NumPy, for which JAX would compile programs for each shape."""
    return (x + _expand(sde.var(t), x) * value) / _expand(sde.alpha(t), x)


def _expand(coefficient: Array | np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.asarray(coefficient).reshape(-1, *(x.ndim - 1) * (1,))


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
