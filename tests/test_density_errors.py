"""The stated errors of log-densities contain those of p_T and of the noise at t_min."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import score_sde as ss
from tests import mixture


def gaussian(mean, std, dims=8) -> mixture.Mixture:
    """One Gaussian as a mixture of three, so that cases share programs."""
    return mixture.Mixture(jnp.full((3, dims), mean), jnp.full(3, std))


def scaled(factor, dims=8):
    law = mixture.make(3, (dims,))
    return mixture.Mixture(law.means * factor, law.stds * factor)


@pytest.mark.parametrize(
    ("sde", "law", "trace", "largest"),
    [
        (ss.VPSDE(), gaussian(0.3, 0.5), "exact", 0.02),
        (ss.VPSDE(), gaussian(10.0, 1.0), "exact", 0.3),
        (ss.VPSDE(), gaussian(0.0, 100.0), "exact", 2),
        (ss.VESDE(), gaussian(0.3, 0.01, 64), "Rademacher", 10),
        (ss.VESDE(), scaled(0.1, 64), "Rademacher", 10),
        pytest.param(ss.VESDE(), scaled(30.0), "exact", 2, marks=pytest.mark.slow),
        pytest.param(ss.RectifiedFlow(), scaled(10.0), "exact", 0.3, marks=pytest.mark.slow),
    ],
)
@pytest.mark.filterwarnings("ignore:At time T", "ignore:The data have")
def test_the_true_error_is_within_three_stated_ones(sde, law, trace, largest):
    """For densities of the data, which have no noise; errors are not overstated, either."""
    prior = ss.Prior(law.score(sde), sde, law.means.shape[1:])
    x = law.sample(jax.random.key(0), 32)
    logp, stated = prior.log_prob(x, trace=trace, return_error=True)
    error = np.abs(logp - law.logp(ss.RectifiedFlow(), x, 0.0))  # This SDE has no noise at t = 0.
    assert (error < 3 * stated + 1e-4).all()
    assert np.sqrt(np.mean(stated**2)) < largest
