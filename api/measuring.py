"""What users state in units of their data: events, and how measurements depend on them; checked.

An event is x = loc + scale z, where z is what the score is of.
Samplers, densities and methods of posteriors compute with z; `Prior` and `Posterior` convert their
arguments and results by `Units`, the only place where loc and scale are used.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
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
from controllable.operators import Operator, decompose
from errors import InputError, nearest, unknown_option
from options import NOISE_SCALE, AnyOf, Real
from sde_lib import SDE

POISSON = "poisson"
LARGEST_RATIO = 1e6  # of measurements to their noise: float32 rounds at 6e-8
LARGEST, LARGEST_COUNT = 1e15, 1e12  # of measurements without noise, whose squares fit; of counts
MOST_RATIO = 100  # of scales of entries; a decomposition takes 1e-3 of the largest value for 0
ADJOINT_TOLERANCE = 1e-3  # of <A x, y> - <x, A* y>, relative to |A x| |y|

Function = Callable[[Array], Array]
Density = Callable[[Array, Array], Array]
Simulate = Callable[[Array, Array], Array]


def make_measurement(
    operator: Operator | Function | None,
    noise: Any,
    log_likelihood: Density | None,
    options: Mapping[str, Any],
) -> Evidence:
    """Return how y depends on x, without y.

    Raises InputError if arguments do not fit together, or one of the options is a misspelled one.
    """
    arguments = ("noise", "log_likelihood")
    for name in options:
        if nearest(name, arguments):  # Otherwise the error would say that noise is missing.
            raise unknown_option(name, options[name], "posterior", arguments)
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


# --- units ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Units:
    """The map x = loc + scale z of events of a shape; `loc` and `scale` broadcast to it."""

    shape: tuple[int, ...]
    loc: np.ndarray
    scale: np.ndarray

    def __post_init__(self) -> None:
        """Raise InputError unless loc and scale broadcast to an event, and scale is positive."""
        for name in ("loc", "scale"):
            value = getattr(self, name)
            try:
                np.broadcast_to(value, self.shape)
            except ValueError as error:
                raise InputError(
                    f"{name} has shape {value.shape}; it must be a number or have the shape of an "
                    f"event, {self.shape}."
                ) from error
            with np.errstate(all="ignore"):
                object.__setattr__(self, name, value.astype(np.float32))
        if not (self.scale > 0).all():
            raise InputError(f"scale = {show(self.scale.tolist())} must be positive.")

    @property
    def is_identity(self) -> bool:
        return not self.loc.any() and bool((self.scale == 1).all())

    def to_data(self, z: Any) -> Any:
        """Return x for z (..., *shape)."""
        return z if self.is_identity else self.loc + self.scale * z

    def standardized(self, x: Any) -> Any:
        """Return z for x (..., *shape)."""
        return x if self.is_identity else (x - self.loc) / self.scale

    @property
    def _scales(self) -> np.ndarray:
        return np.broadcast_to(self.scale, self.shape).astype(np.float64)

    @property
    def log_volume(self) -> float:
        """log |dx / dz|."""
        return float(np.log(self._scales).sum())

    @property
    def typical_scale(self) -> float:
        """The root mean square of the scales of all entries."""
        return math.sqrt(np.square(self._scales).mean())

    def typical_std(self, support: tuple[float, float] | None, sde: SDE) -> float:
        """Return the scale of z, for tolerances: from the support of x, or from the noise levels.

        The geometric mean of these is 0.4 for EDM, 0.7 for VE and 1.3 for VP, by default.
        """
        known = self.range_of_z(support)
        if known is not None and all(map(math.isfinite, known)):
            return (known[1] - known[0]) / 4
        with jax.ensure_compile_time_eval():  # The caller may be compiled.
            levels = sde.noise_to_signal(jnp.array([sde.t_end, sde.T]))
        return math.sqrt(math.prod(levels.tolist()))

    def range_of_z(self, support: tuple[float, float] | None) -> tuple[float, float] | None:
        """Return the smallest and the largest z for a range of x."""
        if support is None or self.is_identity:
            return support
        low, high = ((each - self.loc) / self.scale for each in support)
        return float(low.min()), float(high.max())

    def measurement(self, model: Evidence) -> tuple[Evidence, Array | float]:
        """Return how y - offset depends on z, and the offset, given how y depends on x.

        Raises InputError if it cannot be decomposed.
        """
        if self.is_identity:
            return model, 0.0
        if isinstance(model, Measurement):
            operator = _operator_of_z(model.operator, self)
            loc = np.broadcast_to(self.loc, (1, *self.shape))
            return dataclasses.replace(model, operator=operator), model.operator.forward(loc)[0]
        changed: Any = model  # All others have a function of x.
        return dataclasses.replace(changed, function=_OfZ(changed.function, self)), 0.0


@dataclasses.dataclass(frozen=True)
class _OfZ:
    """A function of an event x, as one of z; equal if function and units are."""

    function: Callable[..., Array]
    units: Units

    def __call__(self, z: Array, *others: Any) -> Array:
        return self.function(self.units.to_data(z), *others)


@functools.lru_cache(maxsize=16)  # The same operator again needs no new compilation.
def _operator_of_z(operator: Operator, units: Units) -> Operator:
    """Return z -> A (scale z) for an operator A."""
    scale = units.scale
    if (scale == scale.flat[0]).all():
        values = np.asarray(operator.singular_values) * scale.flat[0]
        return dataclasses.replace(operator, singular_values=values)

    if scale.max() > MOST_RATIO * scale.min():
        raise InputError(
            f"scale holds {scale.min():g} and {scale.max():g}; with an Operator, the largest ratio "
            f"is {MOST_RATIO}. Pass a function of one event instead, and noise > 0."
        )

    def forward(z: Array) -> Array:
        return operator.forward((scale * z)[None])[0]

    found = decompose(forward, units.shape)
    shape = jnp.shape(forward(jnp.zeros(units.shape)))
    return dataclasses.replace(
        found,
        to_measured=lambda c: found.to_measured(c).reshape(-1, *shape),
        from_measured=lambda y: found.from_measured(y.reshape(len(y), -1)),
    )


def shape_of(sample_shape: int | tuple[int, ...]) -> tuple[int, ...]:
    return sample_shape if isinstance(sample_shape, tuple) else (sample_shape,)


def count_of(sample_shape: int | tuple[int, ...]) -> int:
    return math.prod(shape_of(sample_shape))
