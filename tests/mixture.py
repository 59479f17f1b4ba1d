"""A mixture of Gaussians over images, with its exact density and score at every noise level."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sde_lib import SDE, Score, expand


class Mixture(NamedTuple):
    """K components N(means[k], stds[k]^2 I) with equal weights: means (K, ...), stds (K,)."""

    means: Array
    stds: Array

    def sample(self, key: Array, count: int) -> Array:
        """Draw data (count, ...)."""
        component_key, noise_key = jax.random.split(key)
        k = jax.random.randint(component_key, (count,), 0, len(self.stds))
        z = jax.random.normal(noise_key, (count, *self.means.shape[1:]))
        return self.means[k] + expand(self.stds[k], z) * z

    def logp(self, sde: SDE, x: Array, t: Array | float) -> Array:
        """log p_t(x) in nats (B,), for x (B, ...) and t () or (B,)."""
        times = jnp.broadcast_to(jnp.float32(t), x.shape[:1])
        return jax.vmap(functools.partial(self._logp, sde))(x, times)

    def score(self, sde: SDE) -> Score:
        """The gradient of `logp` by x; a pytree, whose programs are shared by all mixtures."""
        return jax.tree_util.Partial(_gradient(sde), self)

    def _logp(self, sde: SDE, x: Array, t: Array) -> Array:
        """log p_t(x) of one image."""
        var = sde.alpha(t) ** 2 * self.stds**2 + sde.var(t)
        squares = jnp.square(x - sde.alpha(t) * self.means).reshape(len(self.stds), -1).sum(-1)
        logps = -0.5 * (squares / var + x.size * jnp.log(2 * jnp.pi * var))
        return jax.nn.logsumexp(logps) - jnp.log(len(self.stds))


@functools.cache
def _gradient(sde: SDE) -> Callable[[Mixture, Array, Array], Array]:
    """A function of a mixture, x and t; the same one for equal SDEs."""
    of_one = jax.grad(lambda law, x, t: law._logp(sde, x, t), 1)
    return lambda law, x, t: jax.vmap(functools.partial(of_one, law))(x, t)


def make(count: int, shape: tuple[int, ...]) -> Mixture:
    """`count` components with random means in [-0.8, 0.8] and standard deviations 0.1 to 0.3."""
    means = np.random.default_rng(0).uniform(-0.8, 0.8, (count, *shape))
    return Mixture(jnp.asarray(means, jnp.float32), jnp.linspace(0.1, 0.3, count))
