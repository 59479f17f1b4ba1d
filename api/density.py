"""Log-densities of a prior, compiled: by its probability flow, and the variational bound."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer

import likelihood
from api.execution import bound
from errors import InputError
from sde_lib import SDE, Score
from sharding import check_memory

if TYPE_CHECKING:
    from api.prior import Prior

EXACT_DIMS = 64  # entries of an event up to which the exact trace is the default
PROBES = 4


class Density(NamedTuple):
    """Log-densities of events (B,) each, in nats.

    Attributes:
      logp: the density of z.
      nfe: evaluations of the score.
      probe_stderr: the standard error due to the probes; NaN for a single probe.
      solver_error: the solver's error estimate.
      model_error: `likelihood.model_error`; 0 if it is not asked for.
    """

    logp: Array
    nfe: Array
    probe_stderr: Array
    solver_error: Array
    model_error: Array


def _derivatives(x: Any) -> int:
    """Return how many derivatives in x are being computed."""
    count = 0
    while isinstance(x, Tracer):
        count += hasattr(x, "primal")
        x = getattr(x, "primal", getattr(x, "val", None))
    return count


def log_density(
    prior: Prior,
    z: Array,
    keys: Array,
    *,
    trace: str | None = None,
    probes: int = PROBES,
    model_error: bool = False,
    **solver: Any,
) -> Density:
    """Return log-densities of z (B, *event_shape), with probes of the keys (B,).

    `solver` holds tolerance and steps; `Prior.log_prob` describes the arguments.
    """
    if _derivatives(z) > 1:
        raise InputError(
            "log_prob can be differentiated once, but a second derivative is requested. Its "
            "gradient is close to score(x, t_min): differentiate the score instead."
        )
    dims = math.prod(prior.event_shape)
    kind = trace or ("exact" if dims <= EXACT_DIMS else "Rademacher")
    count = dims if kind == "exact" else probes
    check_memory(z.size * count, f"A trace by {count} probes for each of {len(z)} events")

    compute = functools.partial(_log_density, prior.sde, kind, probes, solver, model_error)
    return prior.by_rows(compute, z, keys)


@eqx.filter_jit
def _log_density(
    sde: SDE,
    kind: str,
    count: int,
    solver: dict[str, Any],
    has_model_error: bool,
    score: Score,
    z: Array,
    keys: Array,
) -> Density:
    probes, function = likelihood.draw_probes(keys, z.shape, kind, count), bound(score)
    found = likelihood.log_likelihood(function, sde, z, probes, **solver)
    stderr, gap = likelihood.probe_stderr(found.per_probe, kind), jnp.zeros(len(z))
    if has_model_error:
        gap = likelihood.model_error(function, sde, z, found.z, probes)
    return Density(found.logp, found.nfe, stderr, found.error, gap)


def upper_bound(prior: Prior, z: Array, keys: Array) -> Array:
    """Return `likelihood.elbo` of z (B, *event_shape), with the noise of the keys (B,), in nats."""
    return prior.by_rows(functools.partial(_upper_bound, prior.sde), z, keys)


@eqx.filter_jit
def _upper_bound(sde: SDE, score: Score, z: Array, keys: Array) -> Array:
    return likelihood.elbo(bound(score), sde, z, keys).nats
