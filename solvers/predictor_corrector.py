"""Predictors, correctors, and the predictor-corrector loop.

A predictor is `(keys, score, sde, x, step) -> (x, x_mean)`. It takes x from step.t to
step.t - step.dt; x_mean is the same without the noise added last. A corrector is
`(keys, score, sde, x, step, *, snr) -> (x, x_mean)` and leaves x at step.t. `keys` (B,) are one
for each image. Equations and algorithms are those of arXiv:2011.13456.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float, Int

from errors import InputError
from options import FLAG, POSITIVE, Integer, Name, Option
from sde_lib import SDE, Score, Step, expand
from solvers.loop import (
    Frames,
    Growth,
    Loop,
    Sampler,
    Setting,
    evaluations,
    fold_in,
    frame_indices,
    note_bad,
    standard_normal,
    to_samples,
    uniform,
)

Update = Callable[..., tuple[Array, Array]]
"""A predictor or a corrector."""

Constraint = Callable[[Array, Array, Array, Step], tuple[Array, Array]]
"""(keys (B,), x (B, ...), x_mean (B, ...), step) -> constrained x and x_mean, at step.t."""

ENTRIES = 2048  # of which `predictor_growth` estimates the variance of a step's noise, to 3 %


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
    """Return x unchanged; a predictor drops the noise-free mean, as does the official code."""
    return x, x


# --- correctors ---------------------------------------------------------------------------------


def _norms(a: Array) -> Array:
    return jnp.linalg.norm(a.reshape(a.shape[0], -1), axis=-1)


def _mean_norm(a: Array) -> Array:
    return _norms(a).mean()


def langevin(
    keys: Array,
    score: Score,
    sde: SDE,
    x: Array,
    step: Step,
    *,
    snr: float,
    norm: Callable[[Array], Array] = _mean_norm,
) -> tuple[Array, Array]:
    """Langevin dynamics with a step size from the norms of score and noise (Algorithms 4 and 5).

    As in the official code, norms are means over the batch, so that each image depends on the
    others, and alpha_i of Algorithm 5 is 1 - beta_i, not the product of these factors up to i.
    """
    gradient = score(x, _batch_times(step.t, x))
    noise = standard_normal(keys, x.shape)
    size = expand((snr * norm(noise) / norm(gradient)) ** 2 * 2 * step.ratio**2, x)
    mean = x + size * gradient
    return mean + jnp.sqrt(2 * size) * noise, mean


def langevin_per_image(
    keys: Array, score: Score, sde: SDE, x: Array, step: Step, *, snr: float
) -> tuple[Array, Array]:
    """`langevin` with norms per image, so that no image depends on another."""
    return langevin(keys, score, sde, x, step, snr=snr, norm=_norms)


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

    A move from x to y = x + h^2/2 score + h z is accepted with the probability that keeps p_t
    stationary. log p_t(y) - log p_t(x) is the integral of the score along the move, by Simpson's
    rule (Sjoberg et al. 2023, arXiv:2307.14012). The curvature of -log p_t is at most 1 / var(t),
    whatever the data are. So h = 1.65 std(t) d^(-1/6), the best step for a Gaussian of d entries
    with this curvature (Roberts & Rosenthal 1998), has an acceptance rate near 0.57 or above. It is
    at most std(t), which keeps the error of Simpson's rule below 1 %. `snr` has no effect.
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
        log_ratio = variance / 8 * (_sums(s**2) - _sums(next_s**2))
        log_ratio += 2 / 3 * _sums((middle - (s + next_s) / 2) * (y - x))
        accepted = jnp.log(uniform(fold_in(keys, 0), x.shape[:1])) < log_ratio
        return jnp.where(expand(accepted, x), y, x), jnp.where(expand(accepted, x), mean, x)


def _sums(a: Array) -> Array:
    return a.reshape(a.shape[0], -1).sum(-1)


def _batch_times(t: Array, x: Array) -> Array:
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
    "metropolis": Metropolis(),
    "none": none,
}


def calls(update: Update) -> int:
    """Return how often a predictor or corrector evaluates the score."""
    return 0 if update is none else getattr(update, "evaluations", 1)


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
    keys: Array, score: Score, sde: SDE, x: Array, steps: Step, *, shown: Any = (), **updates: Any
) -> tuple[Float[Array, " b *shape"], Float[Array, "frames b *shape"], Int[Array, " b"]]:
    """Run `predictor_corrector_loop` from samples x (B, ...) of the prior, with these `Updates`."""
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
      shown: the numbers (F,) of steps, from 0.

    The result are samples (B, ...), the states after the steps `shown` (F, B, ...), and the step
    (B,), from 1, after which a state was first not finite, or 0.
    """
    constraint, n_steps_each = updates.constraint, updates.n_steps_each
    kept = Frames(len(steps.t), shown)

    def start(x: Array) -> tuple:
        return x, x, kept.start(x), jnp.zeros(len(x), jnp.int32)

    def iterate(index: int | Array, carry: tuple) -> tuple:
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

    def finish(carry: tuple) -> tuple[Array, Array, Array]:
        x, mean, frames, bad_step = carry
        return (mean if updates.denoise else x), kept.finish(frames), bad_step

    return Loop(len(steps.t), start, iterate, finish)


