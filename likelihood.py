"""Exact log-likelihoods and latent codes through the probability-flow ODE (arXiv:2011.13456, Section 4.3, App. D.2)."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import Array

from errors import choose
from sde_lib import SDE, Score
from solvers import integrate

PROBES = {"Rademacher": jax.random.rademacher, "Gaussian": jax.random.normal}


def draw_probes(keys: Array, shape: tuple[int, ...], kind: str = "Rademacher") -> Array:
    """Random probes of shape (B, ...) for the Skilling-Hutchinson trace estimator, image i from keys[i]."""
    probe = choose(PROBES, kind, "the kind of Hutchinson probe")
    return jax.vmap(lambda key: probe(key, shape[1:], dtype=jnp.float32))(keys)


def log_likelihood(
    score: Score, sde: SDE, x: Array, probes: Array, *, rtol: float = 1e-5, atol: float = 1e-5
) -> tuple[Array, Array, Array]:
    """log p(x) by the instantaneous change of variables, with Hutchinson's estimate of the trace (Appendix D.2).

    Args:
      x: (B, ...), dequantized data in the range that the model was trained on, taken for states at time sde.t_min.
      probes: (B, ...), `draw_probes`; held fixed through the solve, so that the ODE stays an ODE.

    Returns:
      log p in nats (B,), latent codes z (B, ...), and the number of score evaluations for each image (B,).
    """

    def field(t: Array, state: tuple[Array, Array], probe: Array) -> tuple[Array, Array]:
        x, _ = state
        drift = lambda x: sde.reverse_drift(score(x[None], t[None])[0], x, t, probability_flow=True)
        dx, tangent = jax.jvp(drift, (x,), (probe,))
        return dx, jnp.sum(probe * tangent)

    y0 = (x, jnp.zeros(x.shape[0]))
    (z, divergence), nfe = integrate(field, y0, sde.t_min, sde.T, args=probes, rtol=rtol, atol=atol)
    return sde.prior_logp(z) + divergence, z, nfe


def bits_per_dim(logp: Array, dims: int, log_scale: float) -> Array:
    """-log2 p per dimension of the grey levels u, for x = scale u + shift with log p(x) in nats.

    By the change of variables log p(u) = log p(x) + dims log(scale). With uniform dequantization of u its mean bounds
    the bits/dim of the discrete images from above (Theis et al. 2016).
    """
    return -(logp + dims * log_scale) / (dims * math.log(2.0))
