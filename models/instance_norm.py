"""InstanceNorm++ (Song & Ermon 2019), of the networks NCSN and NCSNv2. Images are NHWC.

Class names are those of the official code, because its checkpoints address parameters by them.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from models import layers

EPSILON = 1e-5


def instance_norm_plus(x: Array, gamma: Array, alpha: Array, beta: Array) -> Array:
    """Apply InstanceNorm++ (Song & Ermon 2019, Appendix A) to x (B, H, W, C).

    The coefficients are (C,) or (B, 1, 1, C). Instance normalization removes the channel means;
    this one adds them back, normalized over channels and scaled by alpha.
    """
    means = x.mean((1, 2), keepdims=True)
    h = (x - means) / jnp.sqrt(x.var((1, 2), keepdims=True) + EPSILON)
    center = means.mean(-1, keepdims=True)
    means = (means - center) / jnp.sqrt(means.var(-1, keepdims=True) + EPSILON)
    return gamma * (h + alpha * means) + beta


class InstanceNorm2dPlus(nnx.Module):
    """InstanceNorm++ with the same coefficients at all noise levels."""

    def __init__(self, features: int, *, rngs: layers.Rngs) -> None:
        self.gamma = nnx.Param(1 + 0.02 * jax.random.normal(rngs.params(), (features,)))
        self.alpha = nnx.Param(1 + 0.02 * jax.random.normal(rngs.params(), (features,)))
        self.beta = nnx.Param(jnp.zeros(features))

    def __call__(self, x: Array, label: Array) -> Array:
        return instance_norm_plus(x, self.gamma[...], self.alpha[...], self.beta[...])


class ConditionalInstanceNorm2dPlus(nnx.Module):
    """InstanceNorm++ with separate coefficients for each of `num_scales` noise levels."""

    def __init__(self, features: int, *, num_scales: int, rngs: layers.Rngs) -> None:
        def init(key: Array, shape: Sequence[int], dtype: jnp.dtype) -> Array:
            # Rows are (gamma, alpha, beta); beta starts at 0.
            return (1 + 0.02 * jax.random.normal(key, shape, dtype)).at[:, 2 * features :].set(0)

        self.table = nnx.Embed(num_scales, 3 * features, embedding_init=init, rngs=rngs)

    def __call__(self, x: Array, label: Array) -> Array:
        coefficients = self.table(label)[:, None, None, :]
        return instance_norm_plus(x, *jnp.split(coefficients, 3, -1))


class NoNorm(nnx.Module):
    """The identity, for unconditional blocks, which have no normalization."""

    def __init__(self, features: int) -> None:
        del features

    def __call__(self, x: Array, label: Array) -> Array:
        return x
