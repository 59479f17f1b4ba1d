"""Equations of the paper, computed in float64 as it states them, against the code.

The numbers are those of arXiv:2011.13456; docs/paper_to_code.md lists the tests of all equations.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import losses
import sampling
from models.score import ScoreModel, conventions
from sde_lib import VESDE, VPSDE, SubVPSDE
from solvers import predictor_corrector

SDES = {"ve": VESDE(), "vp": VPSDE(), "subvp": SubVPSDE()}
N, STEP = 50, 20  # steps of the chains, and the index i of the one that is tested
SIGMA = 0.01 * 5000 ** (np.arange(N) / (N - 1))  # sigma_1 .. sigma_N
BETA = np.linspace(0.1, 20, N) / N  # beta_1 .. beta_N
X, NOISE = np.random.default_rng(0).normal(size=(2, 3, 4))
KEYS = jax.random.split(jax.random.key(0), 3)


def linear_score(x, t):
    """Any score, which depends on x and not on the convention of time."""
    return 0.3 - 0.7 * x


def update(monkeypatch, name, function, **options):
    """x_{i-1} and its mean, from x_i by step i of the chain of an SDE, with the noise NOISE."""
    monkeypatch.setattr(
        predictor_corrector, "standard_normal", lambda keys, shape: jnp.asarray(NOISE)
    )
    sde = SDES[name]
    step = jax.tree.map(lambda leaf: leaf[N - STEP], sde.discretize(N))  # from i = N down
    return function(KEYS, linear_score, sde, jnp.asarray(X, jnp.float32), step, **options)


FLOW = functools.partial(sampling.reverse_diffusion, probability_flow=True)
V, W, B = SIGMA[STEP - 1] ** 2, SIGMA[STEP - 2] ** 2, BETA[STEP - 1]
D, R = V - W, (1 - B) ** 0.5
PREDICTIONS = {  # The number: SDE, predictor, mean of x_{i-1} given x and the score, deviation.
    "4": ("vp", sampling.ancestral_sampling, lambda x, s: (x + B * s) / R, B**0.5),
    "43": ("ve", FLOW, lambda x, s: x + D / 2 * s, 0.0),
    "44": ("vp", FLOW, lambda x, s: (2 - R) * x + B / 2 * s, 0.0),
    "46, VE": ("ve", sampling.reverse_diffusion, lambda x, s: x + D * s, D**0.5),
    "46, VP": ("vp", sampling.reverse_diffusion, lambda x, s: (2 - R) * x + B * s, B**0.5),
    "47": ("ve", sampling.ancestral_sampling, lambda x, s: x + D * s, (W * D / V) ** 0.5),
}


@pytest.mark.parametrize("number", PREDICTIONS)
def test_predictors_of_discrete_chains(monkeypatch, number):
    """Eqs. (4), (43), (44), (46) and (47): one step with given noise."""
    name, predictor, mean_of, std = PREDICTIONS[number]
    mean = mean_of(X, linear_score(X, None))
    found, found_mean = update(monkeypatch, name, predictor)
    np.testing.assert_allclose(found_mean, mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found, mean + std * NOISE, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("corrector", ["langevin", "langevin_per_image", "ald"])
@pytest.mark.parametrize("name", ["ve", "vp"])
def test_langevin_steps(monkeypatch, name, corrector):
    """Eq. (2) with the step sizes of Algorithms 4 and 5, and with those of NCSN.

    The factor alpha_i of Algorithm 5 is 1 - beta_i, as in the official code.
    """
    gradient, alpha = linear_score(X, None), 1.0 if name == "ve" else 1 - BETA[STEP - 1]
    norms = [np.linalg.norm(array, axis=1, keepdims=True) for array in (NOISE, gradient)]
    if corrector == "langevin":
        norms = [norm.mean() for norm in norms]
    if corrector == "ald":
        t = SDES[name].sampling_times(N)[N - STEP]
        norms = [float(SDES[name].std(t)), 1.0]
    size = 2 * alpha * (0.16 * norms[0] / norms[1]) ** 2
    expected = X + size * gradient + np.sqrt(2 * size) * NOISE
    found, mean = update(monkeypatch, name, sampling.CORRECTORS[corrector], snr=0.16)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(mean, X + size * gradient, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SDES)
def test_denoising_score_matching(name):
    """Eq. (7), lambda |s - grad log p_0t|^2, with lambda = std^2."""
    t = jnp.array([0.2, 0.5, 0.9])
    alpha, std = (np.asarray(f(t), np.float64)[:, None] for f in (SDES[name].alpha, SDES[name].std))
    assert_loss(SDES[name], t, alpha, std)


@pytest.mark.parametrize("name", ["smld", "ddpm"])
def test_losses_of_discrete_chains(name):
    """Eq. (1) with weight sigma_i^2 and Eq. (3) with weight 1 - alpha_i."""
    index = np.array([3, STEP, 40])
    alpha, std = np.ones((3, 1)), SIGMA[index - 1, None]
    if name == "ddpm":
        alpha = np.sqrt(np.cumprod(1 - BETA))[index - 1, None]
        std = np.sqrt(1 - alpha**2)
    sde = "ve" if name == "smld" else "vp"
    model = ScoreModel(SDES[sde], N, **conventions(f"{sde}sde")._asdict())
    t = jnp.asarray((index - 1) / (N - 1), jnp.float32)
    assert_loss(SDES[sde], t, alpha, std, marginal=model.marginal(t))


def assert_loss(sde, t, alpha, std, **options):
    """The loss has the weight std^2; the gradient of the kernel is by automatic differentiation."""

    def log_kernel(noised):
        return jax.scipy.stats.norm.logpdf(noised, alpha * X, std).sum()

    noised = alpha * X + std * NOISE
    error = linear_score(noised, None) - jax.grad(log_kernel)(noised)
    loss = losses.denoising_score_matching(
        linear_score, sde, jnp.asarray(X), t, jnp.asarray(NOISE), **options
    )
    np.testing.assert_allclose(loss, (std**2 * error**2).mean(1), rtol=1e-4)


def test_smallest_times():
    """Appendix C: t_min of training and the likelihood, t_end of sampling."""
    found = {name: (sde.t_min, sde.t_end) for name, sde in SDES.items()}
    assert found == {"ve": (1e-5, 1e-5), "vp": (1e-5, 1e-3), "subvp": (1e-5, 1e-3)}


def test_labels_of_2000_steps():
    """Appendix G: labels i / 2 of a network with 1000 noise scales, which VE rounds.

    They differ from i / 2 by up to 1, because 999 / 1999 is not 1 / 2, and t_end is not 0.
    """
    i = np.arange(1999, -1, -1)  # in sampling order
    models = {
        name: ScoreModel(SDES[name], 1000, **conventions(f"{name}sde")._asdict())
        for name in ("ve", "vp")
    }
    vp = models["vp"].label(SDES["vp"].sampling_times(2000))
    np.testing.assert_allclose(vp, i / 2, atol=1.1)
    np.testing.assert_allclose(np.diff(vp), -0.5, atol=1e-2)
    ve = models["ve"].label(SDES["ve"].sampling_times(2000))
    assert ve.dtype == jnp.int32
    np.testing.assert_allclose(ve, (1999 - i) / 2, atol=1.1)
    assert np.bincount(ve, minlength=1000).min() >= 1


@pytest.mark.parametrize("start", [0.0, 0.25, 1.0, 4.0])
def test_covariances_of_vp_and_subvp(start):
    """Eqs. (26) and (28) for data of variance `start`; sub-VP's is at most VP's."""
    t = np.linspace(0.1, 1, 20, dtype=np.float32)
    beta, integral = 0.1 + 19.9 * t, 0.1 * t + 19.9 * t.astype(np.float64) ** 2 / 2

    def covariance(sde, t):
        return sde.alpha(t) ** 2 * start + sde.var(t)

    vp, subvp = SDES["vp"], SDES["subvp"]
    of_vp, slope = jax.jvp(functools.partial(covariance, vp), (t,), (jnp.ones_like(t),))
    np.testing.assert_allclose(of_vp, 1 + np.exp(-integral) * (start - 1), rtol=1e-5)
    np.testing.assert_allclose(slope, beta * (1 - of_vp), atol=1e-4)
    of_subvp = covariance(subvp, t)
    expected = 1 + np.exp(-2 * integral) + np.exp(-integral) * (start - 2)
    np.testing.assert_allclose(of_subvp, expected, rtol=1e-4)
    assert (of_subvp <= of_vp).all()


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
def test_densities_obey_the_equations_of_fokker_planck_and_liouville(sde):
    """Eqs. (35) and (37) at points x of a mixture of two Gaussians, whose density p_t is known."""
    means, stds, weights = jnp.array([-0.5, 0.8]), jnp.array([0.4, 0.7]), jnp.array([0.3, 0.7])

    def density(x, t):
        std = jnp.sqrt(sde.alpha(t) ** 2 * stds**2 + sde.var(t))
        return jnp.sum(weights * jax.scipy.stats.norm.pdf(x, sde.alpha(t) * means, std))

    def score(x, t):
        return jax.grad(lambda x: jnp.log(density(x, t)))(x)

    def flux(x, t, probability_flow):
        if probability_flow:  # f~ p
            return sde.reverse_drift(score(x, t), x, t, probability_flow=True) * density(x, t)
        return sde.drift(x, t) * density(x, t) - sde.diffusion(t) ** 2 / 2 * jax.grad(density)(x, t)

    @jax.jit
    @jax.vmap
    def rates(x, t):
        fluxes = [jax.grad(flux)(x, t, flow) for flow in (False, True)]
        return jax.grad(density, argnums=1)(x, t), -fluxes[0], -fluxes[1]

    t = jnp.repeat(jnp.array([0.1, 0.3, 0.6]), 9)
    x = jnp.sqrt(sde.alpha(t) ** 2 + sde.var(t)) * jnp.tile(jnp.linspace(-2, 2, 9), 3)
    change, by_fokker_planck, by_liouville = rates(x, t)
    scale = np.abs(change).max()
    np.testing.assert_allclose(by_fokker_planck, change, atol=1e-4 * scale)
    np.testing.assert_allclose(by_liouville, change, atol=1e-4 * scale)
