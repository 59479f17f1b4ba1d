"""Methods for inverse problems by name: how each conditions a sampler on a measurement.

A method is a guided score, a constraint or a predictor (`controllable.inverse_problems`,
`controllable.daps`). To add one, write a function to `Conditioned` and enter it in `METHODS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

import sampling
from controllable import inverse_problems
from controllable.daps import DAPS
from controllable.measurements import Evidence, Measurement, Observation
from sampling import Update
from sde_lib import SDE, Score, expand
from solvers import Loop

Options = Any
"""An object with the fields of `config.restore` as attributes."""


class Conditioned(NamedTuple):
    """A sampler's inputs, conditioned on a measurement.

    Attributes:
      score: the score, guided by the measurement or not.
      x: the initial state (B, *event).
      sampler_options: further keyword arguments of the sampler, see `factory.Sampler`.
    """

    score: Score
    x: Array
    sampler_options: dict[str, Any]


def projection(
    options: Options, score: Score, sde: SDE, measurement: Measurement, x: Array
) -> Conditioned:
    """Constrain each state to agree with the measurement."""
    start = inverse_problems.projection_start(measurement, x, official=options.official)
    constraint = inverse_problems.projection(sde, measurement, official=options.official)
    return Conditioned(score, start, {"constraint": constraint})


def dps(
    options: Options, score: Score, sde: SDE, measurement: Observation, x: Array
) -> Conditioned:
    """Extend the predictor by a gradient step on the residual."""
    del sde

    def exchange(predictor: Update) -> Update:
        return inverse_problems.dps(predictor, measurement, scale=options.scale)

    return Conditioned(score, x, {"exchange": exchange})


def ddrm(
    options: Options, score: Score, sde: SDE, measurement: Measurement, x: Array
) -> Conditioned:
    """Replace the predictor."""
    del sde
    predictor = inverse_problems.ddrm(measurement, eta=options.eta, eta_b=options.eta_b)
    return Conditioned(score, x, {"exchange": lambda _: predictor})


def daps(options: Options, score: Score, sde: SDE, measurement: Evidence, x: Array) -> Conditioned:
    """Replace the predictor."""
    del sde
    predictor = DAPS(
        measurement,
        flow_steps=options.flow_steps,
        langevin_steps=options.langevin_steps,
        prior_std=options.prior_std,
    )
    return Conditioned(score, x, {"exchange": lambda _: predictor})


def pigdm(
    options: Options, score: Score, sde: SDE, measurement: Measurement, x: Array
) -> Conditioned:
    """Guide the score, assuming data of covariance prior_std^2 I."""
    guided = inverse_problems.pigdm(score, sde, measurement, prior_std=options.prior_std)
    return Conditioned(guided, x, {})


def moment_matching(
    options: Options, score: Score, sde: SDE, measurement: Observation, x: Array
) -> Conditioned:
    """Guide the score with the covariance of the denoised event."""
    guided = inverse_problems.moment_matching(
        score, sde, measurement, iterations=options.iterations
    )
    return Conditioned(guided, x, {})


class Method(NamedTuple):
    """A method of solving inverse problems.

    Attributes:
      condition: (options, score, SDE, measurement, samples of the prior) -> Conditioned.
      needs: the class of measurements that it accepts: `Measurement` if it needs a singular value
        decomposition, `Observation` if it needs a function y = f(x) + noise, `Evidence` if
        log p(y | x) suffices.
      requires_pc: whether the method changes the steps of the predictor-corrector loop, and so
        requires sampling.method = 'pc'. Otherwise it is a guided score, which any sampler accepts.
      allows_corrector: whether it can be combined with a corrector.
      uses_predictor: whether the steps of the sampler are taken, guided or extended.
    """

    condition: Callable[..., Conditioned]
    needs: type = Measurement
    requires_pc: bool = False
    allows_corrector: bool = True
    uses_predictor: bool = True


# A corrector of the unconditional score would undo the updates of `dps`, `ddrm` and `daps`.
METHODS = {
    "projection": Method(projection, requires_pc=True),
    "dps": Method(dps, Observation, requires_pc=True, allows_corrector=False),
    "ddrm": Method(ddrm, requires_pc=True, allows_corrector=False, uses_predictor=False),
    "daps": Method(daps, Evidence, requires_pc=True, allows_corrector=False, uses_predictor=False),
    "pigdm": Method(pigdm),
    "moment_matching": Method(moment_matching, Observation),
}
"""By `config.restore.method`."""


def posterior_loop(
    name: str,
    options: Options,
    sampler: Any,
    keys: Array,
    score: Score,
    sde: SDE,
    measurement: Evidence,
    shape: tuple[int, ...],
    *,
    support: tuple[float, float] | None = None,
) -> tuple[Loop, Array]:
    """Return the loop that draws from the posterior of a method, and the states it starts from.

    Args:
      name, options: the method, and an object with its options.
      sampler: a `factory.Sampler`, whose result the loop has, with x changed.
      keys: (B,), one random key per event.
      support: the range of the data. Guided scores clip E[x_0 | x_t] to it, which keeps them stable
        at high noise, where gradients of networks are inaccurate.

    If a linear measurement is free of noise, the last step projects x onto A x = y, except with
    options.official.
    """
    method = METHODS[name]
    prior = sampling.prior_sample(keys, sde, (len(keys), *shape))
    guided, start, sampler_options = method.condition(options, score, sde, measurement, prior)
    if support and not method.requires_pc:
        guided = inverse_problems.clip_denoised(guided, sde, *support)
    loop = sampler.loop(keys, guided, **sampler_options)
    is_linear = isinstance(measurement, Measurement)
    if is_linear and measurement.noise_std == 0 and not options.official:
        loop = loop.then(lambda samples: samples._replace(x=measurement.enforce(samples.x)))
    if name == "daps" and not is_linear:
        loop = loop.then(lambda samples: _without_impossible(samples, measurement, sampler.steps))
    return loop, start


def _without_impossible(samples: Any, measurement: Evidence, steps: int) -> Any:
    """Return `factory.Samples` where events x with p(y | x) = 0 are NaN, since the last step."""
    impossible = measurement.log_prob(samples.x) == -jnp.inf
    x = jnp.where(expand(impossible, samples.x), jnp.nan, samples.x)
    return samples._replace(x=x, bad_step=jnp.where(impossible, steps, samples.bad_step))
