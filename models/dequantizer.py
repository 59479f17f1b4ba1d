"""A conditional flow that dequantizes images (variational dequantization, Ho et al. 2019, arXiv:1902.00275)."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from models import layers

LAYERS, FEATURES, BLOCKS = 4, 32, 2


class Coupling(nnx.Module):
    """Shifts and scales one half of a chequerboard, as a network says that sees the other half and the image."""

    def __init__(self, num_channels: int, odd: bool, *, rngs: layers.Rngs) -> None:
        conv = partial(layers.conv3x3, rngs=rngs)
        self.odd = odd
        self.conv_in = conv(2 * num_channels, FEATURES)
        self.blocks = nnx.List(
            [nnx.List([conv(FEATURES, FEATURES) for _ in range(2)]) for _ in range(BLOCKS)]
        )
        self.conv_out = conv(FEATURES, 2 * num_channels, init_scale=0.0)

    def __call__(self, z: Array, image: Array) -> tuple[Array, Array]:
        """z, image (B, H, W, C) -> z and the log-determinant of the change (B,)."""
        rows, columns = jnp.indices(z.shape[1:3])
        moves = ((rows + columns + self.odd) % 2)[None, :, :, None]
        h = self.conv_in(jnp.concatenate([(1 - moves) * jnp.tanh(z / 4), image], -1))
        for first, second in self.blocks:
            h = h + second(layers.swish(first(layers.swish(h))))
        shift, scale = jnp.split(self.conv_out(layers.swish(h)), 2, -1)
        scale = moves * jnp.tanh(scale)
        return z * jnp.exp(scale) + moves * shift, scale.sum((1, 2, 3))


class Dequantizer(nnx.Module):
    """q(v | u): noise v in (0, 1) that turns grey levels u into u + v. Untrained, it is (nearly) uniform.

    Couplings act on logits. The logits of uniform noise are logistic, and the sigmoid of these is uniform again.
    """

    def __init__(self, num_channels: int, levels: int, *, rngs: layers.Rngs) -> None:
        self.levels = levels
        self.couplings = nnx.List(
            [Coupling(num_channels, i % 2 == 1, rngs=rngs) for i in range(LAYERS)]
        )

    def __call__(self, u: Array, noise: Array) -> tuple[Array, Array]:
        """Grey levels u and uniform noise in [0, 1), (B, H, W, C) -> v, and log q(v | u) in nats (B,)."""
        image = 2 * u.astype(jnp.float32) / (self.levels - 1) - 1
        noise = jnp.clip(noise, 1e-6, 1 - 1e-6)
        z = jnp.log(noise) - jnp.log1p(-noise)
        log_q = log_slope(z).sum((1, 2, 3))  # Of the logits: the density of logistic noise.
        for coupling in self.couplings:
            z, change = coupling(z, image)
            log_q = log_q - change
        return jax.nn.sigmoid(z), log_q - log_slope(z).sum((1, 2, 3))


def log_slope(z: Array) -> Array:
    """The logarithm of the slope of the sigmoid at z."""
    return jax.nn.log_sigmoid(z) + jax.nn.log_sigmoid(-z)
