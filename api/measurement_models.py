"""How a measurement depends on an event, as users state it: checks, simulation, and `Evidence`.

A model of the measurement is one of four classes, by what `Prior.posterior` gets: an `Operator`, a
function with Gaussian noise, a function with Poisson noise, or a density.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import sampling
from api.arguments import Guarded, Numbers, Rule, converted, show, user_code
from configs.declaration import NOISE_SCALE
from configs.domains import AnyOf, Real
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

POISSON = "poisson"
LARGEST_RATIO = 1e6  # of measurements to their noise: float32 rounds at 6e-8
LARGEST, LARGEST_COUNT = 1e15, 1e12  # of measurements without noise, whose squares fit; of counts
ADJOINT_TOLERANCE = 1e-3  # of <A x, y> - <x, A* y>, relative to |A x| |y|

Function = Callable[[Array], Array]
Density = Callable[[Array, Array], Array]
Simulate = Callable[[Array, Array], Array]


class MeasurementModel(Protocol):
    """How y depends on x.

    Attributes:
      provides: the kind of evidence, as in `controllable.methods.Method.needs`.
      has_density: whether log p(y | x) is finite.
      can_simulate: whether `simulate` can draw measurements.
    """

    @property
    def provides(self) -> type: ...

    @property
    def has_density(self) -> bool: ...

    @property
    def can_simulate(self) -> bool: ...

    def given(self, y: Array) -> Evidence:
        """Return measurements y (B, ...) as methods take them."""
        ...

    def simulate(self, x: Array, keys: Array) -> Array:
        """Return a measurement of each event x (B, *event), with noise from the keys (B,)."""
        ...

    def y_shape(self, event_shape: tuple[int, ...], y: Any) -> tuple[int, ...]:
        """Return the shape of y for one event, given all of y.

        Raises InputError if it cannot be measured.
        """
        ...


@dataclasses.dataclass(frozen=True)
class LinearModel:
    """y = A x + noise n with an operator A."""

    operator: Operator
    noise: float
    provides: type = Measurement
    can_simulate: bool = True

    @property
    def has_density(self) -> bool:
        return self.noise > 0

    def given(self, y: Array) -> Evidence:
        return Measurement(self.operator, y, self.noise)

    def simulate(self, x: Array, keys: Array) -> Array:
        return self.operator.observe(x, sampling.standard_normal(keys, x.shape), self.noise)

    def y_shape(self, event_shape: tuple[int, ...], y: Any) -> tuple[int, ...]:
        x, values = _test_event(event_shape), self.operator.singular_values
        if not Numbers().allows(values) or (values < 0).any():
            raise InputError(
                f"The operator has the singular_values {show(values)}; they must be an array of "
                "finite numbers that are not negative."
            )
        with user_code(f"The operator cannot be applied to an event of shape {event_shape}"):
            measured = self.operator.forward(x)
            _check_adjoint(self.operator, x, measured)
        _check_range(measured, y, LARGEST_RATIO * self.noise or LARGEST)
        return measured.shape[1:]


@dataclasses.dataclass(frozen=True)
class GaussianModel:
    """y = f(x) + noise n with a function f of one event."""

    function: Function
    noise: float
    provides: type = Observation
    has_density: bool = True
    can_simulate: bool = True

    def given(self, y: Array) -> Evidence:
        return GaussianMeasurement(self.function, y, self.noise)

    def simulate(self, x: Array, keys: Array) -> Array:
        y = jax.vmap(self.function)(x)
        return y + self.noise * sampling.standard_normal(keys, y.shape)

    def y_shape(self, event_shape: tuple[int, ...], y: Any) -> tuple[int, ...]:
        measured = _differentiable(self.function, _test_event(event_shape))
        _check_range(measured, y, LARGEST_RATIO * self.noise)
        return measured.shape[1:]


@dataclasses.dataclass(frozen=True)
class PoissonModel:
    """Counts y with the rates f(x), for a function f of one event."""

    function: Function
    provides: type = Observation
    has_density: bool = True
    can_simulate: bool = True

    def given(self, y: Array) -> Evidence:
        return PoissonMeasurement(self.function, y)

    def simulate(self, x: Array, keys: Array) -> Array:
        rates = jnp.maximum(jax.vmap(self.function)(x), 0)
        return jax.vmap(jax.random.poisson)(keys, rates).astype(jnp.float32)

    def y_shape(self, event_shape: tuple[int, ...], y: Any) -> tuple[int, ...]:
        counts = np.atleast_1d(0 if y is None else y)
        others = counts[~((counts >= 0) & (counts == np.round(counts)))]
        if len(others):
            raise InputError(
                f"noise = 'poisson': y holds {others[0]}, but y must hold counts, which are "
                "integers and not negative. Give log_likelihood for other data."
            )
        measured = _differentiable(self.function, _test_event(event_shape))
        _check_range(measured, y, LARGEST_COUNT)
        return measured.shape[1:]


@dataclasses.dataclass(frozen=True)
class DensityModel:
    """log p(y | x) as a function of one event and its y."""

    density: Density
    provides: type = Evidence
    has_density: bool = True
    can_simulate: bool = False

    def given(self, y: Array) -> Evidence:
        return LogLikelihood(self.density, y)

    def simulate(self, x: Array, keys: Array) -> Array:
        raise NotImplementedError("A density does not say how to draw y.")

    def y_shape(self, event_shape: tuple[int, ...], y: Any) -> tuple[int, ...]:
        if y is None:
            return ()
        y = jnp.asarray(y, jnp.float32)  # There is one measurement.
        with user_code("log_likelihood must be a number that can be differentiated"):
            jax.eval_shape(jax.grad(self.density), _test_event(event_shape)[0], y)
        return y.shape


def make_model(
    operator: Operator | Function | None,
    noise: Any,
    log_likelihood: Density | None,
    method: str,
) -> MeasurementModel:
    """Return the model of a measurement.

    Raises InputError if the arguments do not fit each other or the method.
    """
    if log_likelihood is not None:
        if operator is not None or noise is not None:
            raise InputError(
                "log_likelihood takes the place of operator and noise; leave these out."
            )
        model: MeasurementModel = DensityModel(log_likelihood)
    elif isinstance(operator, Operator):
        model = LinearModel(operator, _noise_std(noise, "a standard deviation"))
    elif not callable(operator):
        raise InputError(
            f"operator is {type(operator).__name__}, but it must be an Operator of "
            "score_sde.operators or a function of one event."
        )
    elif isinstance(noise, str) and noise == POISSON:
        model = PoissonModel(Guarded(operator, "operator"))
    else:
        std = _noise_std(noise, "a standard deviation or 'poisson'")
        if std == 0:
            raise InputError(
                "noise = 0 is only possible with an Operator; a function needs noise > 0."
            )
        model = GaussianModel(Guarded(operator, "operator"), std)
    _check_method(model, method)
    return model


def _noise_std(noise: Any, allowed: str) -> float:
    known = AnyOf((NOISE_SCALE, Real(0, 0)))
    return float(converted("noise", noise, Rule(known.allows, f"{allowed}, 0 or 1e-10 to 1e10")))


_RANK = (Evidence, Observation, Measurement)  # Each provides what those before it provide.


def _check_method(model: MeasurementModel, method: str) -> None:
    """Raise InputError if the method needs more than this kind of measurement provides."""

    def fits(name: str) -> bool:
        return _RANK.index(METHODS[name].needs) <= _RANK.index(model.provides)

    if not fits(method):
        kind = "log_likelihood" if model.provides is Evidence else "a function as operator"
        raise InputError(
            f"method = {method!r} cannot use {kind}; "
            f"these can: {', '.join(filter(fits, METHODS))}. "
            "A linear function of a small event becomes an Operator by operators.decompose."
        )


def _test_event(shape: tuple[int, ...]) -> Array:
    return jax.random.normal(jax.random.key(0), (1, *shape))


def _differentiable(function: Function, x: Array) -> Array:
    """Return the values of events x (1, *event). Raises InputError without derivatives."""

    def differentiate(x: Array) -> Any:
        value, forward = jax.linearize(jax.vmap(function), x)
        return jax.linear_transpose(forward, x)(value)

    with user_code("The operator cannot be differentiated"):
        jax.eval_shape(differentiate, x)
    return jax.vmap(function)(x)


def _check_range(measured: Array, y: Any, limit: float) -> None:
    """Raise InputError for a measurement beyond `limit`, beside which float32 loses the noise."""
    for name, values in (("y", y), ("The measurement of standard normal noise", measured)):
        if values is not None and (abs(values) > limit).any():
            raise InputError(
                f"{name} holds {abs(values).max():.3g}, but the largest number that float32 "
                f"resolves with this noise is {limit:.3g}. Use other units, or raise noise."
            )


def _check_adjoint(operator: Operator, x: Array, y: Array) -> None:
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
