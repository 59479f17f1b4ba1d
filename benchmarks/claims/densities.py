"""Bits/dim of two networks on the same images: the exact likelihood of the flow, and the bound."""

from __future__ import annotations

import math
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import likelihood
import sampling
from api.trained import TrainedModel
from benchmarks.claims.quality import Record, held_out, mean


def gain(models: Sequence[TrainedModel], seed: int, *, count: int) -> Record:
    """Return bits/dim `before` (the first model) and `after` (the second), and the `gain`.

    Also `bound before`, `bound after` and `gain of the bound` for the variational bound. The images
    and their dequantizing noise are the same for both, so the errors are those of differences.
    """
    exact = [_bits_per_dim(model, seed, count) for model in models]
    bound = [_bound(model, seed, count) for model in models]
    return {
        "before": mean(exact[0]),
        "after": mean(exact[1]),
        "gain": mean(exact[0] - exact[1]),
        "bound before": mean(bound[0]),
        "bound after": mean(bound[1]),
        "gain of the bound": mean(bound[0] - bound[1]),
    }


def _bits_per_dim(model: TrainedModel, seed: int, count: int) -> np.ndarray:
    """Return bits/dim (count,) by the flow, with one Rademacher probe for each image."""
    x = model.from_images(held_out(model, count), seed)
    logp = model.log_prob(x, seed=seed, trace="Rademacher", probes=1)
    return _to_bits(model, logp)


def _bound(model: TrainedModel, seed: int, count: int) -> np.ndarray:
    """Return the bound on bits/dim (count,)."""
    x = model.from_images(held_out(model, count), seed)
    keys = sampling.image_keys(jax.random.key(seed), jnp.arange(len(x)))
    found = eqx.filter_jit(likelihood.elbo)(model.score, model.sde, x, keys)
    return _to_bits(model, -found.nats)


def _to_bits(model: TrainedModel, logp: Array) -> np.ndarray:
    dims = math.prod(model.event_shape)
    return np.asarray(likelihood.bits_per_dim(logp, dims, model.experiment.scaler.log_scale))
