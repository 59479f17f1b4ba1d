"""Log-likelihoods against recorded official values and closed forms, and bits/dim."""

import dataclasses
import functools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import likelihood
from datasets import Scaler
from sde_lib import EDMSDE, VESDE, VPSDE, CosineSDE, RectifiedFlow, SubVPSDE, expand
from solvers import density
from tests import gaussian, mixture, reference
from tests.refusal import refused
from tests.test_sampling import Cosine

SDES = {"ve": VESDE(), "vp": VPSDE(), "subvp": SubVPSDE()}
OTHERS = {"new": Cosine(), "cosine": CosineSDE(), "edm": EDMSDE(), "flow": RectifiedFlow()}


def of_sdes(*names):
    """Return the parametrization of a test over some SDEs."""
    return pytest.mark.parametrize("sde", [(SDES | OTHERS)[name] for name in names], ids=names)


MEAN = np.linspace(-0.5, 0.5, 12).reshape(2, 2, 3)  # Of Gaussian data.
STD = np.linspace(0.1, 1, 12).reshape(2, 2, 3)


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


log_likelihood = eqx.filter_jit(likelihood.log_likelihood)


def estimate(score, sde, x, kind="exact", count=1, **options):
    probes = likelihood.draw_probes(keys(len(x)), x.shape, kind, count)
    return log_likelihood(score, sde, x, probes, **options)


@pytest.mark.parametrize("probe", reference.cases(["Rademacher", "Gaussian"], ["Gaussian"]))
@pytest.mark.parametrize("name", SDES)
def test_recorded_likelihoods(name, probe):
    """The same values as the official code for the same probes, with fewer evaluations."""
    recorded, sde = reference.arrays("samplers"), SDES[name]
    score = gaussian.score(sde, recorded["mu"], recorded["s"])
    prefix = f"likelihood/{name}/"
    data = jnp.asarray(recorded[f"{prefix}data"])
    probes = jnp.asarray(recorded[f"{prefix}{probe}/epsilon"])[:, None]
    log_scale = Scaler(256, centered=name != "ve").log_scale

    def check(tolerance, bpd_atol, rtol, atol):
        result = log_likelihood(score, sde, data, probes, tolerance=jnp.float32(tolerance))
        bpd = likelihood.bits_per_dim(result.logp, 8 * 8 * 3, log_scale)
        np.testing.assert_allclose(bpd, recorded[f"{prefix}{probe}/bpd_exact"], atol=bpd_atol)
        np.testing.assert_allclose(bpd, recorded[f"{prefix}{probe}/bpd"], atol=bpd_atol)
        np.testing.assert_allclose(result.z, recorded[f"{prefix}z_exact"], rtol=rtol, atol=atol)
        return result

    check(1e-6, bpd_atol=1e-4, rtol=1e-3, atol=1e-3)
    if probe == "Rademacher":
        atol = 5e-3 * sde.prior_std
        result = check(likelihood.TOLERANCE, bpd_atol=3e-4, rtol=5e-3, atol=atol)
        assert result.nfe.mean() < min(30, recorded[f"{prefix}{probe}/nfe"])  # Measured: 28.


@of_sdes("ve", "subvp", "flow")
def test_diagonal_gaussians(sde):
    """log p of data noised to t_min. One Rademacher probe is exact, as the Jacobian is diagonal.

    The solver's error estimate exceeds the error in nine of ten images and half the error in all,
    and its mean is at most a hundred times too large.
    """
    x = MEAN + STD * jax.random.normal(jax.random.key(0), (20, 2, 2, 3))
    z_exact = gaussian.flow(sde, MEAN, STD, x, sde.t_min, sde.T)
    std_start, std_end = (
        np.sqrt(sde.alpha(t) ** 2 * STD**2 + sde.var(t)) for t in jnp.array([sde.t_min, sde.T])
    )
    exact = sde.prior_logp(z_exact) + np.log(std_end / std_start).sum()
    for tolerance in map(jnp.float32, (1e-2, likelihood.TOLERANCE)):
        result = estimate(gaussian.score(sde, MEAN, STD), sde, x, "Rademacher", tolerance=tolerance)
        error = np.abs(result.logp - exact)
        assert (error < result.error + 1e-4).mean() >= 0.9
        assert (error < 2 * result.error + 1e-4).all()
        assert result.error.mean() < 100 * error.mean() + 1e-3
    np.testing.assert_allclose(result.z, z_exact, rtol=5e-3, atol=5e-3 * sde.prior_std)
    np.testing.assert_allclose(result.logp, exact, atol=12 * math.log(2) * 1e-3)


