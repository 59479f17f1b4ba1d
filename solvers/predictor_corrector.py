"""Predictors, correctors, the predictor-corrector loop and the probability-flow ODE.

A predictor is `(keys, score, sde, x, step) -> (x, x_mean)`. It takes x from step.t to
step.t - step.dt; x_mean is the same without the noise added last. A corrector is
`(keys, score, sde, x, step, *, snr) -> (x, x_mean)` and leaves x at step.t. `keys` (B,) holds one
random key per image, so an image depends on its own key only. Where an update couples the images of
a batch, its docstring says so. Equations and algorithms are those of arXiv:2011.13456.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float, Int

from sde_lib import SDE, Score, Step, expand
from solvers.adaptive import integrate_flow
from solvers.loop import Frames, Loop, fold_in, note_bad, standard_normal, uniform

Update = Callable[..., tuple[Array, Array]]
"""A predictor or a corrector."""

Constraint = Callable[[Array, Array, Array, Step], tuple[Array, Array]]
"""(keys (B,), x (B, ...), x_mean (B, ...), step) -> constrained x and x_mean, at step.t."""


PRIOR = 2**31 - 1  # folded into a key for the prior; larger than the number of any step


def prior_sample(keys: Array, sde: SDE, shape: tuple[int, ...]) -> Float[Array, " ..."]:
    """Draw samples of shape (B, ...) from the prior of the SDE, one for each of the keys (B,).

    Samplers derive the noise of their steps from the same keys, by the numbers of the steps.
    """
    return sde.prior_std * standard_normal(fold_in(keys, PRIOR), shape)


# --- predictors ---------------------------------------------------------------------------------


def euler_maruyama(
    keys: Array, score: Score, sde: SDE, x: Array, step: Step, *, probability_flow: bool = False
) -> tuple[Array, Array]:
    """Euler-Maruyama for the reverse SDE, Eq. (6), or Euler for the flow ODE, Eq. (13)."""
    gradient = score(x, _batch_times(step.t, x))
    drift = sde.reverse_drift(gradient, x, step.t, probability_flow=probability_flow)
    mean = x - drift * expand(step.dt, x)
    if probability_flow:
        return mean, mean
    noise = standard_normal(keys, x.shape)
    return mean + expand(sde.diffusion(step.t) * jnp.sqrt(step.dt), x) * noise, mean


def reverse_diffusion(
    keys: Array, score: Score, sde: SDE, x: Array, step: Step, *, probability_flow: bool = False
) -> tuple[Array, Array]:
    """The reverse of a discrete forward chain, Eq. (46), or its flow, Eqs. (43), (44)."""
    weight = 0.5 if probability_flow else 1.0
    gradient = score(x, _batch_times(step.t, x))
    mean = expand(2 - step.ratio, x) * x + weight * expand(step.var, x) * gradient
    if probability_flow:
        return mean, mean
    return mean + expand(jnp.sqrt(step.var), x) * standard_normal(keys, x.shape), mean


def ancestral_sampling(
    keys: Array, score: Score, sde: SDE, x: Array, step: Step
) -> tuple[Array, Array]:
    """Ancestral sampling for any chain of Gaussian transitions: DDPM, Eq. (4), SMLD, Eq. (47)."""
    gradient = score(x, _batch_times(step.t, x))
    mean = (x + expand(step.var, x) * gradient) / expand(step.ratio, x)
    return mean + expand(jnp.sqrt(step.ancestral_var), x) * standard_normal(keys, x.shape), mean


def none(
    keys: Array, score: Score, sde: SDE, x: Array, step: Step, **options
) -> tuple[Array, Array]:
    """Return x unchanged.

    As a predictor it discards the noise-free mean of the corrector, so the samples are not
    denoised. The official code does the same.
    """
    return x, x


# --- correctors ---------------------------------------------------------------------------------


def langevin(
    keys: Array, score: Score, sde: SDE, x: Array, step: Step, *, snr: float
) -> tuple[Array, Array]:
    """Langevin dynamics with a step size from the norms of score and noise (Algorithms 4 and 5).

    As in the official code, the norms are averaged over the batch, so that each image depends on
    the other images of its batch. Also as there, alpha_i of Algorithm 5 is 1 - beta_i instead of
    the product of these factors up to i.
    """

    def mean_norm(a: Array) -> Array:
        return _norms(a).mean()

    return _langevin(keys, score, x, step, snr, mean_norm)


def langevin_per_image(
    keys: Array, score: Score, sde: SDE, x: Array, step: Step, *, snr: float
) -> tuple[Array, Array]:
    """`langevin` with norms per image, so that no image depends on another."""
    return _langevin(keys, score, x, step, snr, _norms)


def annealed_langevin(
    keys: Array, score: Score, sde: SDE, x: Array, step: Step, *, snr: float
) -> tuple[Array, Array]:
    """Annealed Langevin dynamics, Eq. (2), with step sizes proportional to var(t).

    These are the steps of NCSN (Song & Ermon 2019, arXiv:1907.05600).
    """
    size = expand((snr * sde.std(step.t)) ** 2 * 2 * step.ratio**2, x)
    mean = x + size * score(x, _batch_times(step.t, x))
    return mean + jnp.sqrt(2 * size) * standard_normal(keys, x.shape), mean


class Metropolis:
    """Langevin dynamics with a Metropolis test, at a step size that needs no tuning.

    A move from x to y = x + h^2/2 score + h z is accepted with the probability of the
    Metropolis-adjusted Langevin algorithm, so that p_t is stationary. log p_t(y) - log p_t(x) is
    the integral of the score along the move, by Simpson's rule (Sjoberg et al. 2023, "MCMC-
    Correction of Score-Based Diffusion Models for Model Composition", arXiv:2307.14012). In x_t the
    curvature of -log p_t is at most 1 / var(t), whatever the data are. So h = 1.65 std(t) d^(-1/6),
    the best step for a Gaussian of d entries with this curvature (Roberts & Rosenthal 1998),
    has an acceptance rate near 0.57 or above. It is at most std(t), which keeps the error of
    Simpson's rule below 1 %. `snr` has no effect.
    """

    evaluations = 3

    def __call__(
        self, keys: Array, score: Score, sde: SDE, x: Array, step: Step, *, snr: float
    ) -> tuple[Array, Array]:
        del snr
        t = _batch_times(step.t, x)
        variance = sde.var(step.t) * min(1, 1.65**2 * x[0].size ** (-1 / 3))
        s, size = score(x, t), expand(variance, x)
        mean = x + size / 2 * s
        y = mean + jnp.sqrt(size) * standard_normal(keys, x.shape)
        next_s, middle = score(y, t), score((x + y) / 2, t)
        # By the trapezoidal rule, the integral would cancel all of the ratio of proposals but this.
        log_ratio = variance / 8 * (_squares(s) - _squares(next_s))
        log_ratio += 2 / 3 * _sums((middle - (s + next_s) / 2) * (y - x))
        accepted = jnp.log(uniform(fold_in(keys, 0), x.shape[:1])) < log_ratio
        return jnp.where(expand(accepted, x), y, x), jnp.where(expand(accepted, x), mean, x)


def _langevin(
    keys: Array, score: Score, x: Array, step: Step, snr: float, norm: Callable[[Array], Array]
) -> tuple[Array, Array]:
    gradient = score(x, _batch_times(step.t, x))
    noise = standard_normal(keys, x.shape)
    size = expand((snr * norm(noise) / norm(gradient)) ** 2 * 2 * step.ratio**2, x)
    mean = x + size * gradient
    return mean + jnp.sqrt(2 * size) * noise, mean


def _norms(a: Array) -> Array:
    return jnp.linalg.norm(a.reshape(a.shape[0], -1), axis=-1)


def _sums(a: Array) -> Array:
    return a.reshape(a.shape[0], -1).sum(-1)


def _squares(a: Array) -> Array:
    return _sums(a**2)


def _batch_times(t: Array, x: Array) -> Array:
    """Return t as an array (B,), with one entry for each image of x (B, ...)."""
    return jnp.broadcast_to(t, x.shape[:1])


PREDICTORS: dict[str, Update] = {
    "euler_maruyama": euler_maruyama,
    "reverse_diffusion": reverse_diffusion,
    "ancestral_sampling": ancestral_sampling,
    "none": none,
}
FLOW_PREDICTORS = ("euler_maruyama", "reverse_diffusion")
"""Predictors with the option `probability_flow`."""

CORRECTORS: dict[str, Update] = {
    "langevin": langevin,
    "langevin_per_image": langevin_per_image,
    "ald": annealed_langevin,
    "metropolis": Metropolis(),
    "none": none,
}


def evaluations(update: Update) -> int:
    """Return how often a predictor or corrector evaluates the score."""
    return 0 if update is none else getattr(update, "evaluations", 1)


# --- samplers -----------------------------------------------------------------------------------


class Updates(NamedTuple):
    """What Algorithm 1 does in a step: `n_steps_each` corrections, then one prediction.

    Attributes:
      snr: the signal-to-noise ratio r of the correctors.
      denoise: whether to return the mean of the last step, without its noise.
      constraint: applied after the corrections and after the prediction. As in the official code,
        both are given the time before the prediction.
    """

    predictor: Update = reverse_diffusion
    corrector: Update = none
    snr: float = 0.16
    n_steps_each: int = 1
    denoise: bool = True
    constraint: Constraint | None = None


def predictor_corrector(
    keys: Array,
    score: Score,
    sde: SDE,
    x: Float[Array, " b *shape"],
    steps: Step,
    *,
    shown: np.ndarray | Sequence[int] = (),
    **updates: Any,
) -> tuple[Float[Array, " b *shape"], Float[Array, "frames b *shape"], Int[Array, " b"]]:
    """Sample by Algorithm 1 from samples x (B, ...) of the prior; see `predictor_corrector_loop`.

    `updates` are the attributes of `Updates`.
    """
    return predictor_corrector_loop(keys, score, sde, steps, Updates(**updates), shown).run(x)


def predictor_corrector_loop(
    keys: Array,
    score: Score,
    sde: SDE,
    steps: Step,
    updates: Updates,
    shown: np.ndarray | Sequence[int] = (),
) -> Loop:
    """Return Algorithm 1 as a loop.

    Args:
      keys: (B,), one random key per image.
      steps: the time grid, `sde.discretize(n)` or `sde.steps(ts)`; leaves of shape (n,).
      updates: the predictor and the corrector.
      shown: the numbers (F,) of the steps, from 0, after which the state is returned.

    The result of the loop are samples (B, ...) in the range of the data; the intermediate states
    (F, B, ...); and the step (B,), from 1, after which a state was first not finite, or 0.
    """
    n, constraint, n_steps_each = len(steps.t), updates.constraint, updates.n_steps_each
    kept = Frames(n, shown)

    def start(x: Array) -> tuple[Array, Array, Array, Array]:
        return x, x, kept.start(x), jnp.zeros(len(x), jnp.int32)

    def iterate(
        index: int | Array, carry: tuple[Array, Array, Array, Array]
    ) -> tuple[Array, Array, Array, Array]:
        x, _, frames, bad_step = carry
        step = jax.tree.map(lambda leaf: jnp.asarray(leaf)[index], steps)
        step_keys = fold_in(keys, index)

        def correct(i: int | Array, x: Array) -> Array:
            step_key = fold_in(step_keys, i + 1)
            return updates.corrector(step_key, score, sde, x, step, snr=updates.snr)[0]

        x = lax.fori_loop(0, n_steps_each, correct, x)
        if constraint:
            x, _ = constraint(fold_in(step_keys, n_steps_each + 1), x, x, step)
        x, mean = updates.predictor(fold_in(step_keys, 0), score, sde, x, step)
        if constraint:
            x, mean = constraint(fold_in(step_keys, n_steps_each + 2), x, mean, step)
        frames = kept.put(frames, index, x)
        return x, mean, frames, note_bad(bad_step, x, index + 1)

    def finish(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array]:
        x, mean, frames, bad_step = carry
        return (mean if updates.denoise else x), kept.finish(frames), bad_step

    return Loop(n, start, iterate, finish)


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
