"""Solutions of inverse problems y = A x + noise with an unconditional score.

- A guided score approximates grad log p_t(x | y) and works with every sampler and solver: `pigdm`,
  `moment_matching`.
- A constraint `(keys, x, x_mean, step) -> (x, x_mean)` changes the result of each update in the
  predictor-corrector loop: `projection`.
- A predictor replaces the one in the predictor-corrector loop: `dps`, `ddrm`.

With x_t = alpha x_0 + std z and the score s, the mean of x_0 given x_t is
D = (x_t + std^2 s) / alpha (Tweedie's formula) and its covariance is (std^2 / alpha) dD/dx_t. For
Gaussian data, `moment_matching` is exact with enough iterations, and `pigdm` is exact if the data
have covariance prior_std^2 I. The other methods are biased.

Samplers end with the mean of x_0 given the last state. Where y is about as precise as that state,
what is left of x_0 is a part of its posterior, so `matched_draw` and `pigdm_draw` add it.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from controllable.daps import draw_event
from controllable.measurements import Linearization, Measurement, Observation
from sde_lib import SDE, Score, Step, expand
from solvers.loop import fold_in, standard_normal, wrapped
from solvers.predictor_corrector import Constraint, Update


def denoiser(score: Score, sde: SDE, t: Array) -> Callable[[Array], tuple[Array, Array]]:
    """Return a function of x_t (B, ...) that gives E[x_0 | x_t] and the score; t (B,)."""

    def denoise(x: Array) -> tuple[Array, Array]:
        s = score(x, t)
        return sde.posterior_mean(s, x, t), s

    return denoise


# --- guided scores ------------------------------------------------------------------------------


def pigdm(score: Score, sde: SDE, measurement: Measurement, *, prior_std: float = 1.0) -> Score:
    """Pseudo-inverse guidance (Song et al. 2023, "Pseudoinverse-guided diffusion models", Eq. (7)).

    It approximates the distribution of x_0 given x_t by N(D, r^2 I) with
    1 / r^2 = alpha^2 / std^2 + 1 / prior_std^2, which is exact for Gaussian data of covariance
    prior_std^2 I. A call evaluates the score and its gradient once.
    """
    operator, noise_var = measurement.operator, measurement.noise_std**2

    def guided(score: Score, measurement: Measurement, x: Array, t: Array) -> Array:
        d, pull_back, s = jax.vjp(denoiser(score, sde, t), x, has_aux=True)
        residual = measurement.residual(d)
        values = operator.singular_values
        r2 = expand(_denoised_variance(sde, t, prior_std), residual)
        gain = values / jnp.where(operator.measured, r2 * values**2 + noise_var, 1)
        return s + pull_back(operator.from_basis(residual * gain))[0]

    return wrapped(guided, score, measurement)


def moment_matching(
    score: Score, sde: SDE, measurement: Observation, *, iterations: int = 0
) -> Score:
    """Guidance with the Gaussian that has the mean and covariance of x_0 given x_t.

    The method is that of Boys et al. 2023 (arXiv:2310.06721), with conjugate gradients as in Rozet
    et al. 2024 (arXiv:2405.13712, Algorithm 3). A call evaluates the score once and its gradient
    iterations + 1 times. For Gaussian data it is exact with as many iterations as y has entries,
    and with 0, which iterates to TOLERANCE, at most MOST_ITERATIONS times. A function that is not
    linear is linearized at D. With an operator, the system that is solved is as well conditioned as
    the covariance of x_0 given x_t (`Measurement.linearize`); with a function, its condition number
    is that of y, so that an ill-conditioned matrix should be given as `operators.dense`. The
    Jacobian of a network is not quite symmetric and positive, so an image stops where the
    covariance of y is not symmetric to ASYMMETRY, or below that of its noise.
    """

    def guided(score: Score, measurement: Observation, x: Array, t: Array) -> Array:
        d, pull_back, s = jax.vjp(denoiser(score, sde, t), x, has_aux=True)
        scale = expand(sde.var(t) / sde.alpha(t), x)
        near = measurement.linearize(d, _denoised_variance(sde, t))

        def cov_x(v: Array) -> Array:
            return scale * pull_back(v)[0]

        def cov_y(v: Array) -> Array:
            return near.forward(cov_x(near.adjoint(v))) + near.noise_var * v

        v = solve(cov_y, near.residual, iterations, near)
        return s + pull_back(near.adjoint(v))[0]

    return wrapped(guided, score, measurement)


def matched_draw(
    keys: Array, score: Score, sde: SDE, measurement: Observation, x: Array, *, iterations: int
) -> tuple[Array, int]:
    """Add to the mean x of x_0 given a state at t_end and y a draw of N(0, its covariance).

    A draw without y, of covariance level^2 J with J = dD/du for u = x_t / alpha, is corrected by a
    draw of y (Matheron's rule). It evaluates the score once, as it returns, and its gradient
    iterations + ROOT times.
    """
    t = jnp.full(len(x), sde.t_end)
    alpha, var = sde.alpha(t[0]), (sde.noise_to_signal(t[0])) ** 2
    d, pull_back, _ = jax.vjp(denoiser(score, sde, t), alpha * x, has_aux=True)
    near = measurement.linearize(d, jnp.full(len(x), var))

    def shrink(v: Array) -> Array:
        return alpha * pull_back(v)[0]

    def cov_y(v: Array) -> Array:
        return near.forward(var * shrink(near.adjoint(v))) + near.noise_var * v

    draw = jnp.sqrt(var) * root(shrink, standard_normal(fold_in(keys, 0), x.shape))
    predicted = near.forward(draw) + jnp.sqrt(near.noise_var) * near.noise(fold_in(keys, 1))
    return x + draw - var * shrink(near.adjoint(solve(cov_y, predicted, iterations, near))), 1


def pigdm_draw(
    keys: Array, score: Score, sde: SDE, measurement: Measurement, x: Array, *, prior_std: float
) -> tuple[Array, int]:
    """Add the same for the covariance r^2 I that `pigdm` assumes."""
    del score
    r = jnp.sqrt(_denoised_variance(sde, jnp.float32(sde.t_end), prior_std))
    centered = measurement.given(jnp.zeros_like(measurement.y))
    return x + draw_event(keys, centered, jnp.zeros_like(x), r, 0), 0


def _denoised_variance(sde: SDE, t: Array, prior_std: float = 1.0) -> Array:
    """The variance of x_0 given x_t, for Gaussian data of covariance prior_std^2 I."""
    return 1 / (sde.noise_to_signal(t) ** -2 + prior_std**-2)


TOLERANCE, MOST_ITERATIONS, ASYMMETRY = 0.01, 50, 0.2  # relative; a number; relative
ROOT = 8  # gradients that `root` evaluates


def solve(apply: Callable[[Array], Array], b: Array, iterations: int, near: Linearization) -> Array:
    """Return `conjugate_gradients` with so many iterations, or with 0 until TOLERANCE."""
    limits = (iterations, 1e-5) if iterations else (MOST_ITERATIONS, TOLERANCE)
    return conjugate_gradients(apply, b, *limits, least=near.noise_var)


def _dot(u: Array, v: Array) -> Array:
    """Return the real inner products (B,) of u and v (B, ...)."""
    return (u.conj() * v).real.reshape(len(u), -1).sum(-1)


def root(apply: Callable[[Array], Array], z: Array) -> Array:
    """Return sqrt(J) z (B, ...) for the matrix J = `apply`, in a Krylov space of ROOT vectors.

    J is replaced by its symmetric part without negative eigenvalues. Denoisers of networks have
    some, where a series of the root diverges.
    """
    length = jnp.sqrt(_dot(z, z))
    basis, images = [z / expand(length, z)], []
    for _ in range(ROOT):
        images.append(apply(basis[-1]))
        new = images[-1]
        for _ in range(2):  # Once leaves errors of rounding.
            for each in basis:
                new = new - expand(_dot(each, new), new) * each
        size = jnp.sqrt(_dot(new, new))
        basis.append(new / expand(jnp.where(size > 1e-5, size, jnp.inf), new))
    matrix = jnp.stack([jnp.stack([_dot(u, v) for v in images], -1) for u in basis[:-1]], -2)
    values, vectors = jnp.linalg.eigh((matrix + matrix.swapaxes(1, 2)) / 2)
    weights = jnp.einsum("bij,bj,bj->bi", vectors, jnp.sqrt(values.clip(0)), vectors[:, 0])
    return jnp.einsum("bi,ib...->b...", length[:, None] * weights, jnp.stack(basis[:-1]))


def conjugate_gradients(
    apply: Callable[[Array], Array],
    b: Array,
    iterations: int,
    tolerance: float = 1e-5,
    least: Array | float = 0.0,
) -> Array:
    """Solve apply(v) = b for each entry of a batch b (B, ...); v (B, ...), real or complex.

    An entry stops at its first direction of curvature 0 or below, or below that of the diagonal
    matrix `least`, or that is not conjugate to the one before, to ASYMMETRY. Directions of a
    symmetric matrix are. It also stops where the residual is below `tolerance` times b.
    """

    def ratio(numerator: Array, denominator: Array, active: Array) -> Array:
        quotient = numerator / jnp.where(active, denominator, 1)
        return expand(jnp.where(active, quotient, 0), b)

    def unfinished(carry: tuple) -> Array:
        return (carry[0] < iterations) & carry[-1].any()

    def iteration(carry: tuple) -> tuple:
        count, v, residual, direction, square, active = carry
        image = apply(direction)
        curvature = _dot(direction, image)
        active &= curvature > 0.999 * _dot(direction, least * direction)  # to rounding
        active &= jnp.abs(_dot(residual, image) - curvature) <= ASYMMETRY * curvature
        step = ratio(square, curvature, active)
        v = v + step * direction
        residual = residual - step * image
        next_square = _dot(residual, residual)
        direction = residual + ratio(next_square, square, active) * direction
        active &= next_square > goal
        return count + 1, v, residual, direction, next_square, active

    # Squares of squares, which derivatives of quotients contain, are 0 in float32 for small b.
    largest = jnp.abs(jax.lax.stop_gradient(b)).reshape(len(b), -1).max(-1)
    unit = expand(jnp.exp2(jnp.floor(jnp.log2(jnp.where(largest > 0, largest, 1)))), b)
    b = b / unit
    square = _dot(b, b)
    goal = tolerance**2 * square
    start = (0, jnp.zeros_like(b), b, b, square, square > 0)
    return unit * jax.lax.while_loop(unfinished, iteration, start)[1]


def clip_denoised(score: Score, sde: SDE, low: float, high: float) -> Score:
    """Return the score with its posterior mean of x_0 clipped to the range of the data.

    Clipping keeps guidance stable at high noise, where gradients of networks are inaccurate.
    """

    def clipped(score: Score, _: None, x: Array, t: Array) -> Array:
        alpha, var = expand(sde.alpha(t), x), expand(sde.var(t), x)
        mean = jnp.clip(sde.posterior_mean(score(x, t), x, t), low, high)
        return (alpha * mean - x) / var

    return wrapped(clipped, score)


# --- constraints --------------------------------------------------------------------------------


def projection(sde: SDE, measurement: Measurement, *, official: bool = False) -> Constraint:
    """Replace the measured coefficients by the measurement, noised to time t.

    This is the inpainting and colorization of arXiv:2011.13456 (Appendices I.2, I.3), where y(t) of
    Eq. (50) is the noised measurement. A coefficient whose measurement is noisy receives only the
    noise that is missing at time t. Once the measurement has more noise than x_t, the coefficient
    is left unchanged. With `official`, the unmeasured part of the last mean contains the noise of
    the last step, as in the official code.
    """
    operator = measurement.operator
    solution = operator.solution(measurement.y)

    def project(keys: Array, x: Array, mean: Array, step: Step) -> tuple[Array, Array]:
        alpha, var = sde.alpha(step.t), sde.var(step.t)
        missing_var = var - (alpha * measurement.solution_std) ** 2

        def replace(image: Array, coefficients: Array) -> Array:
            c = jnp.where(missing_var >= 0, coefficients, operator.to_basis(image))
            return operator.from_basis(c)

        noise = operator.to_basis(standard_normal(keys, x.shape))
        noised = alpha * solution + jnp.sqrt(jnp.maximum(missing_var, 0)) * noise
        return replace(x, noised), replace(x if official else mean, alpha * solution)

    return project


def projection_start(measurement: Measurement, x: Array, *, official: bool = False) -> Array:
    """Return the initial state of `projection`: samples x of the prior that satisfy A x = y.

    With `official`, the prior is set to 0 where `measured` is True, as if its coefficients were
    pixels, and the measurement is added. The official colorization does this.
    """
    if official:
        unmeasured = jnp.where(measurement.operator.measured, 0, x)
        return measurement.enforce(jnp.zeros_like(x)) + unmeasured
    return measurement.enforce(x)


# --- predictors ---------------------------------------------------------------------------------


def dps(predictor: Update, measurement: Observation, *, scale: float = 1.0) -> Update:
    """Diffusion posterior sampling (Chung et al. 2023, arXiv:2209.14687, Algorithm 1).

    After each step of `predictor`, it subtracts `scale` times the gradient of |y - A D|. The
    published step is for the VP SDE. For other SDEs it is taken in x_t / sqrt(alpha^2 + std^2),
    which is the x_t of the VP SDE.
    """

    def predict(keys: Array, score: Score, sde: SDE, x: Array, step: Step) -> tuple[Array, Array]:
        t = jnp.broadcast_to(step.t, x.shape[:1])
        denoise = denoiser(score, sde, t)

        def misfit(x: Array) -> tuple[Array, Array]:
            d, s = denoise(x)
            return measurement.misfit(d).sum(), s

        (_, s), gradient = jax.value_and_grad(misfit, has_aux=True)(x)
        shift = scale * expand(sde.alpha(t) ** 2 + sde.var(t), x) * gradient
        x, mean = predictor(keys, lambda *_: s, sde, x, step)
        return x - shift, mean - shift

    return predict


def ddrm(measurement: Measurement, *, eta: float = 0.85, eta_b: float = 1.0) -> Update:
    """Denoising diffusion restoration (Kawar et al. 2022, arXiv:2201.11793, Eqs. (7), (8)).

    The update is in coefficients of x_t / alpha, whose noise level is std / alpha, for any SDE.
    Coefficients that y measures more precisely than x_t get the mean (1 - eta_b) D + eta_b y; the
    others get the mean D plus a share of the present noise. `eta` is the share of new noise.
    """
    operator, solution_std = measurement.operator, measurement.solution_std
    solution = operator.solution(measurement.y)
    measured = operator.measured

    def predict(keys: Array, score: Score, sde: SDE, x: Array, step: Step) -> tuple[Array, Array]:
        t = jnp.broadcast_to(step.t, x.shape[:1])
        alpha, level = sde.alpha(step.t), sde.noise_to_signal(step.t)
        next_alpha, next_std = sde.marginal_after(step)
        next_level = next_std / next_alpha
        d = operator.to_basis(sde.posterior_mean(score(x, t), x, t))

        old_noise = next_level * jnp.sqrt(1 - eta**2)
        unmeasured_mean = d + old_noise / level * (operator.to_basis(x / alpha) - d)
        noisy_mean = d + old_noise * (solution - d) / jnp.where(solution_std > 0, solution_std, 1)
        precise_mean = (1 - eta_b) * d + eta_b * solution
        measured_mean = jnp.where(next_level < solution_std, noisy_mean, precise_mean)
        mean = jnp.where(measured, measured_mean, unmeasured_mean)

        measurement_var = jnp.where(measured, solution_std * eta_b, 0) ** 2
        precise_std = jnp.sqrt(jnp.maximum(next_level**2 - measurement_var, 0))
        precise = measured & (next_level >= solution_std)
        std = jnp.where(precise, precise_std, eta * next_level)
        noise = operator.from_basis(std * operator.to_basis(standard_normal(keys, x.shape)))
        mean = operator.from_basis(mean)
        return next_alpha * (mean + noise), next_alpha * mean

    return predict