@pytest.mark.parametrize(
    ("sde", "t_min"), [("ve", None), ("vp", None), ("vp", 1e-2), ("new", None)]
)
def test_mixtures(sde, t_min):
    """log p at t_min to 0.005 bits/dim, which for a small t_min is also that of the clean data."""
    data, bits = mixture.make(5, (4, 4, 1)), 16 * math.log(2)
    sde = (SDES | OTHERS)[sde]
    sde = dataclasses.replace(sde, t_min=t_min or sde.t_min)
    x = data.sample(jax.random.key(0), 32)
    result, exact = estimate(data.score(sde), sde, x), data.logp(sde, x, sde.t_min)
    np.testing.assert_allclose(result.logp / bits, exact / bits, atol=5e-3)
    # Measured: at most 55, 47 on average.
    assert (result.nfe < 60).all()
    assert result.nfe.mean() < 49
    if t_min is not None:
        return
    clean = data.logp(VPSDE(), x, 0.0)
    assert np.mean(result.logp - clean) / bits == pytest.approx(0, abs=5e-3)
    # The smallest noise of VE, 0.01, changes log p of single images by more than that.
    if not isinstance(sde, VESDE):
        np.testing.assert_allclose(result.logp / bits, clean / bits, atol=5e-3)


def correlated(sde):
    """The score, and log p at t_min, of N(0, cov) data with correlated entries in 2x3x1 images."""
    root = np.random.default_rng(1).normal(size=(6, 6)) / 3
    variances, axes = np.linalg.eigh(root @ root.T + 0.05 * np.eye(6))

    def score(x, t):
        rows = x.reshape(-1, 6)
        var = expand(sde.alpha(t), rows) ** 2 * variances + expand(sde.var(t), rows)
        return -((rows @ axes / var) @ axes.T).reshape(x.shape)

    def logp(x):
        std = np.sqrt(sde.alpha(sde.t_min) ** 2 * variances + sde.var(sde.t_min))
        return jax.scipy.stats.norm.logpdf(x.reshape(-1, 6) @ axes, scale=std).sum(1)

    return score, logp


@pytest.mark.slow
def test_evaluations_are_counted():
    """The reported evaluations are the calls of the score for a batch of one image.

    A score that is nowhere finite has no likelihood.
    """
    calls = []

    def score(x, t):
        jax.debug.callback(lambda: calls.append(1))
        return gaussian.score(SDES["vp"], 0.3, 1.0)(x, t)

    result = jax.block_until_ready(estimate(score, SDES["vp"], jnp.ones((1, 2, 2, 1)), "Gaussian"))
    jax.effects_barrier()
    assert result.nfe.tolist() == [len(calls)]
    failed = estimate(lambda x, t: x * jnp.nan, SDES["vp"], jnp.ones((1, 2, 2, 1)))
    assert np.isnan(failed.logp).all()


@pytest.mark.parametrize("kind", ["Rademacher", "Gaussian", "exact"])
def test_probes(kind):
    """Random probes give an unbiased estimate with the stated standard error; 'exact' has none."""
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


@of_sdes("ve", "vp")
def test_few_fixed_levels(sde):
    """log p of a mixture by 16 evaluations, and by 64 as exactly as by adaptive steps.

    The stated error exceeds the error in nine of ten images and half the error in all.
    """
    data, bits = mixture.make(5, (4, 4, 1)), 16 * math.log(2)
    sde = dataclasses.replace(sde, t_min=max(sde.t_min, 1e-4))
    x = data.sample(jax.random.key(0), 32)
    errors = []
    for steps in (16, 64):
        result = estimate(data.score(sde), sde, x, steps=steps)
        assert result.nfe.tolist() == [steps] * 32
        error = np.abs(result.logp - data.logp(sde, x, sde.t_min))
        assert (error < result.error).mean() >= 0.9
        assert (error < 2 * result.error).all()
        errors.append(error / bits)
    assert errors[0].mean() < 0.025  # Measured: 0.019.
    assert errors[1].max() < 5e-3


