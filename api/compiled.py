"""The algorithms of the API, compiled once for each score, sampler and shape.

A score may be a function, or a pytree of arrays that can be called, such as
`jax.tree_util.Partial(apply, params)` or a module of Equinox: its arrays are arguments of the
compiled program, not constants in it.
"""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
from jax import Array

import likelihood
import sampling
from api.arguments import user_code
from api.settings import MethodOptions
from controllable import methods
from controllable.measurements import Evidence
from errors import InputError
from factory import Sampler, Samples
from likelihood import Likelihood
from sde_lib import SDE, Score


def function_of(score: Score) -> Score:
    """Return the score as a plain function, which samplers do not take for a guided score.

    It raises InputError for what the score raises, and for values of another shape or type.
    """

    def evaluate(x: Array, t: Array) -> Array:
        given = f"The score of x with shape {x.shape} and t with shape {t.shape}"
        with user_code(f"{given} fails"):
            value = score(x, t)
        shape = getattr(value, "shape", type(value).__name__)
        if shape != x.shape:
            raise InputError(
                f"{given} has shape {shape}; it must be that of x. A function of one event becomes "
                "one of batches by jax.vmap; t needs further axes to multiply x."
            )
        if not jnp.issubdtype(value.dtype, jnp.floating):
            raise InputError(f"{given} has the type {value.dtype}; it must hold real numbers.")
        return value

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
    return sampler(keys, function_of(score), prior)


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
        function_of(score),
        sde,
        measurement,
        shape,
        support=support,
    )
    return loop.run(start)


@eqx.filter_jit
def log_likelihood(score: Score, sde: SDE, x: Array, probes: Array, tolerance: float) -> Likelihood:
    """Compute log p(x) of events (B, *shape)."""
    return likelihood.log_likelihood(function_of(score), sde, x, probes, tolerance=tolerance)


@eqx.filter_jit
def follow_flow(score: Score, flow: Sampler, x: Array) -> Samples:
    """Map events to latent codes, or back; see `factory.make_flow`."""
    return flow(function_of(score), x)


@eqx.filter_jit
def log_prob(measurement: Evidence, x: Array) -> Array:
    """Return log p(y | x) (B,) of events (B, *shape)."""
    return measurement.log_prob(x)
