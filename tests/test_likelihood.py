"""Log-likelihoods against recorded official values and closed forms; bits/dim for any number of grey levels."""

import dataclasses
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
from sde_lib import VESDE, VPSDE, SubVPSDE, expand
from tests import gaussian, mixture, reference
from tests.test_sampling import Cosine

SDES = {"ve": VESDE(), "vp": VPSDE(), "subvp": SubVPSDE()}
EVERY_SDE = pytest.mark.parametrize(
    "sde", [*SDES.values(), Cosine()], ids=lambda s: type(s).__name__
)


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def estimate(score, sde, x, kind="exact", **options):
    probes = likelihood.draw_probes(keys(len(x)), x.shape, kind, options.pop("count", 1))
    return jax.jit(functools.partial(likelihood.log_likelihood, score, sde, **options))(x, probes)


@pytest.mark.parametrize("probe", ["Rademacher", "Gaussian"])
@pytest.mark.parametrize("name", SDES)
def test_recorded_likelihoods(name, probe):
    """For the same probes, in fewer evaluations."""
    a, sde = reference.arrays("samplers"), SDES[name]
    score, prefix = gaussian.score(sde, a["mu"], a["s"]), f"likelihood/{name}/"
    data, probes = a[prefix + "data"], a[f"{prefix}{probe}/epsilon"][:, None]
    run = jax.jit(
        functools.partial(likelihood.log_likelihood, score, sde), static_argnames="tolerance"
    )
    for tolerance, bound, rtol, atol in (
        (likelihood.TOLERANCE, 3e-4, 5e-3, 5e-3 * sde.prior_std),
        (1e-6, 1e-4, 1e-3, 1e-3),
    ):
        result = run(data, probes, tolerance=tolerance)
        bpd = likelihood.bits_per_dim(
            result.logp, 8 * 8 * 3, Scaler(256, centered=name != "ve").log_scale
        )
        np.testing.assert_allclose(bpd, a[f"{prefix}{probe}/bpd_exact"], atol=bound)
        np.testing.assert_allclose(bpd, a[f"{prefix}{probe}/bpd"], atol=bound)
        np.testing.assert_allclose(result.z, a[prefix + "z_exact"], rtol=rtol, atol=atol)
        if tolerance == likelihood.TOLERANCE:
            assert result.nfe.mean() / a[f"{prefix}{probe}/nfe"] < 1


# --- closed forms -----------------------------------------------------------------------------------------------------


@EVERY_SDE
def test_diagonal_gaussians(sde):
    """A diagonal Jacobian, whose trace one Rademacher probe gets exactly: log p is that of the data noised to t_min.

    The solver says how wrong it is: at least that in nine of ten images, at least half in all, and on average not a
    hundred times too much.
    """
    mean, std = (
        np.linspace(-0.5, 0.5, 12).reshape(2, 2, 3),
        np.linspace(0.1, 1, 12).reshape(2, 2, 3),
    )
    x = mean + std * jax.random.normal(jax.random.key(0), (20, 2, 2, 3))
    z_exact = gaussian.flow(sde, mean, std, x, sde.t_min, sde.T)
    spread, spread_end = (
        np.sqrt(sde.alpha(t) ** 2 * std**2 + sde.var(t)) for t in jnp.array([sde.t_min, sde.T])
    )
    exact = sde.prior_logp(z_exact) + np.log(spread_end / spread).sum()
    for tolerance in (1e-2, likelihood.TOLERANCE):
        result = estimate(gaussian.score(sde, mean, std), sde, x, "Rademacher", tolerance=tolerance)
        error = np.abs(result.logp - exact)
        assert (error < result.error + 1e-4).mean() >= 0.9
        assert (error < 2 * result.error + 1e-4).all()
        assert result.error.mean() < 100 * error.mean() + 1e-3
    np.testing.assert_allclose(result.z, z_exact, rtol=5e-3, atol=5e-3 * sde.prior_std)
    np.testing.assert_allclose(result.logp, exact, atol=12 * math.log(2) * 1e-3)