@pytest.mark.slow
def test_probes_that_differ_between_levels():
    """Estimates are unbiased, with the stated error, and vary less than with the same probes."""
    distance = np.abs(np.subtract.outer(np.arange(8), np.arange(8)))
    variances, axes = np.linalg.eigh(np.exp(-distance / 3) + 0.01 * np.eye(8))
    sde = SDES["vp"]

    def score(x, t):
        var = expand(sde.alpha(t), x) ** 2 * variances + expand(sde.var(t), x)
        return -((x @ axes / var) @ axes.T)

    x = jax.random.normal(jax.random.key(0), (200, 8)) @ (axes * np.sqrt(variances)).T
    exact = estimate(score, sde, x, steps=16)
    # Measured: 0.22 and 0.56, since the lengths of Gaussian probes remain.
    for kind, most in (("Rademacher", 0.3), ("Gaussian", 0.7)):
        spread = {}
        for steps in (None, 16):
            result = estimate(score, sde, x, kind, 40, steps=steps)
            spread[steps] = np.asarray(result.per_probe).std(1, ddof=1)
        error, stderr = np.asarray(result.logp - exact.logp), spread[16] / math.sqrt(40)
        assert abs(error.mean()) < 3.5 * np.sqrt((stderr**2).mean() / 200)
        assert 0.7 < np.mean((error / stderr) ** 2) < 1.4
        assert np.mean(spread[16] / spread[None]) < most


def test_the_prior_of_ve():
    """The average and largest error due to the prior of VE, as `log_likelihood` documents them."""
    mean, std, sigma = 0.8, 0.6, 5.0
    sde = VESDE(sigma_max=sigma)
    x = (mean + std * np.random.default_rng(0).normal(size=(4000, 4, 4, 1))).astype(np.float32)
    z = jnp.asarray(gaussian.flow(sde, mean, std, x, sde.t_min, sde.T), jnp.float32)
    std_end = math.hypot(std, sigma)
    exact = jax.scipy.stats.norm.logpdf(z, mean, std_end).sum((1, 2, 3))
    error = exact - sde.prior_logp(z)
    average = mean**2 / (2 * sigma**2) + std**4 / (4 * sigma**4)
    assert error.mean() / 16 == pytest.approx(average, abs=float(error.std()) / 4 / math.sqrt(4000))
    assert 0.0 < average < 0.02
    standard = (z - mean) / std_end
    largest = (
        jnp.abs(standard * mean) / sigma
        + jnp.abs(standard**2 - 1) * std**2 / (2 * sigma**2)
        + average
    )
    assert (jnp.abs(error) <= largest.sum((1, 2, 3))).mean() > 0.99


@of_sdes("ve", "flow")
def test_the_bound(sde):
    """The bound is -log p at t_min for the true score, within its error, and larger for others."""
    sde = dataclasses.replace(sde, t_min=1e-3)
    x = MEAN + STD * jax.random.normal(jax.random.key(0), (400, 2, 2, 3))
    true_score = gaussian.score(sde, MEAN, STD)
    std = np.sqrt(sde.alpha(sde.t_min) ** 2 * STD**2 + sde.var(sde.t_min))
    logp = jax.scipy.stats.norm.logpdf(x, sde.alpha(sde.t_min) * MEAN, std).sum((1, 2, 3))

    @jax.jit
    def bound(factor):
        return likelihood.elbo(lambda x, t: factor * true_score(x, t), sde, x, keys(len(x)))

    tight = bound(1.0)
    gap, stderr = np.asarray(tight.nats + logp), np.asarray(tight.stderr)
    # 0.02 allows for the difference between the prior and p_T.
    assert abs(gap.mean()) < 4 * np.sqrt((stderr**2).mean() / len(x)) + 0.02
    assert 0.8 < np.mean(gap**2) / np.mean(stderr**2) < 1.25
    loose = bound(0.7)
    assert np.mean(loose.nats + logp) > 5 * np.sqrt(np.mean(loose.stderr**2) / len(x))


