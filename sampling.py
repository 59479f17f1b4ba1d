"""Samplers: predictors, correctors, the one predictor-corrector loop (Algorithm 1) and the probability-flow ODE.

A predictor is `(keys, score, sde, x, step) -> (x, x_mean)`: from x at step.t to x at step.t - step.dt, and the same
without the noise that was added last. A corrector is `(keys, score, sde, x, step, *, snr) -> (x, x_mean)` and stays at
step.t. `keys` (B,) holds one random key per image, so an image depends on its key alone, whatever batch it is part of;
where an update couples the images of a batch, its docstring says so.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from sde_lib import SDE, Score, Step, expand
from solvers import Plan, integrate

Update = Callable[..., tuple[Array, Array]]
Constraint = Callable[[Array, Array, Array, Step], tuple[Array, Array]]
"""(keys (B,), x (B, ...), x_mean (B, ...), step) -> x and x_mean as they shall be, at step.t."""


def image_keys(key: Array, indices: Array) -> Array:
    """The keys of images number `indices` (B,) of the run that `key` seeds; they depend on nothing else."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(indices)


def fold_in(keys: Array, data: int | Array) -> Array:
    """jax.random.fold_in for a batch of keys (B,)."""
    return jax.vmap(lambda key: jax.random.fold_in(key, data))(keys)


def standard_normal(keys: Array, shape: tuple[int, ...]) -> Array:
    """Standard normal noise of shape (B, ...), image i from keys[i]."""
    return jax.vmap(lambda key: jax.random.normal(key, shape[1:]))(keys)


def uniform(keys: Array, shape: tuple[int, ...]) -> Array:
    """Uniform noise in [0, 1) of shape (B, ...), image i from keys[i]."""
    return jax.vmap(lambda key: jax.random.uniform(key, shape[1:]))(keys)


def prior_sample(keys: Array, sde: SDE, shape: tuple[int, ...]) -> Array:
    """Samples of shape (B, ...) from the prior of the SDE."""
    return sde.prior_std * standard_normal(keys, shape)


# --- predictors -------------------------------------------------------------------------------------------------------


def euler_maruyama(
    keys: Array, score: Score, sde: SDE, x: Array, step: Step, *, probability_flow: bool = False
) -> tuple[Array, Array]:
    """Euler-Maruyama for the reverse SDE, Eq. (6), or Euler for the probability-flow ODE, Eq. (13)."""
    drift = sde.reverse_drift(
        score(x, _times(step.t, x)), x, step.t, probability_flow=probability_flow
    )
    mean = x - drift * expand(step.dt, x)
    if probability_flow:
        return mean, mean
    noise = standard_normal(keys, x.shape)
    return mean + expand(sde.diffusion(step.t) * jnp.sqrt(step.dt), x) * noise, mean


def reverse_diffusion(
    keys: Array, score: Score, sde: SDE, x: Array, step: Step, *, probability_flow: bool = False
) -> tuple[Array, Array]:
    """The reverse of a discrete forward chain, or its probability flow (Appendices D.3 and E)."""
    weight = 0.5 if probability_flow else 1.0
    mean = expand(2 - step.ratio, x) * x + weight * expand(step.var, x) * score(
        x, _times(step.t, x)
    )
    if probability_flow:
        return mean, mean
    return mean + expand(jnp.sqrt(step.var), x) * standard_normal(keys, x.shape), mean


def ancestral_sampling(
    keys: Array, score: Score, sde: SDE, x: Array, step: Step
) -> tuple[Array, Array]:
    """Ancestral sampling of DDPM (Eq. (4)) and SMLD (Appendix F), for any chain of Gaussian transitions."""
    mean = (x + expand(step.var, x) * score(x, _times(step.t, x))) / expand(step.ratio, x)
    return mean + expand(jnp.sqrt(step.ancestral_var), x) * standard_normal(keys, x.shape), mean


