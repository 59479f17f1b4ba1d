"""A `Prior` inside a model of numpyro, sampled by Hamiltonian Monte Carlo."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import score_sde as ss
from tests import gaussian

numpyro = pytest.importorskip("numpyro")


@pytest.mark.slow
def test_hamiltonian_monte_carlo():
    """x of our prior and y = 2 x + noise: the posterior is Gaussian."""
    sde = ss.VPSDE()
    prior = ss.Prior(gaussian.score(sde, 0.5, 0.3), sde, (2,))
    y, noise = jnp.array([1.2, 0.4]), 0.2

    def model():
        flat = numpyro.distributions.ImproperUniform(
            numpyro.distributions.constraints.real_vector, (), (2,)
        )
        x = numpyro.sample("x", flat)
        numpyro.factor("prior", prior.log_prob(x, tolerance=1e-2))
        numpyro.sample("y", numpyro.distributions.Normal(2 * x, noise).to_event(1), obs=y)

    var = 1 / (1 / 0.3**2 + 4 / noise**2)
    mean = var * (0.5 / 0.3**2 + 2 * np.asarray(y) / noise**2)
    # The trajectory covers a quarter of the period, so that draws are nearly independent.
    kernel = numpyro.infer.HMC(
        model,
        step_size=0.5 * float(np.sqrt(var)),
        trajectory_length=1.5 * float(np.sqrt(var)),
        adapt_step_size=False,
        adapt_mass_matrix=False,
    )
    mcmc = numpyro.infer.MCMC(kernel, num_warmup=5, num_samples=150, progress_bar=False)
    mcmc.run(jax.random.key(0), init_params={"x": jnp.asarray(mean)})
    x = mcmc.get_samples()["x"]
    np.testing.assert_allclose(x.mean(0), mean, atol=4 * np.sqrt(var / 150) + 0.01)
    np.testing.assert_allclose(x.std(0), np.sqrt(var), rtol=0.25)