@pytest.mark.parametrize("t_min", [None, 1e-2])
@EVERY_SDE
def test_mixtures(sde, t_min):
    """The density at t_min and, with t_min small enough, that of the data themselves; to 0.005 bits/dim."""
    data, bits = mixture.make(5, (4, 4, 1)), 16 * math.log(2)
    sde = dataclasses.replace(sde, t_min=t_min or sde.t_min)
    x = data.sample(jax.random.key(0), 32)
    result, truth = estimate(data.score(sde), sde, x), data.logp(sde, x, sde.t_min)
    np.testing.assert_allclose(result.logp / bits, truth / bits, atol=5e-3)
    assert (result.nfe < 90).all()
    if t_min is None:
        clean = data.logp(VPSDE(), x, 0.0)
        assert np.mean(result.logp - clean) / bits == pytest.approx(0, abs=5e-3)
    if t_min is None and not isinstance(
        sde, VESDE
    ):  # Whose least noise, 0.01, tells in a single image.
        np.testing.assert_allclose(result.logp / bits, clean / bits, atol=5e-3)


def correlated(sde):
    """N(0, cov) data with full covariance in images of 2x3x1: score, and log p at t_min."""
    root = np.random.default_rng(1).normal(size=(6, 6)) / 3
    variances, axes = np.linalg.eigh(root @ root.T + 0.05 * np.eye(6))

    def score(x, t):
        var = expand(sde.alpha(t), x[:, :, 0, 0]) ** 2 * variances + expand(
            sde.var(t), x[:, :, 0, 0]
        )
        return -((x.reshape(-1, 6) @ axes / var) @ axes.T).reshape(x.shape)

    spread = np.sqrt(sde.alpha(sde.t_min) ** 2 * variances + sde.var(sde.t_min))
    return score, lambda x: jax.scipy.stats.norm.logpdf(x.reshape(-1, 6) @ axes, scale=spread).sum(
        1
    )


@pytest.mark.parametrize("kind", ["Rademacher", "Gaussian", "exact"])
def test_probes(kind):
    """Hutchinson's estimate is unbiased and spreads as it says; the exact trace needs no luck."""
    score, logp = correlated(SDES["vp"])
    x = 0.3 * jax.random.normal(jax.random.key(0), (60, 2, 3, 1))
    result = estimate(score, SDES["vp"], x, kind, count=40)
    error = np.asarray(result.logp - logp(x), np.float64)
    np.testing.assert_allclose(result.logp, result.per_probe.mean(1), atol=1e-5)
    if kind == "exact":
        np.testing.assert_allclose(error, 0, atol=5e-3 * 6 * math.log(2))
        return
    stderr = np.asarray(result.per_probe).std(1, ddof=1) / math.sqrt(40)
    assert abs(error.mean()) < 3.5 * np.sqrt((stderr**2).mean() / 60)
    assert 0.75 < np.mean((error / stderr) ** 2) < 1.4


def test_the_prior_of_ve():
    """What N(0, sigma_max^2) costs, not being the law of x_T: what the docstring says on average, and at most."""
    mean, std, sigma = 0.8, 0.6, 5.0
    sde = VESDE(sigma_max=sigma)
    x = (mean + std * np.random.default_rng(0).normal(size=(4000, 4, 4, 1))).astype(np.float32)
    z = jnp.asarray(gaussian.flow(sde, mean, std, x, sde.t_min, sde.T), jnp.float32)
    lost = jax.scipy.stats.norm.logpdf(z, mean, math.hypot(std, sigma)).sum(
        (1, 2, 3)
    ) - sde.prior_logp(z)
    average = mean**2 / (2 * sigma**2) + std**4 / (4 * sigma**4)
    assert lost.mean() / 16 == pytest.approx(average, abs=float(lost.std()) / 4 / math.sqrt(4000))
    assert 0.0 < average < 0.02
    standard = (z - mean) / math.hypot(std, sigma)
    most = (
        jnp.abs(standard * mean) / sigma
        + jnp.abs(standard**2 - 1) * std**2 / (2 * sigma**2)
        + average
    )
    assert (jnp.abs(lost) <= most.sum((1, 2, 3))).mean() > 0.99