def none(
    keys: Array, score: Score, sde: SDE, x: Array, step: Step, **options
) -> tuple[Array, Array]:
    """No update. As a predictor it hides the corrector's noise-free mean, so nothing is denoised (officially, too)."""
    return x, x


# --- correctors -------------------------------------------------------------------------------------------------------


def langevin(
    keys: Array, score: Score, sde: SDE, x: Array, step: Step, *, snr: float
) -> tuple[Array, Array]:
    """Langevin dynamics with a step size from the norms of score and noise (Algorithms 4 and 5).

    As in the official code the norms are averaged over the batch: here an image does depend on its neighbours.
    """
    return _langevin(keys, score, x, step, snr, lambda a: _norms(a).mean())


def langevin_per_image(
    keys: Array, score: Score, sde: SDE, x: Array, step: Step, *, snr: float
) -> tuple[Array, Array]:
    """`langevin` with the norms of each image by itself, so that no image depends on another."""
    return _langevin(keys, score, x, step, snr, _norms)


def annealed_langevin(
    keys: Array, score: Score, sde: SDE, x: Array, step: Step, *, snr: float
) -> tuple[Array, Array]:
    """Annealed Langevin dynamics, the sampler of NCSN (Song & Ermon 2019): steps in proportion to the variance."""
    size = expand((snr * sde.std(step.t)) ** 2 * 2 * step.ratio**2, x)
    mean = x + size * score(x, _times(step.t, x))
    return mean + jnp.sqrt(2 * size) * standard_normal(keys, x.shape), mean


def _langevin(
    keys: Array, score: Score, x: Array, step: Step, snr: float, norm: Callable[[Array], Array]
) -> tuple[Array, Array]:
    gradient, noise = score(x, _times(step.t, x)), standard_normal(keys, x.shape)
    size = expand((snr * norm(noise) / norm(gradient)) ** 2 * 2 * step.ratio**2, x)
    mean = x + size * gradient
    return mean + jnp.sqrt(2 * size) * noise, mean


def _norms(a: Array) -> Array:
    return jnp.linalg.norm(a.reshape(a.shape[0], -1), axis=-1)


def _times(t: Array, x: Array) -> Array:
    return jnp.broadcast_to(t, x.shape[:1])


PREDICTORS: dict[str, Update] = {
    "euler_maruyama": euler_maruyama,
    "reverse_diffusion": reverse_diffusion,
    "ancestral_sampling": ancestral_sampling,
    "none": none,
}
CORRECTORS: dict[str, Update] = {
    "langevin": langevin,
    "langevin_per_image": langevin_per_image,
    "ald": annealed_langevin,
    "none": none,
}

# --- samplers ---------------------------------------------------------------------------------------------------------


def predictor_corrector(
    keys: Array,
    score: Score,
    sde: SDE,
    x: Array,
    steps: Step,
    *,
    predictor: Update = reverse_diffusion,
    corrector: Update = none,
    snr: float = 0.16,
    n_steps_each: int = 1,
    denoise: bool = True,
    constraint: Constraint | None = None,
    num_frames: int = 0,
) -> tuple[Array, Array]:
    """The predictor-corrector sampler, Algorithm 1: at each time `n_steps_each` corrections, then one prediction.

    Args:
      keys: (B,), one random key per image.
      x: (B, ...), samples from the prior.
      steps: the time grid, `sde.discretize(n)` or `sde.steps(ts)`; leaves of shape (n,).
      snr: signal-to-noise ratio r of the correctors. denoise: return the mean of the last step, without its noise.
      constraint: applied after the corrections and after the prediction, at the time before the step both times, as
        officially.

    Returns:
      Samples of shape (B, ...), in the range of the data, and `num_frames` states on the way to them (num_frames, ...).
    """
    n = len(steps.t)
    shown = np.full(
        n, num_frames
    )  # Where each step's state is kept; those of most steps go to a place to be dropped.
    shown[np.linspace(0, n - 1, num_frames).astype(int)] = np.arange(num_frames)

    def iteration(
        carry: tuple[Array, Array, Array], row: tuple[Array, Step, Array]
    ) -> tuple[tuple, None]:
        x, _, frames = carry
        index, step, place = row
        step_keys = fold_in(keys, index)
        correct = lambda j, x: corrector(fold_in(step_keys, j + 1), score, sde, x, step, snr=snr)[0]
        x = lax.fori_loop(0, n_steps_each, correct, x)
        if constraint:
            x, _ = constraint(fold_in(step_keys, n_steps_each + 1), x, x, step)
        x, mean = predictor(fold_in(step_keys, 0), score, sde, x, step)
        if constraint:
            x, mean = constraint(fold_in(step_keys, n_steps_each + 2), x, mean, step)
        return (x, mean, frames.at[place].set(x) if num_frames else frames), None

    frames = jnp.zeros((num_frames + 1, *x.shape) if num_frames else (0, *x.shape))
    (x, mean, frames), _ = lax.scan(
        iteration, (x, x, frames), (jnp.arange(n), steps, jnp.asarray(shown))
    )
    return (mean if denoise else x), frames[:num_frames]


