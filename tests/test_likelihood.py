"""Log-likelihoods against recorded official values and closed forms; bits/dim for any number of grey levels."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import likelihood
from datasets import Scaler
from errors import InputError
from sde_lib import VESDE, VPSDE, SubVPSDE
from tests import gaussian, reference
from tests.test_sampling import Cosine

SDES = {"ve": VESDE(), "vp": VPSDE(), "subvp": SubVPSDE()}


@pytest.mark.parametrize("probe", ["Rademacher", "Gaussian"])
@pytest.mark.parametrize("name", SDES)
def test_recorded_likelihoods(name, probe):
    a, sde = reference.arrays("samplers"), SDES[name]
    score, prefix = gaussian.score(sde, a["mu"], a["s"]), f"likelihood/{name}/"
    run = jax.jit(functools.partial(likelihood.log_likelihood, score, sde))
    logp, z, nfe = run(a[prefix + "data"], a[f"{prefix}{probe}/epsilon"])
    bpd = likelihood.bits_per_dim(logp, 8 * 8 * 3, Scaler(256, centered=name != "ve").log_scale)
    np.testing.assert_allclose(bpd, a[f"{prefix}{probe}/bpd_exact"], atol=1e-4)
    np.testing.assert_allclose(bpd, a[f"{prefix}{probe}/bpd"], atol=1e-4)
    np.testing.assert_allclose(z, a[prefix + "z_exact"], rtol=1e-3, atol=1e-3)
    assert 0.3 < nfe.mean() / a[f"{prefix}{probe}/nfe"] < 1.5


@pytest.mark.parametrize("sde", [*SDES.values(), Cosine()], ids=lambda s: type(s).__name__)
def test_log_density_of_gaussian_data(sde):
    """A diagonal Jacobian, whose trace one Rademacher probe gets exactly: log p is that of the data noised to t_min."""
    mean, std = np.linspace(-0.5, 0.5, 12).reshape(2, 2, 3), np.linspace(0.1, 1, 12).reshape(2, 2, 3)
    x = mean + std * jax.random.normal(jax.random.key(0), (20, 2, 2, 3))
    keys = jax.random.split(jax.random.key(1), 20)
    logp, z, _ = jax.jit(functools.partial(likelihood.log_likelihood, gaussian.score(sde, mean, std), sde))(
        x, likelihood.draw_probes(keys, x.shape)
    )
    z_exact = gaussian.flow(sde, mean, std, x, sde.t_min, sde.T)
    np.testing.assert_allclose(z, z_exact, rtol=1e-3, atol=2e-3)
    spread, spread_end = (np.sqrt(sde.alpha(t) ** 2 * std**2 + sde.var(t)) for t in jnp.array([sde.t_min, sde.T]))
    exact = sde.prior_logp(z_exact) + np.log(spread_end / spread).sum()
    np.testing.assert_allclose(logp, exact, atol=2e-3)
    truth = jax.scipy.stats.norm.logpdf(x, sde.alpha(sde.t_min) * mean, spread).sum((1, 2, 3))
    # The prior is not quite the law of x_T; for VE, |mean| / sigma_max = 0.01 in a dimension.
    np.testing.assert_allclose(logp, truth, atol=6e-2)


@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("levels", [2, 17, 256])
def test_bits_per_dim_of_any_number_of_grey_levels(levels, centered):
    """For x ~ N(mean, std^2) the bound lies above the exact -log2 P(grey level), closely if bins are fine."""
    scaler, mean, std = Scaler(levels, centered), 0.1, 0.3
    u = jnp.arange(levels).reshape(-1, 1)
    edges = np.asarray(scaler.dequantize(jnp.arange(levels + 1), 0.0), np.float64)
    mass = np.diff(scipy.special.ndtr((edges - mean) / std))
    noise = (jnp.arange(4000) + 0.5) / 4000  # A fine rule for the integral over the dequantization noise.
    x = scaler.dequantize(u, noise[None, :])
    logp = jax.scipy.stats.norm.logpdf(x, mean, std)
    bpd = np.asarray(likelihood.bits_per_dim(logp, 1, scaler.log_scale)).mean(1)
    exact = -np.log2(mass)
    assert (bpd >= exact - 1e-3 * np.abs(exact)).all()
    if levels == 256:
        np.testing.assert_allclose(bpd, exact, rtol=2e-3)
    if levels == 256:
        assert scaler.log_scale == pytest.approx(-math.log(2) * (7 if centered else 8))


def test_unknown_probe():
    with pytest.raises(InputError, match="Gaussian, Rademacher"):
        likelihood.draw_probes(jax.random.split(jax.random.key(0), 2), (2, 3), "cauchy")
