"""A conditional flow for variational dequantization (Ho et al. 2019, arXiv:1902.00275)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from models import layers

NUM_COUPLINGS = 4
FEATURES = 32
BLOCKS_PER_COUPLING = 2


class Coupling(nnx.Module):
    """Affine coupling on a checkerboard.

    A network of the image and one half of the pixels computes shift and scale of the other half.
    `odd` selects the half that changes.
    """

    def __init__(self, num_channels: int, odd: bool, *, rngs: layers.Rngs) -> None:
        self.odd = odd
        self.conv_in = layers.conv3x3(2 * num_channels, FEATURES, rngs=rngs)
        self.blocks = nnx.List()
        for _ in range(BLOCKS_PER_COUPLING):
            first = layers.conv3x3(FEATURES, FEATURES, rngs=rngs)
            second = layers.conv3x3(FEATURES, FEATURES, rngs=rngs)
            self.blocks.append(nnx.List([first, second]))
        self.conv_out = layers.conv3x3(FEATURES, 2 * num_channels, init_scale=0.0, rngs=rngs)

    def __call__(self, z: Array, image: Array) -> tuple[Array, Array]:
        """Transform z, given the image, both (B, H, W, C).

        Returns the new z and the log-determinant of the transformation (B,).
        """
        rows, columns = jnp.indices(z.shape[1:3])
        changes = ((rows + columns + self.odd) % 2)[None, :, :, None]
        h = self.conv_in(jnp.concatenate([(1 - changes) * jnp.tanh(z / 4), image], -1))
        for first, second in self.blocks:
            h = h + second(layers.swish(first(layers.swish(h))))
        shift, scale = jnp.split(self.conv_out(layers.swish(h)), 2, -1)
        log_scale = changes * jnp.tanh(scale)
        return z * jnp.exp(log_scale) + changes * shift, log_scale.sum((1, 2, 3))


class Dequantizer(nnx.Module):
    """q(v | u), the distribution of noise v in (0, 1) that maps grey levels u to u + v.

    `levels` is the number of grey levels. Couplings act on the logits of uniform noise, which have
    a logistic distribution; the sigmoid maps the result back to (0, 1). Before training, q is
    nearly uniform.
    """

    def __init__(self, num_channels: int, levels: int, *, rngs: layers.Rngs) -> None:
        self.levels = levels
        self.couplings = nnx.List()
        for i in range(NUM_COUPLINGS):
            self.couplings.append(Coupling(num_channels, i % 2 == 1, rngs=rngs))

    def __call__(self, u: Array, noise: Array) -> tuple[Array, Array]:
        """Map grey levels u and uniform noise in [0, 1), both (B, H, W, C), to v.

        Returns v and log q(v | u) in nats (B,).
        """
        image = 2 * u.astype(jnp.float32) / (self.levels - 1) - 1
        noise = jnp.clip(noise, 1e-6, 1 - 1e-6)
        z = jnp.log(noise) - jnp.log1p(-noise)
        # z has a logistic distribution, whose density is the derivative of the sigmoid.
        log_q = log_sigmoid_derivative(z).sum((1, 2, 3))
        for coupling in self.couplings:
            z, log_det = coupling(z, image)
            log_q = log_q - log_det
        return jax.nn.sigmoid(z), log_q - log_sigmoid_derivative(z).sum((1, 2, 3))


def log_sigmoid_derivative(z: Array) -> Array:
    """Return log(d sigmoid(z) / dz) per entry, of any shape."""
    return jax.nn.log_sigmoid(z) + jax.nn.log_sigmoid(-z)
