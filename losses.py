"""Denoising score matching (Eq. (7) of arXiv:2011.13456): one loss, of which those of SMLD and DDPM are special cases.

With x_t = alpha x_0 + std z, the loss of a score s is the mean over t of lambda(t) |s(x_t, t) + z / std|^2. The weight
lambda = std^2 gives SMLD and DDPM (Eqs. (1), (3)); lambda = g^2 bounds the likelihood (Song et al. 2021b). Training
in discrete time draws t from the levels i / (num_scales - 1), and takes alpha and std from the chain of these levels.

Importance sampling draws t with a density proportional to g^2 / std^2, the ratio of the two weights (Song et al. 2021b,
arXiv:2101.09258, Section 4.1): lambda = g^2 then has the same mean as with uniform t, and a lower variance. For every
SDE here g^2 / std^2 = 2 d/dt log(std / alpha), so that log(std / alpha) is uniform.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from sde_lib import SDE, Score, expand

Params = Any
"""A pytree of parameters."""


def draw(
    key: Array,
    sde: SDE,
    x: Array,
    num_scales: int | None = None,
    *,
    importance_weighting: bool = False,
) -> tuple[Array, Array]:
    """Random times t (B,) and noise z (B, ...) for a batch x (B, ...).

    The times are discrete if num_scales is given; else uniform, or as importance sampling has them.
    """
    key_t, key_z = jax.random.split(key)
    shape = (x.shape[0],)
    if importance_weighting:
        first, last = _log_noise_to_signal(sde)
        t = sde.time_at(jnp.exp(jax.random.uniform(key_t, shape, minval=first, maxval=last)))
    elif num_scales is None:
        t = jax.random.uniform(key_t, shape, minval=sde.t_min, maxval=sde.T)
    else:
        t = jax.random.randint(key_t, shape, 0, num_scales) * (sde.T / (num_scales - 1))
    return t, jax.random.normal(key_z, x.shape)


def denoising_score_matching(
    score: Score,
    sde: SDE,
    x: Array,
    t: Array,
    z: Array,
    *,
    num_scales: int | None = None,
    likelihood_weighting: bool = False,
    importance_weighting: bool = False,
    reduce_mean: bool = True,
) -> Array:
    """Loss of every image: data x and noise z of shape (B, ...), times t (B,) -> (B,).

    Args:
      num_scales: the number of noise levels of discrete-time training; None in continuous time.
      likelihood_weighting: weigh by g(t)^2 in place of std(t)^2.
      importance_weighting: the same for times of importance sampling, whose density the weight is divided by.
      reduce_mean: mean over the entries of an image; else half their sum, the official reading of the 1/2 in Eq. (7).
    """
    alpha, std = (expand(c, x) for c in sde.marginal(t, num_scales))
    residual = score(alpha * x + std * z, t) * std + z
    if importance_weighting:
        first, last = _log_noise_to_signal(sde)
        residual = residual * jnp.sqrt(2 * (last - first) / (sde.T - sde.t_min))
    elif likelihood_weighting:
        residual = residual * expand(sde.diffusion(t), x) / std
    squares = jnp.square(residual).reshape(x.shape[0], -1)
    return squares.mean(-1) if reduce_mean else 0.5 * squares.sum(-1)


def _log_noise_to_signal(sde: SDE) -> Array:
    """log(std / alpha) at t_min and T, (2,)."""
    return jnp.log(sde.noise_to_signal(jnp.array([sde.t_min, sde.T], jnp.float32)))


def by_noise_level(losses: Array, t: Array, sde: SDE, levels: int = 10) -> tuple[Array, Array]:
    """Sums of the losses (B,) over `levels` equal parts of [0, T], and how many fell into each; both (levels,)."""
    part = jnp.clip((t / sde.T * levels).astype(jnp.int32), 0, levels - 1)
    member = jax.nn.one_hot(part, levels)
    return losses @ member, member.sum(0)


# --- gradients ------------------------------------------------------------------------------------


class Part(NamedTuple):
    """A batch, or a part of one.

    Attributes:
      key: for dropout.
      x, t, z: images (B, ...), times (B,) and noise (B, ...) of the loss.
      classes: classes (B,) that a conditional network is given, or None.
    """

    key: Array
    x: Array
    t: Array
    z: Array
    classes: Array | None


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
