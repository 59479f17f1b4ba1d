"""Denoising score matching (Eq. (7) of arXiv:2011.13456), which covers the losses of SMLD and DDPM.

For x_t = alpha x_0 + std z, the loss of a score s is the mean over t of
lambda(t) |s(x_t, t) + z / std|^2. The weight lambda = std^2 gives SMLD and DDPM (Eqs. (1), (3));
lambda = g^2 gives a bound of the likelihood (Song et al. 2021b, arXiv:2101.09258).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from sde_lib import SDE, Score, expand

Params = Any
"""A pytree of parameters."""
Times = Callable[[SDE, Array], Array]
"""(sde, u) -> times t (B,), whose distribution follows from u (B,), uniform on [0, 1)."""
Weight = Callable[[Array], Array | None]
"""t (B,) -> the weight (B,) of a loss at these times, relative to the default weight std(t)^2; None
for 1."""


class Objective(NamedTuple):
    """What a network is trained for: the distribution of times, and the weights at them."""

    times: Times
    weight: Weight


# --- times ----------------------------------------------------------------------------------------


def draw(
    key: Array,
    sde: SDE,
    x: Float[Array, "b ..."],
    times: Times | None = None,
    *,
    even: bool = False,
) -> tuple[Float[Array, " b"], Float[Array, "b ..."]]:
    """Draw times t (B,) and noise z (B, ...) for a batch of data x (B, ...).

    Args:
      key: a random key.
      sde: the SDE.
      x: the data; only the shape is used.
      times: the distribution of t; `uniform_times` by default.
      even: spread the times evenly, which lowers the variance of their mean loss. Each time has the
        same distribution as without it, but they depend on each other; see `mean_stderr`.
    """
    key_t, key_z = jax.random.split(key)
    count = x.shape[0]
    u = _even(key_t, count) if even else jax.random.uniform(key_t, (count,))
    t = (times or uniform_times)(sde, u)
    return t, jax.random.normal(key_z, x.shape)


def uniform_times(sde: SDE, u: Float[Array, " b"]) -> Float[Array, " b"]:
    """Return times that are uniform between t_min and T."""
    return u * (sde.T - sde.t_min) + sde.t_min


def level_times(sde: SDE, u: Float[Array, " b"], *, num_scales: int) -> Float[Array, " b"]:
    """Return times of discrete levels: i T / (num_scales - 1) for i = 0 .. num_scales - 1."""
    index = jnp.minimum(u * num_scales, num_scales - 1).astype(jnp.int32)
    return index * (sde.T / (num_scales - 1))


def importance_times(sde: SDE, u: Float[Array, " b"]) -> Float[Array, " b"]:
    """Return times with a density proportional to g^2 / std^2, which is `likelihood_weight`.

    Then the likelihood-weighted loss has the same mean as with uniform times, and a lower variance
    (Song et al. 2021b, Section 4.1). Since g^2 / std^2 = 2 d/dt log(std / alpha), log(std / alpha)
    is uniform.
    """
    first, last = _log_noise_to_signal_range(sde)
    return sde.time_at(jnp.exp(u * (last - first) + first))


def log_normal_times(
    sde: SDE, u: Float[Array, " b"], *, mean: float, std: float
) -> Float[Array, " b"]:
    """Return times whose log(std / alpha) is normal, as in EDM (arXiv:2206.00364, Table 1).

    Times outside of t_min .. T become the nearer end.
    """
    levels = jnp.exp(mean + std * jax.scipy.special.ndtri(u))
    return jnp.maximum(sde.time_at(levels), sde.t_min)


def _even(key: Array, count: int) -> Array:
    """Return numbers (count,) in [0, 1), each uniform, of which any first few are evenly spaced.

    They are the multiples of the golden section, modulo 1, from a random start.
    """
    golden = (np.sqrt(5) - 1) / 2
    return (jax.random.uniform(key) + jnp.float32(np.arange(count) * golden % 1)) % 1


def _log_noise_to_signal_range(sde: SDE) -> Array:
    """log(std / alpha) at t_min and T; shape (2,)."""
    return jnp.log(sde.noise_to_signal(jnp.array([sde.t_min, sde.T], jnp.float32)))


# --- weights --------------------------------------------------------------------------------------


def likelihood_weight(sde: SDE, t: Float[Array, " b"]) -> Float[Array, " b"]:
    """Return the weight that makes the loss a bound of the likelihood: g^2 in place of std^2."""
    return (sde.diffusion(t) / sde.std(t)) ** 2


def importance_weight(sde: SDE, t: Float[Array, " b"]) -> Float[Array, " b"]:
    """Return `likelihood_weight` divided by the density of `importance_times`: a constant."""
    first, last = _log_noise_to_signal_range(sde)
    return jnp.broadcast_to(2 * (last - first) / (sde.T - sde.t_min), t.shape)


def edm_weight(sde: SDE, t: Float[Array, " b"], *, data_std: float) -> Float[Array, " b"]:
    """Return the weight of EDM's objective.

    With log-normal noise levels, the loss is then the mean of lambda(sigma) |D(y; sigma) - x_0|^2
    with sigma = std / alpha, y = x_t / alpha and lambda = (sigma^2 + data_std^2) /
    (sigma data_std)^2 (arXiv:2206.00364, Eq. (2) and Table 1).
    """
    return 1 + (sde.noise_to_signal(t) / data_std) ** 2


# --- the loss -------------------------------------------------------------------------------------


def denoising_score_matching(
    score: Score,
    sde: SDE,
    x: Float[Array, "b ..."],
    t: Float[Array, " b"],
    z: Float[Array, "b ..."],
    *,
    marginal: tuple[Float[Array, " b"], Float[Array, " b"]] | None = None,
    weight: Float[Array, " b"] | None = None,
    reduce_mean: bool = True,
) -> Float[Array, " b"]:
    """Return the loss of each image (B,).

    Args:
      score: the score function to evaluate at x_t.
      sde: the SDE that adds the noise.
      x, t, z: data (B, ...), times (B,) and noise (B, ...); see `draw`.
      marginal: alpha (B,) and std (B,) at times t, for training on a discrete chain; by default
        those of the SDE.
      weight: (B,), relative to the default weight std(t)^2; None for 1.
      reduce_mean: average over the entries of an image. If False, take half their sum, as the
        official code does.
    """
    alpha, std = (sde.alpha(t), sde.std(t)) if marginal is None else marginal
    alpha, std = expand(alpha, x), expand(std, x)
    residual = score(alpha * x + std * z, t) * std + z
    if weight is not None:
        residual = residual * expand(jnp.sqrt(weight), x)
    squares = jnp.square(residual).reshape(x.shape[0], -1)
    return squares.mean(-1) if reduce_mean else 0.5 * squares.sum(-1)


def mean_stderr(losses: np.ndarray, t: np.ndarray) -> float:
    """Return the standard error of the mean of losses (B,) at even times t (B,); NaN if B = 1.

    It is that of drawing other images and noise, which the differences between neighbors in time
    show: a smooth dependence of the loss on the time contributes no error if the times are even.
    The first and the last difference count twice, so that each loss is in two of them.
    """
    if len(losses) < 2:
        return float("nan")
    differences = np.diff(losses[np.argsort(t, kind="stable")])
    differences = np.concatenate([differences[:1], differences, differences[-1:]])
    return float(np.sqrt(np.square(differences).mean() / 2 / len(losses)))


def by_noise_level(
    losses: Float[Array | np.ndarray, " b"],
    t: Float[Array | np.ndarray, " b"],
    sde: SDE,
    levels: int = 10,
) -> tuple[Float[Array, " levels"], Float[Array, " levels"]]:
    """Sum losses (B,) by time t (B,), over `levels` equal parts of [0, T].

    Returns the sums and the numbers of images, both of shape (levels,). A loss that is not finite
    affects its own level only.
    """
    part = jnp.clip((t / sde.T * levels).astype(jnp.int32), 0, levels - 1)
    belongs = part[:, None] == jnp.arange(levels)
    return jnp.where(belongs, losses[:, None], 0).sum(0), belongs.sum(0).astype(losses.dtype)


# --- gradients ------------------------------------------------------------------------------------


class Part(NamedTuple):
    """A batch, or a part of one.

    Attributes:
      key: for dropout.
      x, t, z: images (B, ...), times (B,) and noise (B, ...) of the loss.
      condition: the `conditions.Condition` of a conditional network, or None.
    """

    key: Array
    x: Array
    t: Array
    z: Array
    condition: Any


def value_and_grad(
    loss: Callable[[Params, Part], tuple[Array, Array]],
    params: Params,
    batch: Part,
    num_parts: int,
    *,
    unroll: bool = False,
) -> tuple[tuple[Array, Array], Params]:
    """Return the loss of a batch, the loss of every image, and the gradient.

    The batch is processed in `num_parts` parts, one after the other, to save memory. The parts are
    interleaved, so that each one has images of every device. Their number changes rounding and
    dropout, and nothing else.

    Args:
      loss: (params, part) -> mean loss (), loss of every image (B / num_parts,).
      params: a pytree.
      batch: B images.
      num_parts: a divisor of B.
      unroll: write the parts out instead of a loop.
    """
    compute = jax.value_and_grad(loss, has_aux=True)
    if num_parts == 1:
        return compute(params, batch)
    key, *arrays = batch

    def split(a: Array) -> Array:
        return jnp.moveaxis(a.reshape(-1, num_parts, *a.shape[1:]), 1, 0)

    def add(total: tuple[Array, Params], part: Part) -> tuple[tuple[Array, Params], Array]:
        (value, per_image), grads = compute(params, part)
        total = jax.tree.map(lambda a, b: a + b / num_parts, total, (value, grads))
        return total, per_image

    zeros = jnp.float32(0.0), jax.tree.map(jnp.zeros_like, params)
    parts = Part(jax.random.split(key, num_parts), *jax.tree.map(split, arrays))
    (value, grads), per_image = jax.lax.scan(add, zeros, parts, unroll=unroll)
    return (value, jnp.moveaxis(per_image, 0, 1).reshape(-1)), grads
