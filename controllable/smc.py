"""Twisted sequential Monte Carlo (Wu et al. 2023, arXiv:2306.17775): posteriors of any prior.

Particles with weights follow the reverse process from time T to data. In u = x_t / alpha, whose
noise level is s = std / alpha, x_0 given u has the mean D and the covariance C = s^2 dD/du. With
the Gaussian N(D, C), and y linearized near D, particles move as in ancestral sampling, but given y.
The twist p(y | u) is part of their weights. All of this is exact for Gaussian priors and linear
measurements, so that weights are constant with any number of steps. For others, weights correct it,
and the last one has p(y | x_0) itself. Their mean estimates the evidence p(y). Measurements that
are not linear are averaged over N(D, C), so that their twist is wide at high noise. Where the
weights of a measurement become uneven, its particles are drawn again (systematic resampling). The
tails of the Gaussian of y are too light for sparse data and separate modes: it gives up states that
later fit y. So particles are drawn by their weights for a Student distribution of y, and keep the
ratio.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import logsumexp

from controllable.measurements import Evidence
from controllable.moments import Local, LocalModel
from sde_lib import SDE, Score, expand
from solvers.loop import Loop, fold_in, image_keys, prior_sample, uniform
from solvers.plan import noise_levels

STEPS = 60
MOST_ENTRIES = 256  # of an event, and of y: each particle has matrices of these sides
RESAMPLED = 0.5  # the effective sample size, as a share, below which particles are drawn again
FREEDOM = 10  # degrees of freedom of Student's distribution, by which they are drawn
UNIFORM = 2**31 - 2  # folded into a key for resampling; larger than the number of any particle


class Weights(NamedTuple):
    """What the weights of the particles of each measurement say; arrays (B,).

    Attributes:
      effective_size: the effective sample size as a share of the particles, the smallest over
        steps: 1 if all weights are equal. At the end the descendants of one of the first particles
        count as one, since they are correlated.
      log_evidence: log p(y) in nats.
      log_evidence_error: its standard error, from the weights of the descendants of each of the
        first particles (Chan & Lai 2013). The largest counts twice, since of rare ones with large
        weights there may be none. About 1.4 if all descend from one.
    """

    effective_size: Array
    log_evidence: Array
    log_evidence_error: Array


class Particles(NamedTuple):
    """What the loop carries: P particles for each of B measurements.

    Attributes:
      u: states (B, P, D), flattened, divided by alpha.
      log_weights: (B, P), since particles were drawn again, and what they kept then.
      log_mean: (B,), the logarithm of the mean weight before.
      family: (B, P), the number of the first particle that each one descends from.
      effective_size: (B,), the smallest so far.
      bad_step: (B,), the step, from 1, after which weights were first not finite, or 0.
    """

    u: Array
    log_weights: Array
    log_mean: Array
    family: Array
    effective_size: Array
    bad_step: Array

    def weighed(self, log_factor: Array) -> Particles:
        """Return the particles with weights multiplied by factors (B * P,)."""
        log_weights = self.log_weights + log_factor.reshape(self.log_weights.shape)
        return self._replace(log_weights=log_weights)


def smc_loop(
    keys: Array,
    score: Score,
    sde: SDE,
    measurement: Evidence,
    shape: tuple[int, ...],
    *,
    steps: int,
    particles: int,
) -> tuple[Loop, Array]:
    """Return the loop over the noise levels, and the first states (B, P, *shape).

    Args:
      keys: (B,), one for each measurement. The random numbers of a particle follow from the key of
        its measurement and its number.
      measurement: y (B, ...) and how it depends on x_0.
      steps: evaluations of the score for each particle, with as many derivatives as an event has
        entries.
      particles: P, the number for each measurement.

    The result of the loop are events (B, P, *shape) of equal weight, or NaN, of which any first
    ones represent all families; `Weights`; the step (B,), from 1, after which weights were first
    not finite, or 0; and evaluations of the score (B,).
    """
    size, batch = math.prod(shape), len(keys)
    repeated = measurement.given(jnp.repeat(measurement.y, particles, 0))
    model = LocalModel(score, sde, repeated, shape)
    levels = noise_levels(sde, "log_snr", steps)
    with jax.ensure_compile_time_eval():
        times = sde.time_at(jnp.asarray(levels[:-1]))
        rows = (*(jnp.asarray(each, jnp.float32) for each in (levels[:-1], levels[1:])), times)
        first_scale = sde.alpha(times[0])

    def keys_of(keys: Array) -> Array:
        return jax.vmap(lambda key: image_keys(key, jnp.arange(particles)))(keys).reshape(-1)

    def start(x: Array) -> Particles:
        return equally_weighted(x.reshape(batch, particles, size) / first_scale)

    def step(index: int | Array, carry: Particles) -> Particles:
        level, next_level, t = (row[index] for row in rows)
        local = model.near(carry.u.reshape(-1, size), level, t)
        step_keys = fold_in(keys, index)
        carry = carry.weighed(local.log_twist)
        carry, local = _resample_if_uneven(step_keys, carry, local, index)
        u, log_density = model.propose(
            keys_of(step_keys), carry.u.reshape(-1, size), local, level, next_level
        )
        return carry.weighed(-log_density)._replace(u=u.reshape(carry.u.shape))

    def end(carry: Particles) -> tuple[Array, Weights, Array, Array]:
        x = carry.u.reshape(batch * particles, *shape)
        carry = carry.weighed(model.last_log_weight(x))
        x = x.reshape(batch, particles, *shape)
        return *finish(fold_in(keys, steps), carry, x, steps), jnp.full(batch, steps)

    x = prior_sample(keys_of(keys), sde, (batch * particles, *shape))
    return Loop(steps, start, step, end), x.reshape(batch, particles, *shape)


# --- weights --------------------------------------------------------------------------------------


def equally_weighted(u: Array) -> Particles:
    """Return the first particles, from states u (B, P, D)."""
    batch, count = u.shape[:2]
    zeros, family = jnp.zeros((batch, count)), jnp.tile(jnp.arange(count), (batch, 1))
    return Particles(u, zeros, zeros[:, 0], family, jnp.ones(batch), jnp.zeros(batch, jnp.int32))


def _resample_if_uneven(
    keys: Array, carry: Particles, local: Local, index: int | Array
) -> tuple[Particles, Local]:
    """Draw the particles again of measurements whose effective sample size is small."""
    batch, count = carry.log_weights.shape
    logits = carry.log_weights + _log_tail(local, batch)
    log_mean = logsumexp(logits, axis=1) - math.log(count)
    share = jnp.maximum(_effective_share(carry.log_weights), _effective_share(logits))
    uneven = share < RESAMPLED
    chosen = _systematic(keys, logits)
    chosen = jnp.where(uneven[:, None], chosen, jnp.arange(count))

    def pick(values: Array) -> Array:
        rows = values.reshape(batch, count, *values.shape[1:])
        return jax.vmap(lambda row, i: row[i])(rows, chosen).reshape(values.shape)

    kept = carry.log_weights - jnp.where(uneven[:, None], logits, 0)
    return Particles(
        jax.vmap(lambda row, i: row[i])(carry.u, chosen),
        jnp.take_along_axis(kept, chosen, 1),
        carry.log_mean + jnp.where(uneven, log_mean, 0),
        jnp.take_along_axis(carry.family, chosen, 1),
        jnp.minimum(carry.effective_size, share),
        jnp.where((carry.bad_step == 0) & ~jnp.isfinite(log_mean), index + 1, carry.bad_step),
    ), jax.tree.map(pick, local)


def finish(keys: Array, carry: Particles, x: Array, steps: int) -> tuple[Array, Weights, Array]:
    """Return events (B, P, *shape) of equal weight, what weights say, and the first bad step."""
    batch, count = carry.log_weights.shape
    weights = jax.nn.softmax(carry.log_weights)
    log_mean = logsumexp(carry.log_weights, axis=1) - math.log(count)
    of_family = jax.vmap(lambda i, w: jnp.zeros(count).at[i].add(w))(carry.family, weights)
    excess = jnp.square(of_family - 1 / count)
    found = Weights(
        jnp.minimum(carry.effective_size, 1 / (count * jnp.square(of_family).sum(1))),
        carry.log_mean + log_mean,
        jnp.sqrt(excess.sum(1) + excess.max(1)),
    )
    chosen = _systematic(keys, carry.log_weights)
    first = jax.vmap(lambda key: jax.random.randint(key, (1,), 0, count))(keys)
    chosen = jnp.take_along_axis(chosen, (first + _spread(count)) % count, 1)
    x = jax.vmap(lambda row, i: row[i])(x, chosen)
    finite = jnp.isfinite(found.log_evidence) & jnp.isfinite(x.reshape(batch, -1)).all(1)
    bad_step = jnp.where(finite, 0, jnp.where(carry.bad_step, carry.bad_step, steps))
    return jnp.where(expand(finite, x), x, jnp.nan), found, bad_step


def pool(sets: Sequence[Weights], particles: int) -> Weights:
    """Return what independent sets of as many particles say together, from arrays (B,) of each.

    The error is that of `Weights` for the families of all sets.
    """
    sizes, logs, errors = (np.stack(each).astype(float) for each in zip(*sets))
    ratios = np.exp(logs - logs.max(0))
    squares = np.square(ratios / ratios.sum(0))  # p(y) is the mean over sets.
    var = (squares * (np.square(errors) + 1 / particles)).sum(0) - 1 / (len(sets) * particles)
    return Weights(
        1 / (len(sets) * (squares / sizes).sum(0)),
        logs.max(0) + np.log(ratios.mean(0)),
        np.sqrt(np.maximum(var, 0)),
    )


def _log_tail(local: Local, batch: int) -> Array:
    """Return what log_twist lacks of that of a Student distribution of y (B, P), plus a constant.

    Where only the density of y is known, its decrease below the largest one replaces the distance.
    """
    twist, size = local.log_twist.reshape(batch, -1), local.residual.shape[1]
    square = 2 * (twist.max(1, keepdims=True) - twist)
    if local.square is not None:
        square = local.square.reshape(batch, -1)
    square = jnp.minimum(square, 1e4)  # It may be infinite.
    return 0.5 * (square - (FREEDOM + size) * jnp.log1p(square / FREEDOM))


def _spread(count: int) -> np.ndarray:
    """Return 0 .. count - 1 in an order of which any first ones are about evenly spaced.

    Particles with common ancestors are next to each other, so that these represent all families.
    """
    return np.argsort(np.arange(count) * (math.sqrt(5) - 1) / 2 % 1)  # by the golden ratio


def _effective_share(log_weights: Array) -> Array:
    """Return the effective sample size (B,) of weights (B, P), divided by P."""
    return 1 / (jnp.square(jax.nn.softmax(log_weights)).sum(1) * log_weights.shape[1])


def _systematic(keys: Array, log_weights: Array) -> Array:
    """Return the numbers (B, P) of particles, each about P times its weight often."""
    batch, count = log_weights.shape
    sums = jnp.cumsum(jax.nn.softmax(log_weights), 1)
    u = uniform(fold_in(keys, UNIFORM), (batch, 1))
    points = (jnp.arange(count) + u) / count * sums[:, -1:]  # Rounding may change the sum.
    found = jax.vmap(jnp.searchsorted)(sums, points)
    return jnp.minimum(found, count - 1)
