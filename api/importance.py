"""Importance weights of guided flows: what guidance gets wrong for priors that are not Gaussian.

The probability flow of a guided score maps noise to events whose density q is known
(`likelihood.log_likelihood`, with the exact trace), as that of the prior, p. With the weights
p(y | x) p(x) / q(x) they follow the posterior whatever the guidance is; the mean weight is p(y).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

import likelihood
from controllable import smc
from controllable.measurements import Measurement, Observation
from sde_lib import SDE, Score
from solvers.adaptive import integrate_flow
from solvers.loop import Loop, by_event, fold_in, image_keys, prior_sample, single

TOLERANCE = 1e-4  # of the steps of the flow; the likelihood of where they lead has its own


def importance_loop(
    keys: Array,
    score: Score,
    sde: SDE,
    measurement: Observation,
    shape: tuple[int, ...],
    *,
    guide: Callable[..., Score],
    steps: int,
    particles: int,
    **options: Any,
) -> tuple[Loop, Array]:
    """Return the loop, of one step, and the states that it starts from, as `smc.smc_loop` does.

    Args:
      guide: (score, sde, measurement, **options) -> guided score.
      steps: 1; those of the flow are adaptive.
    """
    batch = len(keys)
    if options.get("iterations") == 0:  # A number that depends on x would make the flow uneven.
        options["iterations"] = math.prod(measurement.y.shape[1:])

    data, score_of = by_event(score)

    def weigh(z: Array, y: Array, row: list[Array]) -> tuple[Array, Array, Array]:
        one, score = measurement.given(y[None]), score_of(row)
        guided = guide(score, sde, one, **options)
        tolerances = {"rtol": TOLERANCE, "atol": TOLERANCE}
        x, nfe = integrate_flow(guided, sde, z[None], sde.T, sde.t_min, **tolerances)
        probes = likelihood.draw_probes(jax.random.key(0)[None], x.shape, "exact")
        found = [likelihood.log_likelihood(each, sde, x, probes) for each in (score, guided)]
        log_weight = one.log_prob(x) + _log_constant(one) + found[0].logp - found[1].logp
        return x[0], log_weight[0], (nfe + found[0].nfe + found[1].nfe)[0]

    def solve(z: Array) -> tuple[Array, smc.Weights, Array, Array]:
        y, rows = jax.tree.map(lambda each: jnp.repeat(each, particles, 0), (measurement.y, data))
        x, log_weights, nfe = jax.vmap(weigh)(z.reshape(-1, *shape), y, rows)
        x = x.reshape(batch, particles, *shape)
        carry = smc.equally_weighted(x.reshape(batch, particles, -1))
        carry = carry._replace(log_weights=log_weights.reshape(batch, particles))
        nfe = nfe.reshape(batch, particles).max(1)
        return *smc.finish(fold_in(keys, particles), carry, x, 1), nfe

    of_particles = jax.vmap(lambda key: image_keys(key, jnp.arange(particles)))(keys).reshape(-1)
    z = prior_sample(of_particles, sde, (batch * particles, *shape))
    return single(solve), z.reshape(batch, particles, *shape)


def _log_constant(measurement: Observation) -> Array | float:
    """Return what `log_prob` lacks of the density of y, in the range of a linear operator."""
    if not isinstance(measurement, Measurement):
        return measurement.log_constant
    rank = int(measurement.operator.measured.sum())
    return -rank * (math.log(measurement.noise_std) + 0.5 * math.log(2 * math.pi))
