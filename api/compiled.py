"""The algorithms of the API, compiled once for each score, sampler and shape.

A score may be a function, or a pytree of arrays that can be called, such as
`jax.tree_util.Partial(apply, params)` or a module of Equinox: its arrays are arguments of the
compiled program, not constants in it.
"""

from __future__ import annotations

import equinox as eqx
from jax import Array

import likelihood
import sampling
from api.settings import MethodOptions
from controllable import methods
from controllable.measurements import Evidence
from factory import Sampler, Samples
from likelihood import Likelihood
from sde_lib import SDE, Score


def _function(score: Score) -> Score:
    """Return the score as a plain function, which samplers do not take for a guided score."""

    def evaluate(x: Array, t: Array) -> Array:
        return score(x, t)

    return evaluate


@eqx.filter_jit
def draw(
    score: Score,
    sde: SDE,
    shape: tuple[int, ...],
    sampler: Sampler,
    keys: Array,
    temperature: Array,
) -> Samples:
    """Draw one event for each of the keys (B,)."""
    prior = temperature * sampling.prior_sample(keys, sde, (len(keys), *shape))
    return sampler(keys, _function(score), prior)


@eqx.filter_jit
def draw_posterior(
    score: Score,
    sde: SDE,
    shape: tuple[int, ...],
    sampler: Sampler,
    keys: Array,
    method: str,
    options: MethodOptions,
    measurement: Evidence,
    support: tuple[float, float] | None,
) -> Samples:
    """Draw one event given each of the measurements, for the keys (B,)."""
    loop, start = methods.posterior_loop(
        method,
        options,
        sampler,
        keys,
        _function(score),
        sde,
        measurement,
        shape,
        support=support,
    )
    return loop.run(start)


@eqx.filter_jit
def log_likelihood(score: Score, sde: SDE, x: Array, probes: Array, tolerance: float) -> Likelihood:
    """Compute log p(x) of events (B, *shape)."""
    return likelihood.log_likelihood(_function(score), sde, x, probes, tolerance=tolerance)


@eqx.filter_jit
def follow_flow(score: Score, flow: Sampler, x: Array) -> Samples:
    """Map events to latent codes, or back; see `factory.make_flow`."""
    return flow(_function(score), x)


@eqx.filter_jit
def log_prob(measurement: Evidence, x: Array) -> Array:
    """Return log p(y | x) (B,) of events (B, *shape)."""
    return measurement.log_prob(x)
