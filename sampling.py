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
from jax import Array, lax

from sde_lib import SDE, Score, Step, expand
from solvers import integrate

Update = Callable[..., tuple[Array, Array]]


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
    drift = sde.reverse_drift(score(x, _times(step.t, x)), x, step.t, probability_flow=probability_flow)
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
    mean = expand(2 - step.ratio, x) * x + weight * expand(step.var, x) * score(x, _times(step.t, x))
    if probability_flow:
        return mean, mean
    return mean + expand(jnp.sqrt(step.var), x) * standard_normal(keys, x.shape), mean


def ancestral_sampling(keys: Array, score: Score, sde: SDE, x: Array, step: Step) -> tuple[Array, Array]:
    """Ancestral sampling of DDPM (Eq. (4)) and SMLD (Appendix F), for any chain of Gaussian transitions."""
    mean = (x + expand(step.var, x) * score(x, _times(step.t, x))) / expand(step.ratio, x)
    return mean + expand(jnp.sqrt(step.ancestral_var), x) * standard_normal(keys, x.shape), mean


def none(keys: Array, score: Score, sde: SDE, x: Array, step: Step, **options) -> tuple[Array, Array]:
    """No update. As a predictor it hides the corrector's noise-free mean, so nothing is denoised (officially, too)."""
    return x, x


# --- correctors -------------------------------------------------------------------------------------------------------


def langevin(keys: Array, score: Score, sde: SDE, x: Array, step: Step, *, snr: float) -> tuple[Array, Array]:
    """Langevin dynamics with a step size from the norms of score and noise (Algorithms 4 and 5).

    As in the official code the norms are averaged over the batch: here an image does depend on its neighbours.
    """
    return _langevin(keys, score, x, step, snr, lambda a: _norms(a).mean())


def langevin_per_image(keys: Array, score: Score, sde: SDE, x: Array, step: Step, *, snr: float) -> tuple[Array, Array]:
    """`langevin` with the norms of each image by itself, so that no image depends on another."""
    return _langevin(keys, score, x, step, snr, _norms)


def annealed_langevin(keys: Array, score: Score, sde: SDE, x: Array, step: Step, *, snr: float) -> tuple[Array, Array]:
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
) -> Array:
    """The predictor-corrector sampler, Algorithm 1: at each time `n_steps_each` corrections, then one prediction.

    Args:
      keys: (B,), one random key per image.
      x: (B, ...), samples from the prior.
      steps: the time grid, `sde.discretize(n)` or `sde.steps(ts)`; leaves of shape (n,).
      snr: signal-to-noise ratio r of the correctors. denoise: return the mean of the last step, without its noise.

    Returns:
      Samples of shape (B, ...), in the range of the data.
    """

    def iteration(carry: tuple[Array, Array], row: tuple[Array, Step]) -> tuple[tuple[Array, Array], None]:
        x, _ = carry
        index, step = row
        step_keys = fold_in(keys, index)
        correct = lambda j, x: corrector(fold_in(step_keys, j + 1), score, sde, x, step, snr=snr)[0]
        x = lax.fori_loop(0, n_steps_each, correct, x)
        return predictor(fold_in(step_keys, 0), score, sde, x, step), None

    indices = jnp.arange(len(steps.t))
    (x, mean), _ = lax.scan(iteration, (x, x), (indices, steps))
    return mean if denoise else x


def probability_flow_ode(
    score: Score, sde: SDE, x: Array, *, rtol: float = 1e-5, atol: float = 1e-5, denoise_step: Step | None = None
) -> tuple[Array, Array]:
    """Solves the probability-flow ODE, Eq. (13), from T to sde.t_end by an adaptive Runge-Kutta method.

    Args:
      x: (B, ...), samples from the prior.
      denoise_step: a last noise-free step of reverse diffusion, `step` being that of least time of a chain; or None.

    Returns:
      Samples (B, ...), and the number of score evaluations for each image (B,).
    """

    def field(t: Array, x: Array, _: None) -> Array:
        return sde.reverse_drift(score(x[None], t[None])[0], x, t, probability_flow=True)

    x, nfe = integrate(field, x, sde.T, sde.t_end, rtol=rtol, atol=atol)
    if denoise_step is None:
        return x, nfe
    keys = jax.random.split(jax.random.key(0), x.shape[0])  # The mean ignores the noise.
    return reverse_diffusion(keys, score, sde, x, denoise_step)[1], nfe + 1
