"""A mixture of Gaussians in image shape, whose density and score are known at every noise level."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sde_lib import SDE, Score


class Mixture(NamedTuple):
    """Equally likely N(means[k], stds[k]^2 I): means (K, ...), stds (K,)."""

    means: Array
    stds: Array

    def sample(self, key: Array, count: int) -> Array:
        """Data (count, ...)."""
        which, noise = jax.random.split(key)
        k = jax.random.randint(which, (count,), 0, len(self.stds))
        z = jax.random.normal(noise, (count, *self.means.shape[1:]))
        return self.means[k] + self.stds[k].reshape(-1, *[1] * (z.ndim - 1)) * z

    def logp(self, sde: SDE, x: Array, t: Array | float) -> Array:
        """Log-density of the data noised to t, in nats; x (B, ...), t () or (B,) -> (B,)."""
        return jax.vmap(lambda x, t: self._logp(sde, x, t))(
            x, jnp.broadcast_to(jnp.float32(t), x.shape[:1])
        )

    def score(self, sde: SDE) -> Score:
        """The gradient of `logp`."""
        return lambda x, t: jax.vmap(jax.grad(lambda x, t: self._logp(sde, x, t)))(x, t)

    def _logp(self, sde: SDE, x: Array, t: Array) -> Array:
        var = sde.alpha(t) ** 2 * self.stds**2 + sde.var(t)
        squares = jnp.square(x - sde.alpha(t) * self.means).reshape(len(self.stds), -1).sum(-1)
        logps = -0.5 * (squares / var + x.size * jnp.log(2 * jnp.pi * var))
        return jax.nn.logsumexp(logps) - jnp.log(len(self.stds))


def make(count: int, shape: tuple[int, ...]) -> Mixture:
    """`count` Gaussians at random in [-0.8, 0.8], with standard deviations from 0.1 to 0.3."""
    means = np.random.default_rng(0).uniform(-0.8, 0.8, (count, *shape))
    return Mixture(jnp.asarray(means, jnp.float32), jnp.linspace(0.1, 0.3, count))
