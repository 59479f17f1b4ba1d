"""Methods for inverse problems by name: how each conditions a sampler on a measurement.

A method is a guided score, a constraint or a predictor (`controllable.inverse_problems`,
`controllable.daps`), or a sampler of its own (`controllable.smc`). To add one of the former, write
a function to `Conditioned` and enter it in `METHODS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from types import MappingProxyType
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from controllable import inverse_problems, smc
from controllable.daps import DAPS
from controllable.measurements import Evidence, Measurement, Observation
from options import (
    FLAG,
    NOISE_SCALE,
    POSITIVE,
    SHARE,
    AnyOf,
    Integer,
    Option,
    Options,
    choose,
    resolve,
)
from sde_lib import SDE, Score, expand
from solvers.loop import Loop, Samples, fold_in, prior_sample, to_samples
from solvers.predictor_corrector import Update

LAST = 2**31 - 3  # folded into a key for `Method.last_draw`; larger than the number of any step


class Chosen(NamedTuple):
    """A method by its name, with the values of its options; hashable."""

    name: str
    options: tuple[tuple[str, Any], ...] = ()


def choose_method(name: str, **given: Any) -> Chosen:
    """Return a method with all of its options.

    Raises InputError for an unknown name or option, and for a value outside of its domain.
    """
    method = choose(METHODS, name, "method")
    values = resolve(method.options, given, f"method = {name!r}")
    return Chosen(name, tuple(values.items()))


class Conditioned(NamedTuple):
    """A sampler's inputs, conditioned on a measurement.

    Attributes:
      score: the score, guided by the measurement or not.
      x: the initial state (B, *event).
      sampler_options: further keyword arguments of the sampler, see `sampling.Sampler`.
    """

    score: Score
    x: Array
    sampler_options: dict[str, Any]


def projection(
    score: Score, sde: SDE, measurement: Measurement, x: Array, *, official: bool
) -> Conditioned:
    """Constrain each state to agree with the measurement."""
    start = inverse_problems.projection_start(measurement, x, official=official)
    constraint = inverse_problems.projection(sde, measurement, official=official)
    return Conditioned(score, start, {"constraint": constraint})


def dps(score: Score, sde: SDE, measurement: Observation, x: Array, *, scale: float) -> Conditioned:
    """Extend the predictor by a gradient step on the residual."""
    del sde

    def extend(predictor: Update) -> Update:
        return inverse_problems.dps(predictor, measurement, scale=scale)

    return Conditioned(score, x, {"wrap_predictor": extend})


def ddrm(
    score: Score, sde: SDE, measurement: Measurement, x: Array, *, eta: float, eta_b: float
) -> Conditioned:
    """Replace the predictor."""
    del sde
    predictor = inverse_problems.ddrm(measurement, eta=eta, eta_b=eta_b)
    return Conditioned(score, x, {"wrap_predictor": lambda _: predictor})


def daps(score: Score, sde: SDE, measurement: Evidence, x: Array, **options: Any) -> Conditioned:
    """Replace the predictor."""
    del sde
    predictor = DAPS(measurement, **options)
    return Conditioned(score, x, {"wrap_predictor": lambda _: predictor})


def pigdm(
    score: Score, sde: SDE, measurement: Measurement, x: Array, *, prior_std: float
) -> Conditioned:
    """Guide the score, assuming data of covariance prior_std^2 I."""
    guided = inverse_problems.pigdm(score, sde, measurement, prior_std=prior_std)
    return Conditioned(guided, x, {})


def moment_matching(
    score: Score, sde: SDE, measurement: Observation, x: Array, *, iterations: int
) -> Conditioned:
    """Guide the score with the covariance of the denoised event."""
    guided = inverse_problems.moment_matching(score, sde, measurement, iterations=iterations)
    return Conditioned(guided, x, {})


class Method(NamedTuple):
    """A method of solving inverse problems.

    Attributes:
      condition: (score, SDE, measurement, samples of the prior, **options) -> Conditioned.
      options: the keyword arguments of `condition`, which are fields of `config.restore`.
      needs: the class of measurements that it accepts: `Measurement` if it needs a singular value
        decomposition, `Observation` if it needs a function y = f(x) + noise, `Evidence` if
        log p(y | x) suffices.
      requires_pc: whether the method changes the steps of the predictor-corrector loop, and so
        requires sampling.method = 'pc'. Otherwise it is a guided score, which any sampler accepts.
      allows_corrector: whether it can be combined with a corrector.
      uses_predictor: whether the steps of the sampler are taken, guided or extended.
      last_draw: (keys, score, SDE, measurement, x, **options) -> x with a draw of what is left of
        x_0 given the last state, for samplers that end with its mean; and evaluations of the score.
      loop: for a method that is a sampler of its own, which has no `condition`: the function
        `smc.smc_loop`, or another one with these arguments and results.
      guide: in place of `loop`, (score, SDE, measurement, **options) -> the guided score whose flow
        `api.importance` weights.
      steps: its default number of steps.
      most_entries: of an event, and of y unless it is linear, for such a method.
    """

    condition: Callable[..., Conditioned] | None
    options: Options = MappingProxyType({})
    needs: type = Measurement
    requires_pc: bool = False
    allows_corrector: bool = True
    uses_predictor: bool = True
    last_draw: Callable[..., tuple[Array, int]] | None = None
    loop: Callable[..., Any] | None = None
    guide: Callable[..., Score] | None = None
    steps: int = 0
    most_entries: int = 0


OFFICIAL = {
    "official": Option(False, FLAG, "Projection with the two bugs of the official code."),
}
SCALE = {"scale": Option(1.0, POSITIVE, "Step size of dps.")}
ETAS = {
    "eta": Option(0.85, SHARE, "Share of noise that ddrm draws again."),
    "eta_b": Option(1.0, SHARE, "Weight of the measurement in ddrm."),
}
PRIOR_STD = {
    "prior_std": Option(
        0.5,
        NOISE_SCALE,
        "Standard deviation of the Gaussian prior of pigdm and daps, in model units.",
    )
}
DAPS_STEPS = {
    "flow_steps": Option(5, Integer(1, 1000), "Evaluations of the network by daps at a level."),
    "langevin_steps": Option(
        100, Integer(1, 10**5), "Langevin steps of daps; unused for linear operators."
    ),
}
ITERATIONS = {
    "iterations": Option(
        0,
        Integer(0, 1000),
        "Conjugate-gradient iterations of moment_matching; 0: until the residual is below 1 %, at "
        "most 50. An image stops earlier where the Jacobian of a network is not symmetric.",
    )
}
PARTICLES = {
    "particles": Option(
        0,
        AnyOf((Integer(0, 0), Integer(2, 10**9))),
        "Particles of smc for each measurement, at least `samples`; 0: 4 `samples`, at least 512.",
    )
}

WEIGHTED = "weighted_"  # with `weights=True`
MOST_WEIGHTED = 64  # entries: the trace costs as many derivatives of the guided score


def _weighted(guide: Callable[..., Score], options: Options, needs: type = Observation) -> Method:
    return Method(
        *(None, {**options, **PARTICLES}, needs),
        uses_predictor=False,
        guide=guide,
        steps=1,
        most_entries=MOST_WEIGHTED,
    )


# A corrector of the unconditional score would undo the updates of `dps`, `ddrm` and `daps`.
STEPWISE: dict[str, Any] = {"requires_pc": True, "allows_corrector": False}
METHODS = {
    "projection": Method(projection, OFFICIAL, requires_pc=True),
    "dps": Method(dps, SCALE, Observation, **STEPWISE),
    "ddrm": Method(ddrm, ETAS, **STEPWISE, uses_predictor=False),
    "daps": Method(daps, {**PRIOR_STD, **DAPS_STEPS}, Evidence, **STEPWISE, uses_predictor=False),
    "pigdm": Method(pigdm, PRIOR_STD, last_draw=inverse_problems.pigdm_draw),
    "moment_matching": Method(
        moment_matching, ITERATIONS, Observation, last_draw=inverse_problems.matched_draw
    ),
    "smc": Method(
        *(None, PARTICLES, Evidence),
        uses_predictor=False,
        loop=smc.smc_loop,
        steps=smc.STEPS,
        most_entries=smc.MOST_ENTRIES,
    ),
    WEIGHTED + "moment_matching": _weighted(inverse_problems.moment_matching, ITERATIONS),
    WEIGHTED + "pigdm": _weighted(inverse_problems.pigdm, PRIOR_STD, Measurement),
}
"""By `config.restore.method`."""

AFFORDABLE = 32  # entries of an event, and of y unless it is linear, for which smc is the default


def default_method(
    measurement: Evidence,
    event_shape: tuple[int, ...],
    y_shape: tuple[int, ...],
    options: Collection[str],
) -> tuple[str, str]:
    """Return the method of posteriors that name none, and a warning if it may be biased, or "".

    It is 'smc' up to AFFORDABLE entries, since each particle costs as many derivatives of the score
    in a step, unless `options` of another method are given.
    """
    method = "moment_matching" if isinstance(measurement, Observation) else "daps"
    entries = math.prod(event_shape)
    if not isinstance(measurement, Measurement):
        entries = max(entries, math.prod(y_shape))
    if entries > AFFORDABLE:
        return method, (
            f"method = {method!r} is chosen because x or y has {entries} entries. Its samples are "
            "biased unless the data are Gaussian. method = 'smc' corrects this at a higher cost, "
            f"for up to {smc.MOST_ENTRIES} entries. Pass method to silence this warning."
        )
    return (method if set(options) - set(METHODS["smc"].options) else "smc"), ""


def posterior_loop(
    chosen: Chosen,
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
      chosen: the method and its options.
      sampler: a `Sampler`, whose result the loop has, with x changed. Its `loop` is that of the
        method, if this has one.
      keys: (B,), one random key per event, or per measurement for a method that has a loop.
      support: the range of the data. Guided scores clip E[x_0 | x_t] to it, which keeps them stable
        at high noise, where gradients of networks are inaccurate.

    If a linear measurement is free of noise, the last step projects x onto A x = y, except with
    the option `official`.
    """
    method, options = METHODS[chosen.name], dict(chosen.options)
    if method.condition is None:
        loop, start = sampler.loop(
            *(keys, score, sde, measurement, shape), steps=sampler.steps, **options
        )
        return loop.then(_of_particles), start
    prior = prior_sample(keys, sde, (len(keys), *shape))
    guided, start, sampler_options = method.condition(score, sde, measurement, prior, **options)
    if support and not method.requires_pc:
        guided = inverse_problems.clip_denoised(guided, sde, *support)
    loop = sampler.loop(keys, guided, **sampler_options)
    last_draw = method.last_draw
    if last_draw and sampler.denoises:
        last_keys = fold_in(keys, LAST)

        def add(samples: Samples) -> Samples:
            x, evaluations = last_draw(last_keys, score, sde, measurement, samples.x, **options)
            return samples._replace(x=x, nfe=samples.nfe + evaluations)

        loop = loop.then(add)
    is_linear = isinstance(measurement, Measurement)
    if is_linear and measurement.noise_std == 0 and not options.get("official"):
        loop = loop.then(lambda samples: samples._replace(x=measurement.enforce(samples.x)))
    if chosen.name == "daps" and not is_linear:
        loop = loop.then(lambda samples: _without_impossible(samples, measurement, sampler.steps))
    return loop, start


def _of_particles(result: tuple[Array, Any, Array, Array]) -> Samples:
    """Return the result (x, weights, bad_step, nfe) of particles as samples."""
    x, weights, bad_step, nfe = result
    return to_samples(x, nfe, bad_step=bad_step)._replace(weights=weights)


def _without_impossible(samples: Samples, measurement: Evidence, steps: int) -> Samples:
    """Return samples where events x with p(y | x) = 0 are NaN, since the last step."""
    impossible = measurement.log_prob(samples.x) == -jnp.inf
    x = jnp.where(expand(impossible, samples.x), jnp.nan, samples.x)
    return samples._replace(x=x, bad_step=jnp.where(impossible, steps, samples.bad_step))
