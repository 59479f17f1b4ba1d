"""Solvers with adaptive steps, chosen for each image: Dormand-Prince for ODEs, and one for SDEs."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

from options import TOLERANCE, Option
from sde_lib import SDE, Score, Step, expand
from solvers.loop import (
    Loop,
    Sampler,
    Samples,
    Setting,
    by_event,
    evaluations,
    fold_in,
    single,
    standard_normal,
    to_samples,
)
from solvers.predictor_corrector import reverse_diffusion

if TYPE_CHECKING:
    import diffrax

State = TypeVar("State")

FIRST_STEP = 0.01
"""Length of the first step of `integrate`. A fixed length needs no evaluations of the field."""


MOST_STEPS = 2**14
"""The largest number of steps of a solve, accepted or rejected."""

SHORTEST_STEP = 1e-7
"""Relative to the interval. Times in float32 hardly resolve shorter steps."""


def step_controller(
    t0: float | Array, t1: float | Array, *, rtol: float, atol: float, **options: Any
) -> diffrax.PIDController:
    """Return Diffrax's controller of step lengths, with its `options`, for a solve from t0 to t1.

    It ends a solve as failed if the step becomes shorter than `SHORTEST_STEP`. An error of NaN
    counts as infinite. Otherwise a network whose output is not finite would be evaluated for
    `MOST_STEPS` steps.
    """
    import diffrax  # Importing it takes a fifth of the start of main.py.

    norm = options.pop("norm", diffrax.PIDController(rtol=rtol, atol=atol).norm)

    def error(scaled: Any) -> Array:
        found = norm(scaled)
        return jnp.where(jnp.isnan(found), jnp.inf, found)

    shortest = SHORTEST_STEP * abs(t1 - t0)
    return diffrax.PIDController(
        rtol=rtol, atol=atol, norm=error, dtmin=shortest, force_dtmin=False, **options
    )


def integrate(
    field: Callable[[Any, State, Any], State],
    y0: State,
    t0: float,
    t1: float,
    *,
    args: Any = None,
    rtol: float,
    atol: float,
) -> tuple[State, Array]:
    """Solve dy/dt = field(t, y, args) from t0 to t1 by Dormand-Prince 5(4).

    Each image has its own step sizes.

    Args:
      field: the derivative for one image: t of shape (), y and args without batch axis.
      y0, args: initial states and constants, with a leading batch axis B on every leaf.
      rtol, atol: relative and absolute tolerance of the local error.

    Returns:
      y(t1), NaN for images whose solve failed, and the evaluations of the field per image (B,).
    """
    import diffrax  # As above.

    term = diffrax.ODETerm(field)
    controller = step_controller(t0, t1, rtol=rtol, atol=atol)

    def solve(y: State, args: Any) -> tuple[State, Array]:
        solution = diffrax.diffeqsolve(
            term,
            diffrax.Dopri5(),
            t0,
            t1,
            math.copysign(FIRST_STEP, t1 - t0),
            y,
            args,
            stepsize_controller=controller,
            max_steps=MOST_STEPS,
            throw=False,
        )
        succeeded = solution.result == diffrax.RESULTS.successful
        y1 = jax.tree.map(lambda leaf: jnp.where(succeeded, leaf[0], jnp.nan), solution.ys)
        # Each step, accepted or rejected, evaluates six stages; the first also a seventh one.
        return y1, 6 * solution.stats["num_steps"] + 1

    return jax.vmap(solve)(y0, args)


class _AdaptiveState(NamedTuple):
    """Loop state of `adaptive_sde`: x and previous (B, ...); t, step size h and nfe (B,)."""

    iteration: Array | int
    x: Array
    previous: Array
    t: Array
    h: Array
    nfe: Array


def adaptive_sde(
    keys: Array,
    score: Score,
    sde: SDE,
    x: Float[Array, " b *shape"],
    *,
    tolerance: float = 0.01,
    absolute: float = 2 / 256,
    denoise: bool = True,
    max_steps: int = 10_000,
) -> tuple[Float[Array, " b *shape"], Int[Array, " b"]]:
    """Solve the reverse SDE with adaptive steps (Jolicoeur-Martineau et al. 2021, Algorithm 1).

    Each image has its own step sizes. A step of stochastic improved Euler is compared with the
    Euler-Maruyama step that it contains. A rejected step draws new noise, so steps with large noise
    are rejected more often. This widens the samples by a tenth or more in few dimensions (such as
    4) at any tolerance. In 192 dimensions the bias is below 1%.

    Args:
      keys: (B,), one random key per image.
      x: (B, ...), samples from the prior.
      tolerance: relative tolerance of the local error.
      absolute: absolute tolerance in units of x; the authors use one gray level of 256.
      denoise: whether to return the posterior mean at the end, for one more evaluation.
      max_steps: the largest number of steps, accepted or rejected.

    Returns:
      Samples (B, ...), NaN for images that did not finish, and score evaluations per image (B,).
    """
    euler_maruyama = functools.partial(_euler_maruyama, score, sde)

    def step(state: _AdaptiveState) -> _AdaptiveState:
        x, t, h = state.x, state.t, state.h
        z = standard_normal(fold_in(keys, state.iteration), x.shape)
        low, next_t = euler_maruyama(x, t, z, h), jnp.maximum(t - h, sde.t_end)
        high = (x + euler_maruyama(low, next_t, z, h)) / 2
        scale = tolerance * jnp.maximum(jnp.abs(low), jnp.abs(state.previous))
        error = _root_mean_square((low - high) / jnp.maximum(absolute, scale))
        active = t > sde.t_end
        accepted = active & (error <= 1)
        t = jnp.where(accepted, next_t, t)
        next_h = 0.9 * h * jnp.maximum(error, 1e-6) ** -0.9
        return _AdaptiveState(
            iteration=state.iteration + 1,
            x=jnp.where(expand(accepted, x), high, x),
            previous=jnp.where(expand(accepted, x), low, state.previous),
            t=t,
            h=jnp.where(active, jnp.minimum(t - sde.t_end, next_h), h),
            nfe=state.nfe + 2 * active,
        )

    def unfinished(state: _AdaptiveState) -> Array:
        # A step size of 0 or NaN follows from a score that is not finite, and never recovers.
        return jnp.any((state.t > sde.t_end) & (state.h > 0)) & (state.iteration < max_steps)

    t = jnp.full(len(x), sde.T)
    start = _AdaptiveState(0, x, x, t, 0.01 * t, jnp.zeros(len(x), jnp.int32))
    _, x, _, t, _, nfe = lax.while_loop(unfinished, step, start)
    x = jnp.where(expand(t > sde.t_end, x), jnp.nan, x)
    if denoise:
        return sde.posterior_mean(score(x, t), x, t), nfe + 1
    return x, nfe


def _euler_maruyama(score: Score, sde: SDE, x: Array, t: Array, z: Array, h: Array) -> Array:
    """Return the state at t - h, from x (B, ...) at t (B,) with the noise z (B, ...)."""
    mean = x - expand(h, x) * sde.reverse_drift(score(x, t), x, t)
    return mean + expand(sde.diffusion(t) * jnp.sqrt(h), x) * z


def _root_mean_square(a: Array) -> Array:
    """Return the root mean square (B,) over all axes of a (B, ...) but the first."""
    return jnp.linalg.norm(a.reshape(len(a), -1), axis=-1) / jnp.sqrt(a[0].size)


def integrate_flow(
    score: Score,
    sde: SDE,
    x: Float[Array, " b *shape"],
    t0: float,
    t1: float,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> tuple[Float[Array, " b *shape"], Array]:
    """Solve the probability-flow ODE for states x (B, ...) from time t0 to t1.

    This is Eq. (13) of arXiv:2011.13456.

    The solver treats images one by one, and the leaves (B, ...) of guided scores, see `by_event`.

    Returns:
      States at t1 (B, ...), and score evaluations per image (B,).
    """
    data, score_of = by_event(score)

    def field(t: Array, x: Array, data: list[Array]) -> Array:
        gradient = score_of(data)(x[None], t[None])[0]
        return sde.reverse_drift(gradient, x, t, probability_flow=True)

    return integrate(field, x, t0, t1, args=data, rtol=rtol, atol=atol)


def probability_flow_ode(
    score: Score,
    sde: SDE,
    x: Float[Array, " b *shape"],
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    denoise_step: Step | None = None,
) -> tuple[Float[Array, " b *shape"], Array]:
    """Solve the probability-flow ODE, Eq. (13), from T to sde.t_end with adaptive steps.

    Args:
      x: (B, ...), samples from the prior.
      rtol, atol: relative and absolute tolerance of the local error.
      denoise_step: the last step of a chain, for a final noise-free step of reverse diffusion.
        Without it, the result is the state at sde.t_end.

    Returns:
      Samples (B, ...), and score evaluations per image (B,).
    """
    x, nfe = integrate_flow(score, sde, x, sde.T, sde.t_end, rtol=rtol, atol=atol)
    if denoise_step is None:
        return x, nfe
    unused_keys = jax.random.split(jax.random.key(0), x.shape[0])
    _, mean = reverse_diffusion(unused_keys, score, sde, x, denoise_step)
    return mean, nfe + 1


# --- samplers -------------------------------------------------------------------------------------

ADAPTIVE = "adaptive_sde"
TIMES = 1000  # times, at the most costly of which all calls of a score are counted
SDE_TOLERANCE = {
    "tolerance": Option(0.02, TOLERANCE, "Relative error of a step of 'adaptive_sde'.")
}


def ode_sampler(setting: Setting, *, noise_removal: bool) -> Sampler:
    """Return the probability-flow ODE with adaptive steps and the official tolerances."""
    sde, steps = setting.sde, setting.sde.discretize(setting.steps)
    last = jax.tree.map(lambda leaf: leaf[-1], steps) if noise_removal else None

    def solve(score: Score, x: Array) -> tuple[Array, Array]:
        return probability_flow_ode(score, sde, x, denoise_step=last)

    return _of_flow(solve, steps.t, noise_removal)


def flow_sampler(sde: SDE, start: float, end: float) -> Sampler:
    """Return the probability-flow ODE from any states at time `start` to `end`."""

    def solve(score: Score, x: Array) -> tuple[Array, Array]:
        return integrate_flow(score, sde, x, start, end)

    return _of_flow(solve, sde.sampling_times(TIMES), denoises=False)


def _of_flow(
    solve: Callable[[Score, Array], tuple[Array, Array]], times: Array, denoises: bool
) -> Sampler:
    def loop(keys: Array | None, score: Score) -> Loop:
        del keys
        return single(lambda x: _counted(score, times, *solve(score, x)))

    return Sampler(loop, title="the probability-flow ODE with adaptive steps", denoises=denoises)


def _counted(score: Score, times: Array, x: Array, calls: Array) -> Samples:
    """Return samples whose score was called so often, each time at the most costly of `times`."""
    return to_samples(x, calls * evaluations(score, times).max().astype(jnp.int32))


def adaptive_sampler(setting: Setting, *, noise_removal: bool, tolerance: float) -> Sampler:
    """Return the solver of the reverse SDE that chooses steps for each image."""
    sde, absolute = setting.sde, setting.data_std / 64  # one of 256 gray levels, for images

    def loop(keys: Array, score: Score) -> Loop:
        def solve(x: Array) -> Samples:
            options: Any = {"absolute": absolute, "denoise": noise_removal}
            found = adaptive_sde(keys, score, sde, x, tolerance=tolerance, **options)
            return _counted(score, sde.sampling_times(TIMES), *found)

        return single(solve)

    return Sampler(
        loop,
        title=f"{ADAPTIVE!r}, with adaptive steps",
        advice=f"raise tolerance = {tolerance}, or choose another sampler",
        denoises=noise_removal,
    )
