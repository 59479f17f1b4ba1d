"""Answers to y = A x + noise from an unconditional score: each method is a guided score, a constraint or a predictor.

- A guided score approximates grad log p_t(x | y); every sampler and solver takes it. `pigdm`, `moment_matching`.
- A constraint `(keys, x, x_mean, step) -> (x, x_mean)` changes what a predictor-corrector step has made. `projection`.
- A predictor takes the place of another in the predictor-corrector loop. `dps`, `ddrm`.

With x_t = alpha x_0 + std z and the score s, the mean of x_0 given x_t is D = (x_t + std^2 s) / alpha (Tweedie), its
covariance (std^2 / alpha) dD/dx_t. Exact for Gaussian data is `moment_matching` (with enough iterations), for Gaussian
data of covariance prior_std^2 I `pigdm`; the others are not.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from controllable.operators import Operator
from sampling import Constraint, Update, standard_normal
from sde_lib import SDE, Score, Step, expand


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["y"], meta_fields=["operator", "noise_std"]
)
@dataclasses.dataclass(frozen=True, eq=False)
class Measurement:
    """y = A x + noise_std n for images x (B, H, W, C), each with a y of its own; n is standard normal.

    A pytree with the leaf y, and so are scores that it guides: samplers that take images apart take y apart with them.
    """

    operator: Operator
    y: Array
    noise_std: float = 0.0

    @property
    def error(self) -> np.ndarray:
        """The standard deviation of `solution`, where there is one; (...)."""
        values = self.operator.singular_values
        return np.divide(
            self.noise_std, values, where=values > 0, out=np.full(values.shape, np.inf, np.float32)
        )

    def residual(self, x: Array) -> Array:
        """U* (y - A x), 0 where nothing is measured; the coefficients (B, ...)."""
        operator = self.operator
        c = operator.from_measured(self.y) - operator.singular_values * operator.to_basis(x)
        return jnp.where(operator.measured, c, 0)

    def enforce(self, x: Array) -> Array:
        """The image nearest to x among those that y, taken to be free of noise, allows."""
        operator = self.operator
        return operator.from_basis(
            jnp.where(operator.measured, operator.solution(self.y), operator.to_basis(x))
        )


def denoiser(score: Score, sde: SDE, t: Array) -> Callable[[Array], tuple[Array, Array]]:
    """x_t (B, ...) -> the mean of x_0 given x_t, and the score at x_t; t (B,)."""

    def denoise(x: Array) -> tuple[Array, Array]:
        s = score(x, t)
        return sde.posterior_mean(s, x, t), s

    return denoise


# --- guided scores ----------------------------------------------------------------------------------------------------


def pigdm(score: Score, sde: SDE, measurement: Measurement, *, prior_std: float = 1.0) -> Score:
    """Pseudo-inverse guidance (Song et al. 2023, "Pseudoinverse-guided diffusion models", Eqs. (7), (8)).

    Takes x_0 given x_t for N(D, r^2 I), where 1 / r^2 = alpha^2 / std^2 + 1 / prior_std^2: what r is if the data have
    covariance prior_std^2 I. One evaluation of the score, and its gradient, a call.
    """
    operator, noise_var = measurement.operator, measurement.noise_std**2

    def guided(measurement: Measurement, x: Array, t: Array) -> Array:
        d, pull_back, s = jax.vjp(denoiser(score, sde, t), x, has_aux=True)
        residual, values = measurement.residual(d), operator.singular_values
        r2 = expand(1 / (sde.noise_to_signal(t) ** -2 + prior_std**-2), residual)
        gain = values / jnp.where(operator.measured, r2 * values**2 + noise_var, 1)
        return s + pull_back(operator.from_basis(gain * residual))[0]

    return jax.tree_util.Partial(guided, measurement)


def moment_matching(
    score: Score, sde: SDE, measurement: Measurement, *, iterations: int = 3
) -> Score:
    """Takes x_0 given x_t for a Gaussian with its true mean and covariance (std^2 / alpha) dD/dx.

    (Boys et al. 2023, arXiv:2310.06721; by conjugate gradients: Rozet et al. 2024, arXiv:2405.13712, Algorithm 3.)
    One evaluation of the score and iterations + 1 gradients a call. As many iterations as y has entries make it exact
    for Gaussian data; few do for images, whose networks have covariances that are not quite symmetric and positive: an
    image stops iterating where its own shows that.
    """
    operator, noise_var = measurement.operator, measurement.noise_std**2

    def guided(measurement: Measurement, x: Array, t: Array) -> Array:
        d, pull_back, s = jax.vjp(denoiser(score, sde, t), x, has_aux=True)
        scale = expand(sde.var(t) / sde.alpha(t), x)
        covariance = lambda v: (
            operator.forward(scale * pull_back(operator.adjoint(v))[0]) + noise_var * v
        )
        v = conjugate_gradients(
            covariance, operator.to_measured(measurement.residual(d)), iterations
        )
        return s + pull_back(operator.adjoint(v))[0]

    return jax.tree_util.Partial(guided, measurement)


def conjugate_gradients(apply: Callable[[Array], Array], b: Array, iterations: int) -> Array:
    """Solves apply(v) = b for each entry of a batch b (B, ...), as far as it meets no curvature of 0 or below."""
    dot = lambda u, v: (u * v).reshape(len(u), -1).sum(-1)

    def iteration(_: int, carry: tuple) -> tuple:
        v, residual, direction, square, going = carry
        image = apply(direction)
        curvature = dot(direction, image)
        going &= (curvature > 0) & (square > 1e-10 * dot(b, b))
        step = expand(jnp.where(going, square / jnp.where(going, curvature, 1), 0), v)
        v, residual = v + step * direction, residual - step * image
        after = dot(residual, residual)
        direction = (
            residual
            + expand(jnp.where(going, after / jnp.where(going, square, 1), 0), v) * direction
        )
        return v, residual, direction, after, going

    start = (jnp.zeros_like(b), b, b, dot(b, b), jnp.ones(len(b), bool))
    return jax.lax.fori_loop(0, iterations, iteration, start)[0]


def within(score: Score, sde: SDE, low: float, high: float) -> Score:
    """The score with its mean of x_0 clipped to the range of the data, in which the true one lies.

    It keeps guidance by a network from running away where the network's gradients are bad, at high noise.
    """

    def clipped(score: Score, x: Array, t: Array) -> Array:
        alpha, var = (expand(c, x) for c in (sde.alpha(t), sde.var(t)))
        return (alpha * jnp.clip(sde.posterior_mean(score(x, t), x, t), low, high) - x) / var

    return jax.tree_util.Partial(clipped, score)


# --- constraints ------------------------------------------------------------------------------------------------------


def projection(sde: SDE, measurement: Measurement, *, official: bool = False) -> Constraint:
    """Sets what is measured to the measurement, noised to time t: inpainting and colorization of the paper (App. I.2).

    A coefficient with noise of its own is noised up to what is asked at t; once it asks less than that, y says nothing.
    With `official`, the last mean has in its unmeasured part the noise of the last step, as in the official code.
    """
    operator, solution = measurement.operator, measurement.operator.solution(measurement.y)

    def project(keys: Array, x: Array, mean: Array, step: Step) -> tuple[Array, Array]:
        alpha, var = sde.alpha(step.t), sde.var(step.t)
        noise = operator.to_basis(standard_normal(keys, x.shape))
        left = var - (alpha * measurement.error) ** 2
        set_to = lambda c, image: operator.from_basis(
            jnp.where(left >= 0, c, operator.to_basis(image))
        )
        noised = alpha * solution + jnp.sqrt(jnp.maximum(left, 0)) * noise
        return set_to(noised, x), set_to(alpha * solution, x if official else mean)

    return project


def projection_start(measurement: Measurement, x: Array, *, official: bool = False) -> Array:
    """Samples of the prior (B, H, W, C) with what is measured in its place: where the paper's projection begins.

    With `official`, that is taken out of the prior as if coefficients were pixels, as the official colorization does.
    """
    if official:
        known = measurement.operator.measured
        return measurement.enforce(jnp.zeros_like(x)) + jnp.where(known, 0, x)
    return measurement.enforce(x)


# --- predictors -------------------------------------------------------------------------------------------------------


def dps(predictor: Update, measurement: Measurement, *, scale: float = 1.0) -> Update:
    """Diffusion posterior sampling (Chung et al. 2023, arXiv:2209.14687, Algorithm 1): steps down |y - A D| besides.

    The published step is for the VP SDE, and taken here in x_t / sqrt(alpha^2 + std^2), which for any SDE is VP's x_t.
    """

    def predict(keys: Array, score: Score, sde: SDE, x: Array, step: Step) -> tuple[Array, Array]:
        t = jnp.broadcast_to(step.t, x.shape[:1])
        denoise = denoiser(score, sde, t)

        def misfit(x: Array) -> tuple[Array, Array]:
            d, s = denoise(x)
            squares = jnp.abs(measurement.residual(d).reshape(x.shape[0], -1)) ** 2
            return jnp.sqrt(squares.sum(-1) + 1e-12).sum(), s

        (_, s), gradient = jax.value_and_grad(misfit, has_aux=True)(x)
        shift = scale * expand(sde.alpha(t) ** 2 + sde.var(t), x) * gradient
        x, mean = predictor(keys, lambda *_: s, sde, x, step)
        return x - shift, mean - shift

    return predict


def ddrm(measurement: Measurement, *, eta: float = 0.85, eta_b: float = 1.0) -> Update:
    """Denoising diffusion restoration (Kawar et al. 2022, arXiv:2201.11793, Eqs. (7), (8)), for any SDE.

    In coefficients of x_t / alpha, whose noise has standard deviation std / alpha. Takes D for the data, and where y is
    more exact than x_t, D and y for them in the proportion eta_b; `eta` is the share of noise that is drawn anew.
    """
    operator, error = measurement.operator, measurement.error
    solution = operator.solution(measurement.y)

    def predict(keys: Array, score: Score, sde: SDE, x: Array, step: Step) -> tuple[Array, Array]:
        t = jnp.broadcast_to(step.t, x.shape[:1])
        alpha, var = sde.alpha(step.t), sde.var(step.t)
        alpha_next = alpha / step.ratio
        level = jnp.sqrt(var) / alpha
        after = jnp.sqrt(jnp.maximum(var - step.var, 0.0)) / step.ratio / alpha_next
        d = operator.to_basis(sde.posterior_mean(score(x, t), x, t))
        kept = after * jnp.sqrt(1 - eta**2)
        unmeasured = d + kept / level * (operator.to_basis(x / alpha) - d)
        vague = d + kept * (solution - d) / jnp.where(error > 0, error, 1)
        exact = (1 - eta_b) * d + eta_b * solution
        mean = jnp.where(operator.measured, jnp.where(after < error, vague, exact), unmeasured)
        exact_std = jnp.sqrt(
            jnp.maximum(after**2 - jnp.where(operator.measured, error * eta_b, 0) ** 2, 0)
        )
        std = jnp.where(operator.measured & (after >= error), exact_std, eta * after)
        noise = operator.from_basis(std * operator.to_basis(standard_normal(keys, x.shape)))
        mean = operator.from_basis(mean)
        return alpha_next * (mean + noise), alpha_next * mean

    return predict