# --- the variational bound --------------------------------------------------------------------------------------------


@EVERY_SDE
def test_the_bound(sde):
    """It is -log p for the true score, to its standard error, and more for a wrong one; from -log p at t_min."""
    mean, std = (
        np.linspace(-0.5, 0.5, 12).reshape(2, 2, 3),
        np.linspace(0.1, 1, 12).reshape(2, 2, 3),
    )
    sde = dataclasses.replace(sde, t_min=1e-3)
    x = mean + std * jax.random.normal(jax.random.key(0), (400, 2, 2, 3))
    true = gaussian.score(sde, mean, std)
    spread = np.sqrt(sde.alpha(sde.t_min) ** 2 * std**2 + sde.var(sde.t_min))
    logp = jax.scipy.stats.norm.logpdf(x, sde.alpha(sde.t_min) * mean, spread).sum((1, 2, 3))
    bound = jax.jit(lambda x: likelihood.elbo(true, sde, x, keys(len(x))))(x)
    gap, stderr = np.asarray(bound.nats + logp), np.asarray(bound.stderr)
    assert (
        abs(gap.mean()) < 4 * np.sqrt((stderr**2).mean() / len(x)) + 0.02
    )  # The prior is not quite the law of x_T.
    assert 0.8 < np.mean(gap**2) / np.mean(stderr**2) < 1.25
    wrong = jax.jit(lambda x: likelihood.elbo(lambda x, t: 0.7 * true(x, t), sde, x, keys(len(x))))(
        x
    )
    assert np.mean(wrong.nats + logp) > 5 * np.sqrt(np.mean(wrong.stderr**2) / len(x))


# --- bits/dim ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("levels", [2, 17, 256])
def test_bits_per_dim_of_any_number_of_grey_levels(levels, centered):
    """For x ~ N(mean, std^2) the bound lies above the exact -log2 P(grey level), closely if bins are fine."""
    scaler, mean, std = Scaler(levels, centered), 0.1, 0.3
    u = jnp.arange(levels).reshape(-1, 1)
    edges = np.asarray(scaler.dequantize(jnp.arange(levels + 1), 0.0), np.float64)
    mass = np.diff(scipy.special.ndtr((edges - mean) / std))
    noise = (
        jnp.arange(4000) + 0.5
    ) / 4000  # A fine rule for the integral over the dequantization noise.
    x = scaler.dequantize(u, noise[None, :])
    logp = jax.scipy.stats.norm.logpdf(x, mean, std)
    bpd = np.asarray(likelihood.bits_per_dim(logp, 1, scaler.log_scale)).mean(1)
    exact = -np.log2(mass)
    assert (bpd >= exact - 1e-3 * np.abs(exact)).all()
    if levels == 256:
        np.testing.assert_allclose(bpd, exact, rtol=2e-3)
    if levels == 256:
        assert scaler.log_scale == pytest.approx(-math.log(2) * (7 if centered else 8))


def test_what_a_user_can_put_right():
    score, grey = gaussian.score(VPSDE(), 0.0, 0.5), jnp.zeros((2, 2, 2, 1), jnp.uint8)
    with pytest.raises(InputError, match="Gaussian, Rademacher, exact"):
        likelihood.draw_probes(keys(2), (2, 3), "cauchy")
    with pytest.raises(InputError, match="uint8 have no density; .* `Scaler.dequantize`"):
        likelihood.log_likelihood(score, VPSDE(), grey, likelihood.draw_probes(keys(2), grey.shape))
    with pytest.raises(InputError, match="uint8 have no density"):
        likelihood.elbo(score, VPSDE(), grey, keys(2))
