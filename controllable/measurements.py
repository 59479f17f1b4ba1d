"""What is known about an event x: measurements y of it, and how likely they are.

All classes describe a batch, with one y for each event. Without y they say how a measurement
depends on x, and `given(y)` adds it. They are pytrees whose leaf is y, as are the scores that they
guide. A sampler that treats events one by one splits y with them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from controllable.operators import Operator
from sde_lib import expand
from solvers.loop import standard_normal, static

SMALLEST_RATE = 1e-3
"""Expected counts below this value count as this value, whose logarithm is finite."""


class Linearization(NamedTuple):
    """A measurement near an event x (B, *event): y = f(x) + J (x' - x) + noise.

    Its entries may be scaled, and may be complex, with Re(u* v) as the inner product.

    Attributes:
      residual: y - f(x), (B, ...).
      forward, adjoint: products with J and its transpose, of batches.
      noise_var: the variance of the noise, a scalar or of the shape of the residual.
      noise: a function from keys (B,) to noise of variance 1, of the shape of the residual.
    """

    residual: Array
    forward: Callable[[Array], Array]
    adjoint: Callable[[Array], Array]
    noise_var: Array | float
    noise: Callable[[Array], Array]


class Evidence:
    """What `daps` needs.

    Attributes:
      y: the measurements (B, ...), or None.
      can_simulate: whether `simulate` can draw measurements.
    """

    y: Any
    can_simulate = True

    @property
    def has_density(self) -> bool:
        """Whether log p(y | x) is finite."""
        return True

    @property
    def log_constant(self) -> Array | float:
        """What `log_prob` lacks of a density, () or (B,); 0 where it is not known."""
        return 0.0

    def given(self, y: Array) -> Self:
        """Return this with the measurements y (B, ...)."""
        return dataclasses.replace(self, y=y)  # pyright: ignore[reportArgumentType]

    def log_prob(self, x: Array) -> Array:
        """Return log p(y | x) (B,) in nats, up to a constant."""
        raise NotImplementedError

    def simulate(self, x: Array, keys: Array) -> Array:
        """Return a measurement of each event x (B, *event), with noise from the keys (B,)."""
        raise NotImplementedError


class Observation(Evidence):
    """What methods without a singular value decomposition need."""

    def predict(self, x: Array) -> Array:
        """Return f(x) of events x (B, *event)."""
        raise NotImplementedError

    def misfit(self, x: Array) -> Array:
        """Return a norm of y - f(x), (B,)."""
        raise NotImplementedError

    def linearize(self, x: Array, variance: Array) -> Linearization:
        """Return f near x, of which the variance (B,) of the prior is given."""
        raise NotImplementedError


@struct.dataclass(eq=False)
class Measurement(Observation):
    """y = A x + noise_std n for events x (B, *event), with standard normal n."""

    operator: Operator = static()
    y: Any = None
    noise_std: float = static(default=0.0)

    @property
    def has_density(self) -> bool:
        return self.noise_std > 0

    def predict(self, x: Array) -> Array:
        return self.operator.forward(x)

    def simulate(self, x: Array, keys: Array) -> Array:
        return self.operator.observe(x, standard_normal(keys, x.shape), self.noise_std)

    @property
    def solution_std(self) -> np.ndarray:
        """Standard deviation (...) of `operator.solution(y)`; inf where nothing is measured."""
        values = self.operator.singular_values
        infinite = np.full(values.shape, np.inf, np.float32)
        return np.divide(self.noise_std, values, where=values > 0, out=infinite)

    def residual(self, x: Array) -> Array:
        """Return the coefficients (B, ...) of U* (y - A x), 0 where nothing is measured."""
        operator = self.operator
        c = operator.from_measured(self.y) - operator.to_basis(x) * operator.singular_values
        return jnp.where(operator.measured, c, 0)

    def enforce(self, x: Array) -> Array:
        """Return the event nearest to x among the solutions of A x = y; (B, *event)."""
        operator = self.operator
        c = jnp.where(operator.measured, operator.solution(self.y), operator.to_basis(x))
        return operator.from_basis(c)

    def misfit(self, x: Array) -> Array:
        """Return |y - A x| (B,), measured in the range of A."""
        return jnp.sqrt(self._squares(x) + 1e-12)

    def log_prob(self, x: Array) -> Array:
        """Return log p(y | x) (B,), up to a constant; noise_std must not be 0."""
        return -0.5 * self._squares(x) / self.noise_std**2

    def linearize(self, x: Array, variance: Array) -> Linearization:
        """Return an equivalent measurement of coefficients: U* y, each divided by a scale.

        With the singular values s and r = noise_std^2 / variance, coefficient k is divided by
        sqrt(s_k^2 + r). For events of covariance `variance` I, all coefficients then have the same
        variance. So the condition number of what `moment_matching` solves is that of the
        covariance, whatever the singular values are.
        """
        operator = self.operator
        values, noise_var = operator.singular_values, self.noise_std**2
        residual = self.residual(x)
        square = jnp.where(operator.measured, values**2 + expand(noise_var / variance, residual), 1)
        weights = values / jnp.sqrt(square)

        def forward(v: Array) -> Array:
            return operator.to_basis(v) * weights

        def adjoint(c: Array) -> Array:
            return operator.from_basis(c * weights)

        def noise(keys: Array) -> Array:
            return operator.to_basis(standard_normal(keys, x.shape))

        scaled = residual / jnp.sqrt(square)
        return Linearization(scaled, forward, adjoint, noise_var / square, noise)

    def _squares(self, x: Array) -> Array:
        return jnp.square(jnp.abs(self.residual(x).reshape(x.shape[0], -1))).sum(-1)


class _OfFunction(Observation):
    """A measurement that depends on f(x), for a differentiable function f of one event."""

    function: Callable[[Array], Array]

    def predict(self, x: Array) -> Array:
        return jax.vmap(self.function)(x)

    def linearize(self, x: Array, variance: Array) -> Linearization:
        del variance
        predicted, forward = jax.linearize(self.predict, x)
        transpose = jax.linear_transpose(forward, x)
        return Linearization(
            self.y - predicted,
            forward,
            lambda v: transpose(v)[0],
            self._noise_var(predicted),
            lambda keys: standard_normal(keys, self.y.shape),
        )

    def _noise_var(self, predicted: Array) -> Array | float:
        raise NotImplementedError


@struct.dataclass(eq=False)
class GaussianMeasurement(_OfFunction):
    """y = f(x) + noise_std n with standard normal n."""

    function: Callable[[Array], Array] = static()
    y: Any = None
    noise_std: float = static(default=1.0)

    def simulate(self, x: Array, keys: Array) -> Array:
        y = self.predict(x)
        return y + self.noise_std * standard_normal(keys, y.shape)

    def misfit(self, x: Array) -> Array:
        """Return |y - f(x)| (B,)."""
        return jnp.sqrt(_square_sums(self.y - self.predict(x)) + 1e-12)

    def log_prob(self, x: Array) -> Array:
        """Return log p(y | x) (B,), up to a constant; noise_std must not be 0."""
        return -0.5 * _square_sums(self.y - self.predict(x)) / self.noise_std**2

    @property
    def log_constant(self) -> float:
        size = math.prod(self.y.shape[1:])
        return -size * (math.log(self.noise_std) + 0.5 * math.log(2 * math.pi))

    def _noise_var(self, predicted: Array) -> float:
        return self.noise_std**2


@struct.dataclass(eq=False)
class PoissonMeasurement(_OfFunction):
    """Counts y with independent Poisson distributions of rates f(x)."""

    function: Callable[[Array], Array] = static()
    y: Any = None

    def simulate(self, x: Array, keys: Array) -> Array:
        rates = jnp.maximum(self.predict(x), 0)
        return jax.vmap(jax.random.poisson)(keys, rates).astype(jnp.float32)

    def misfit(self, x: Array) -> Array:
        """Return |(y - f(x)) / sqrt(max(y, 1))| (B,) (Chung et al. 2023, Section 3.3)."""
        difference = self.y - self.predict(x)
        return jnp.sqrt(_square_sums(difference / jnp.sqrt(jnp.maximum(self.y, 1))) + 1e-12)

    def log_prob(self, x: Array) -> Array:
        """Return log p(y | x) (B,), up to a constant."""
        rates = self._rates(self.predict(x))
        logps = self.y * jnp.log(rates) - rates
        return logps.reshape(len(logps), -1).sum(-1)

    @property
    def log_constant(self) -> Array:
        return -jax.scipy.special.gammaln(self.y + 1).reshape(len(self.y), -1).sum(-1)

    def _rates(self, predicted: Array) -> Array:
        return jnp.maximum(predicted, SMALLEST_RATE)

    _noise_var = _rates  # The variance of a count is its rate.


@struct.dataclass(eq=False)
class LogLikelihood(Evidence):
    """A function (x, y) -> log p(y | x) of one event, up to a constant; differentiable in x."""

    function: Callable[[Array, Array], Array] = static()
    y: Any = None
    can_simulate = False

    def log_prob(self, x: Array) -> Array:
        """Return log p(y | x) (B,), up to a constant."""
        return jax.vmap(self.function)(x, self.y)


def _square_sums(values: Array) -> Array:
    return jnp.square(values.reshape(values.shape[0], -1)).sum(-1)