def probability_flow_ode(
    score: Score,
    sde: SDE,
    x: Array,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    denoise_step: Step | None = None,
) -> tuple[Array, Array]:
    """Solves the probability-flow ODE, Eq. (13), from T to sde.t_end by an adaptive Runge-Kutta method.

    Args:
      x: (B, ...), samples from the prior.
      denoise_step: a last noise-free step of reverse diffusion, `step` being that of least time of a chain; or None.

    Returns:
      Samples (B, ...), and the number of score evaluations for each image (B,).
    """

    x, nfe = integrate_flow(score, sde, x, sde.T, sde.t_end, rtol=rtol, atol=atol)
    if denoise_step is None:
        return x, nfe
    keys = jax.random.split(jax.random.key(0), x.shape[0])  # The mean ignores the noise.
    return reverse_diffusion(keys, score, sde, x, denoise_step)[1], nfe + 1


def integrate_flow(
    score: Score,
    sde: SDE,
    x: Array,
    t0: float,
    t1: float,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> tuple[Array, Array]:
    """The probability flow, Eq. (13), of states x (B, ...) from t0 to t1, and score evaluations (B,).

    A score that is a pytree, as guided ones are, has leaves with a row for each image.
    """
    leaves, tree = jax.tree.flatten(score)
    rows = [leaf for leaf in leaves if leaf is not score]  # A mere function is its own leaf.

    def field(t: Array, x: Array, row: list[Array]) -> Array:
        of_one = tree.unflatten([leaf[None] for leaf in row]) if row else score
        return sde.reverse_drift(of_one(x[None], t[None])[0], x, t, probability_flow=True)

    return integrate(field, x, t0, t1, args=rows, rtol=rtol, atol=atol)


def few_step(
    keys: Array | None,
    score: Score,
    sde: SDE,
    x: Array,
    plan: Plan,
    end: float,
    *,
    noise_prediction: bool = False,
) -> tuple[Array, Array]:
    """Runs a solver that `solvers` wrote out, in y = x / alpha: one evaluation of the score for each of its n rows.

    Args:
      keys: (B,), one random key per image, for the plan's noise; None if it has none.
      x: (B, ...), states at the plan's first level; samples of the prior, or data to encode.
      end: the level to which the last row leads, 0 for data.

    Returns:
      The state at `end` (B, ...), and those after every row (n, B, ...).
    """
    with jax.ensure_compile_time_eval():
        t = sde.time_at(jnp.asarray(np.append(plan.level, end)))
        alpha = sde.alpha(t)
    noisy = bool(np.any(plan.stir) or np.any(plan.blur))
    rows = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), plan)
    combine = lambda weights, values: sum(weight * value for weight, value in zip(weights, values))

    def row(carry: tuple, inputs: tuple) -> tuple[tuple, Array]:
        y, before, history = carry
        plan, t, alpha, alpha_next, index = inputs
        if noisy:
            noise = [
                standard_normal(fold_in(fold_in(keys, index), kind), y.shape) for kind in (0, 1)
            ]
            y = y + plan.stir * noise[0]
        gradient = score(
            alpha * y, _times(t, y)
        )  # With std = level alpha: D = (x + std^2 score) / alpha.
        noise_free = (
            -plan.level * alpha * gradient
            if noise_prediction
            else y + plan.level**2 * alpha * gradient
        )
        history = (noise_free, *history[:-1])
        y = before = plan.stay * y + plan.back * before + combine(plan.fix, history)
        y = plan.keep * y + combine(plan.move, history)
        y = y + plan.blur * noise[1] if noisy else y
        return (y, before, history), alpha_next * y

    y = x / alpha[0]
    start = (y, y, (jnp.zeros_like(y),) * plan.move.shape[1])
    _, states = lax.scan(
        row, start, (rows, t[:-1], alpha[:-1], alpha[1:], jnp.arange(len(plan.level)))
    )
    return states[-1], states