PC = {
    "predictor": Option("reverse_diffusion", Name(PREDICTORS), "Predictor of pc."),
    "corrector": Option("langevin", Name(CORRECTORS), "Corrector of pc."),
    "n_steps_each": Option(1, Integer(1, 10**6), "Corrections of a step."),
    "snr": Option(0.16, POSITIVE, "Signal-to-noise ratio of the corrector."),
    "probability_flow": Option(
        False, FLAG, "Let the predictor follow the probability-flow ODE, Eq. (13)."
    ),
}


def pc_sampler(
    setting: Setting, *, trajectory: bool, noise_removal: bool, **chosen: Any
) -> Sampler:
    """Return predictor and corrector."""
    sde, steps = setting.sde, setting.sde.discretize(setting.steps)
    name, n_steps_each, snr = (chosen[each] for each in ("predictor", "n_steps_each", "snr"))
    predictor, corrector = PREDICTORS[name.lower()], CORRECTORS[chosen["corrector"].lower()]
    if chosen["probability_flow"]:
        if "probability_flow" not in inspect.signature(predictor).parameters:
            raise InputError(
                f"probability_flow = True: predictor = {name!r} has no such form; choose another "
                "one, such as 'reverse_diffusion'."
            )
        predictor = functools.partial(predictor, probability_flow=True)
    levels = np.append(sde.noise_to_signal(jnp.asarray(steps.t))[1:], 0.0)
    shown = frame_indices(levels) if trajectory else np.array([], int)

    def loop(
        keys: Array,
        score: Score,
        *,
        constraint: Constraint | None = None,
        wrap_predictor: Callable[[Update], Update] = lambda predictor: predictor,
    ) -> Loop:
        used = wrap_predictor(predictor)
        number = n_steps_each * calls(corrector) + calls(used)
        nfe = (number * evaluations(score, steps.t).sum()).astype(jnp.int32)
        updates = Updates(used, corrector, snr, n_steps_each, noise_removal, constraint)
        found = predictor_corrector_loop(keys, score, sde, steps, updates, shown)
        return found.then(lambda result: to_samples(result[0], nfe, *result[1:]))

    growth = functools.partial(predictor_growth, sde, predictor, steps, setting.data_std)
    return Sampler(
        loop,
        setting.steps,
        f"predictor {name!r} and corrector {chosen['corrector']!r}, {setting.steps} steps",
        None if predictor is none else growth,
        f"raise the number of steps, now {setting.steps}, lower snr = {snr}, or choose another "
        f"predictor than {name!r}, such as 'ancestral_sampling'",
        tuple(levels[shown].tolist()),
        denoises=noise_removal,
    )


def predictor_growth(sde: SDE, predictor: Update, steps: Step, data_std: float) -> Growth:
    """Return the growth of a predictor, without correctors; its errors are not computed."""

    def variance(t: Array) -> Array:
        return sde.alpha(t) ** 2 * data_std**2 + sde.var(t)

    def score(x: Array, t: Array) -> Array:
        return -x / variance(t)[:, None]

    def follow(step: Step, key: Array) -> tuple[Array, Array]:
        x, mean = predictor(key[None], score, sde, jnp.ones((1, ENTRIES)), step)
        return mean.mean(), jnp.mean((x - mean) ** 2)

    with jax.ensure_compile_time_eval():  # The caller may be compiled itself.
        keys = jax.random.split(jax.random.key(0), len(steps.t))
        factors, noises = jax.device_get(jax.jit(jax.vmap(follow))(steps, keys))
        exact = np.append(jax.device_get(variance(jnp.asarray(steps.t)))[1:], data_std**2)
    variances = [sde.prior_std**2]
    for factor, noise in zip(factors.astype(np.float64), noises.astype(np.float64)):
        variances.append(factor**2 * variances[-1] + noise)
    return Growth(np.sqrt(np.array(variances[1:]) / exact), np.array([]))