def test_the_prior_of_the_bound():
    """Where the prior differs from p_T, the bound for the exact score is known.

    It is -log p(x) plus the mean of log p_T(x_T) - log prior(x_T) over the forward process from x.
    For N(0, DATA_STD^2) data the estimate has no variance.
    """
    sde = SubVPSDE(beta_max=3.0)
    c, x = density.DATA_STD, 0.8 * jax.random.normal(jax.random.key(0), (20, 2, 2, 3))
    score = gaussian.score(sde, 0.0, c)
    bound = jax.jit(lambda x: likelihood.elbo(score, sde, x, keys(20), pairs=2))(x)
    (alpha, alpha_end), (var, var_end) = (
        np.asarray(f(jnp.array([sde.t_min, sde.T])), np.float64) for f in (sde.alpha, sde.var)
    )
    prior, p, p_end = sde.prior_std**2, alpha**2 * c**2 + var, alpha_end**2 * c**2 + var_end
    ratio = alpha_end / alpha
    square = ratio**2 * np.asarray(x, np.float64) ** 2 + var_end - ratio**2 * var
    gap = 0.5 * (np.log(prior / p_end) + square * (1 / prior - 1 / p_end))
    exact = (gap + 0.5 * (np.log(2 * math.pi * p) + x**2 / p)).sum((1, 2, 3))
    assert np.abs(gap.sum((1, 2, 3))).mean() > 0.03
    np.testing.assert_allclose(bound.nats, exact, atol=2e-3)
    np.testing.assert_allclose(bound.stderr, 0, atol=1e-3)


def test_the_bound_by_one_pair():
    """The mean of many coarse estimates is exact.

    It is biased unless the noise is independent of the time, and each level has its weight.
    """
    sde = VPSDE(t_min=1e-3)
    x = 0.3 + jax.random.normal(jax.random.key(0), (40_000, 1, 1, 1))
    alpha, var = sde.alpha(sde.t_min), sde.var(sde.t_min)
    bound = jax.jit(functools.partial(likelihood.elbo, gaussian.score(sde, 0.3, 1.0), sde, pairs=1))
    logp = jax.scipy.stats.norm.logpdf(x, alpha * 0.3, np.sqrt(alpha**2 + var)).sum((1, 2, 3))
    gap = np.asarray(bound(x, keys(len(x))).nats + logp)
    # 5e-4 allows for the difference between the prior and p_T.
    assert abs(gap.mean()) < 4 * gap.std() / np.sqrt(len(x)) + 5e-4


@pytest.mark.parametrize(
    ("levels", "centered"), [(2, False), (17, True), (256, False), (256, True)]
)
def test_bits_per_dim_of_any_number_of_grey_levels(levels, centered):
    """For x ~ N(mean, std^2), bits/dim exceed -log2 P(gray level), by little for 256 levels."""
    scaler, mean, std = Scaler(levels, centered), 0.1, 0.3
    u = jnp.arange(levels).reshape(-1, 1)
    edges = np.asarray(scaler.dequantize(jnp.arange(levels + 1), 0.0), np.float64)
    mass = np.diff(scipy.special.ndtr((edges - mean) / std))
    noise = (jnp.arange(4000) + 0.5) / 4000  # The midpoint rule for the mean over the noise.
    x = scaler.dequantize(u, noise[None, :])
    logp = jax.scipy.stats.norm.logpdf(x, mean, std)
    bpd = np.asarray(likelihood.bits_per_dim(logp, 1, scaler.log_scale)).mean(1)
    exact = -np.log2(mass)
    assert (bpd >= exact - 1e-3 * np.abs(exact)).all()
    if levels == 256:
        np.testing.assert_allclose(bpd, exact, rtol=2e-3)
        assert scaler.log_scale == pytest.approx(-math.log(2) * (7 if centered else 8))


def test_invalid_inputs_raise_input_errors():
    score, grey = gaussian.score(VPSDE(), 0.0, 0.5), jnp.zeros((2, 2, 2, 1), jnp.uint8)
    refused("Gaussian, Rademacher, exact", likelihood.draw_probes, keys(2), (2, 3), "cauchy")
    probes = likelihood.draw_probes(keys(2), grey.shape)
    for steps in (2, 1001):
        noise = jnp.zeros(grey.shape), probes
        refused("takes 3 to 1000", likelihood.log_likelihood, score, VPSDE(), *noise, steps=steps)
    for function, last in ((likelihood.log_likelihood, probes), (likelihood.elbo, keys(2))):
        message = "not uint8: .* no density. .* `Scaler.dequantize`"
        refused(message, function, score, VPSDE(), grey, last)
