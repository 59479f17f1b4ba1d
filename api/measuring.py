"""How a measurement depends on an event, as users state it: checked, and as methods take it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from api.arguments import Guarded, Numbers, Rule, converted, show, user_code
from controllable.measurements import (
    Evidence,
    GaussianMeasurement,
    LogLikelihood,
    Measurement,
    Observation,
    PoissonMeasurement,
)
from controllable.methods import METHODS
from controllable.operators import Operator
from errors import InputError
from options import NOISE_SCALE, AnyOf, Real

POISSON = "poisson"
LARGEST_RATIO = 1e6  # of measurements to their noise: float32 rounds at 6e-8
LARGEST, LARGEST_COUNT = 1e15, 1e12  # of measurements without noise, whose squares fit; of counts
ADJOINT_TOLERANCE = 1e-3  # of <A x, y> - <x, A* y>, relative to |A x| |y|

Function = Callable[[Array], Array]
Density = Callable[[Array, Array], Array]
Simulate = Callable[[Array, Array], Array]


def make_measurement(
    operator: Operator | Function | None,
    noise: Any,
    log_likelihood: Density | None,
) -> Evidence:
    """Return how y depends on x, without y. Raises InputError if arguments do not fit together."""
    if log_likelihood is not None:
        if operator is not None or noise is not None:
            raise InputError("log_likelihood replaces operator and noise; omit these.")
        return LogLikelihood(log_likelihood)
    if isinstance(operator, Operator):
        return Measurement(operator, None, _noise_std(noise, "a standard deviation"))
    if not callable(operator):
        raise InputError(
            f"operator is {type(operator).__name__}, but it must be an Operator of "
            "score_sde.operators or a function of one event."
        )
    if isinstance(noise, str) and noise == POISSON:
        return PoissonMeasurement(Guarded(operator, "operator"))
    std = _noise_std(noise, "a standard deviation or 'poisson'")
    if std == 0:
        raise InputError("noise = 0 is only possible with an Operator; a function needs noise > 0.")
    return GaussianMeasurement(Guarded(operator, "operator"), None, std)


def _noise_std(noise: Any, allowed: str) -> float:
    known = AnyOf((NOISE_SCALE, Real(0, 0)))
    return float(converted("noise", noise, Rule(known.allows, f"{allowed}, 0 or 1e-10 to 1e10")))


def shape_of_y(made: Evidence, event_shape: tuple[int, ...], y: Any) -> tuple[int, ...]:
    """Return the shape of y for one event, given all of y.

    Raises InputError if such an event cannot be measured, or y has values that are impossible.
    """
    x = jax.random.normal(jax.random.key(0), (1, *event_shape))
    if isinstance(made, LogLikelihood):
        if y is None:
            return ()
        y = jnp.asarray(y, jnp.float32)  # There is one measurement.
        with user_code("log_likelihood must be a number that can be differentiated"):
            jax.eval_shape(jax.grad(made.function), x[0], y)
        return y.shape
    if isinstance(made, Measurement):
        with user_code(f"The operator cannot be applied to an event of shape {event_shape}"):
            measured = _measure(made.operator, x)
    else:
        measured = _differentiable(cast(Observation, made).predict, x)
    limit = LARGEST_RATIO * getattr(made, "noise_std", 0.0) or LARGEST
    if isinstance(made, PoissonMeasurement):
        limit, counts = LARGEST_COUNT, np.atleast_1d(0 if y is None else y)
        others = counts[~((counts >= 0) & (counts == np.round(counts)))]
        if len(others):
            raise InputError(
                f"noise = 'poisson': y holds {others[0]}, but y must hold counts: "
                "non-negative integers. Pass log_likelihood for other data."
            )
    for name, values in (("y", y), ("The measurement of standard normal noise", measured)):
        if values is not None and (abs(values) > limit).any():
            raise InputError(
                f"{name} holds {abs(values).max():.3g}, but the largest number that float32 "
                f"resolves with this noise is {limit:.3g}. Use other units, or raise noise."
            )
    return measured.shape[1:]


def _measure(operator: Operator, x: Array) -> Array:
    """Return A x. Raises InputError for an operator that states wrong values or a wrong adjoint."""
    singular_values = operator.singular_values
    if not Numbers().allows(singular_values) or (singular_values < 0).any():
        raise InputError(
            f"The singular_values of the operator are {show(singular_values)}; they must be an "
            "array of finite, non-negative numbers."
        )
    y = operator.forward(x)
    other = jax.random.normal(jax.random.key(1), y.shape)
    back = operator.adjoint(other)
    if back.shape != x.shape:
        raise InputError(
            f"The adjoint of the operator returns shape {back.shape[1:]} for an event of shape "
            f"{x.shape[1:]}; both must be the same."
        )
    one, two = float(jnp.vdot(y, other)), float(jnp.vdot(x, back))
    scale = float(jnp.linalg.norm(y) * jnp.linalg.norm(other))
    if not abs(one - two) <= ADJOINT_TOLERANCE * scale:
        raise InputError(
            f"The operator's adjoint is wrong: <A x, y> = {one:.6g}, but <x, A* y> = {two:.6g}. "
            "Check its functions, or use operators.decompose."
        )
    return y


def _differentiable(function: Function, x: Array) -> Array:
    """Return the values of events x (1, *event). Raises InputError without derivatives."""

    def differentiate(x: Array) -> Any:
        value, forward = jax.linearize(function, x)
        return jax.linear_transpose(forward, x)(value)

    with user_code("The operator cannot be differentiated"):
        jax.eval_shape(differentiate, x)
    return function(x)


def check_method(made: Evidence, method: str) -> None:
    """Raise InputError if the method needs more than this kind of measurement provides."""
    fitting = [name for name, each in METHODS.items() if isinstance(made, each.needs)]
    if method not in fitting:
        kind = "log_likelihood" if isinstance(made, LogLikelihood) else "a function as operator"
        raise InputError(
            f"method = {method!r} cannot use {kind}; these can: {', '.join(fitting)}. "
            "A linear function of a small event becomes an Operator by operators.decompose."
        )