def adaptive_sde(
    keys: Array,
    score: Score,
    sde: SDE,
    x: Array,
    *,
    tolerance: float = 0.01,
    absolute: float = 2 / 256,
    denoise: bool = True,
    max_steps: int = 10_000,
) -> tuple[Array, Array]:
    """The reverse SDE with steps that each image chooses for itself (Jolicoeur-Martineau et al. 2021, Algorithm 1).

    A stochastic improved Euler step is compared with the Euler-Maruyama step inside it. Noise of a refused step is
    drawn anew, so that large noise is refused more often: in few dimensions (4, say) this widens the samples by a tenth
    and more, at any tolerance; in 192 dimensions the bias is below 1 %.

    Args:
      keys, x: as for `few_step`.
      tolerance, absolute: of the local error, relative and in units of x (a grey level of 256 is the authors' choice).
      denoise: take Tweedie's mean at the end, for one evaluation more.

    Returns:
      Samples (B, ...), NaN where max_steps did not suffice, and the score evaluations of each image (B,).
    """
    forward = lambda x, t, z, h: (  # An Euler-Maruyama step of length h backwards in time.
        x
        - expand(h, x) * sde.reverse_drift(score(x, t), x, t)
        + expand(sde.diffusion(t) * jnp.sqrt(h), x) * z
    )

    def step(carry: tuple) -> tuple:
        index, x, before, t, h, nfe = carry
        z = standard_normal(fold_in(keys, index), x.shape)
        low = forward(x, t, z, h)
        after = jnp.maximum(t - h, sde.t_end)
        high = (
            x + forward(low, after, z, h)
        ) / 2  # The mean of `low` and a step from x with the slope at `low`.
        scale = jnp.maximum(absolute, tolerance * jnp.maximum(jnp.abs(low), jnp.abs(before)))
        error = _norms((low - high) / scale) / jnp.sqrt(x[0].size)
        active = t > sde.t_end
        accept = active & (error <= 1)
        x, before = (
            jnp.where(expand(accept, x), new, old) for new, old in ((high, x), (low, before))
        )
        t = jnp.where(accept, after, t)
        h = jnp.where(
            active, jnp.minimum(t - sde.t_end, 0.9 * h * jnp.maximum(error, 1e-6) ** -0.9), h
        )
        return index + 1, x, before, t, h, nfe + 2 * active

    batch = jnp.ones(x.shape[0])
    start = (0, x, x, sde.T * batch, 0.01 * sde.T * batch, jnp.zeros(x.shape[0], jnp.int32))
    unfinished = lambda carry: jnp.any(carry[3] > sde.t_end) & (carry[0] < max_steps)
    _, x, _, t, _, nfe = lax.while_loop(unfinished, step, start)
    x = jnp.where(expand(t > sde.t_end, x), jnp.nan, x)
    if denoise:
        x, nfe = sde.posterior_mean(score(x, t), x, t), nfe + 1
    return x, nfe
