"""The Python API's `Prior` against closed forms, for events of several shapes."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
import signal
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import score_sde as ss
import sharding
from api import execution
from errors import NotFiniteError
from runs import progress
from sde_lib import SDES, expand
from tests import gaussian, mixture
from tests.refusal import refused

STD = 0.4


def gaussian_prior(shape=(2,), sde=None, mean=0.3, std=STD):
    sde = sde or ss.VPSDE()
    return ss.Prior(gaussian.score(sde, mean, std), sde, shape)


@pytest.mark.parametrize(
    ("shape", "sde"),
    [
        ((), ss.VPSDE()),
        ((3, 3, 2), ss.VESDE()),
        pytest.param((5,), ss.SubVPSDE(), marks=pytest.mark.slow),
        # As other packages define it.
        pytest.param((2,), ss.VPSDE(beta_min=1.0, beta_max=1.0, T=10.0), marks=pytest.mark.slow),
    ],
)
def test_mixtures_of_all_shapes(shape, sde):
    """Densities, samples and codes of a mixture of Gaussians, in any event shape."""
    law = mixture.make(3, shape)
    prior = ss.Prior(law.score(sde), sde, shape)
    x = law.sample(jax.random.key(0), 6).reshape(2, 3, *shape)
    logp, error = prior.log_prob(x, return_error=True)
    exact = law.logp(sde, x.reshape(6, *shape), sde.t_min).reshape(2, 3)
    assert logp.shape == error.shape == (2, 3)
    np.testing.assert_allclose(logp, exact, atol=0.03 + 0.01 * x[0, 0].size)
    samples = prior.sample((40, 50), seed=1)
    assert samples.shape == (40, 50, *shape)
    data = np.asarray(law.sample(jax.random.key(1), 20_000))
    error_of_mean = 4 * data.std() / np.sqrt(2000)
    np.testing.assert_allclose(samples.mean((0, 1)), data.mean(0), atol=error_of_mean + 0.02)
    np.testing.assert_allclose(samples.std((0, 1)), data.std(0), atol=0.05)
    z = prior.encode(x)
    np.testing.assert_allclose(prior.decode(z), x, atol=1e-3)


@pytest.mark.parametrize("name", ["pc", "unipc_3", "restart", "adaptive_sde"])
def test_samples_have_the_unit_of_the_data(name):
    """Data, noise levels and score in another unit give the same samples in that unit.

    `ode` has the absolute tolerance of the official code.
    """

    def draw(unit):
        sde = ss.VESDE(sigma_min=0.05 * unit, sigma_max=20.0 * unit)
        prior = ss.Prior(lambda x, t: -x / (unit**2 + sde.var(t)[:, None]), sde, (3,))
        options = {} if name == "adaptive_sde" else {"steps": 20}
        if name == "restart":
            options["restart"] = (3, 1, 0.3 * unit, 1.0 * unit)
        return prior.sample(5, sampler=name, **options) / unit

    np.testing.assert_allclose(draw(2.0**-10), draw(1.0), rtol=1e-3, atol=1e-4)


def test_samples_depend_on_the_seed_and_their_number_only():
    prior = gaussian_prior()
    x = prior.sample(7, seed=3)
    np.testing.assert_array_equal(prior.sample(7, seed=jax.random.key(3)), x)
    np.testing.assert_allclose(prior.sample((3,), seed=3, batch_size=2), x[:3], atol=1e-6)
    assert prior.sample(seed=3).shape == (2,)
    seeds = (0, 2**32, -1, 2**32 - 1)  # All bits count.
    assert len({np.asarray(prior.sample(2, seed=seed)).tobytes() for seed in seeds}) == 4
    hot = prior.sample(500, seed=0, sampler="deis", temperature=2.0)
    assert hot.std() > 1.5 * prior.sample(500, seed=0, sampler="deis").std()


def test_the_gradient_of_log_prob_is_the_score():
    """In x, at t_min, for data whose p_T is the prior, so that the density is exact."""
    sde = dataclasses.replace(ss.VPSDE(), beta_max=40.0)
    law = mixture.make(2, (3,))
    prior = ss.Prior(law.score(sde), sde, (3,))
    x = law.sample(jax.random.key(0), 4)

    gradient = jax.jit(jax.grad(lambda x: prior.log_prob(x, steps=64).sum()))(x)
    np.testing.assert_allclose(gradient, prior.score(x, jnp.full(4, sde.t_min)), atol=0.05)


@pytest.mark.slow
def test_the_gradient_by_parameters_of_the_score():
    """d log N(x; m, s^2) / dm = (x - m) / s^2, and so for s; and for x, by adaptive steps."""
    sde = ss.VPSDE(beta_max=40.0)

    def score(parameters, x, t):
        mean, std = parameters
        alpha, var = expand(sde.alpha(t), x), expand(sde.var(t), x)
        return -(x - alpha * mean) / (alpha**2 * std**2 + var)

    def log_prob(parameters, x):
        prior = ss.Prior(jax.tree_util.Partial(score, parameters), sde, (2,))
        return prior.log_prob(x, tolerance=1e-4)

    x = jnp.array([0.5, -0.2])
    gradient, by_x = jax.jit(jax.grad(log_prob, (0, 1)))((0.1, 0.6), x)
    residual = (x - 0.1) / 0.6
    np.testing.assert_allclose(by_x, -residual / 0.6, atol=0.05)
    np.testing.assert_allclose(gradient[0], (residual / 0.6).sum(), rtol=0.02)
    np.testing.assert_allclose(gradient[1], ((residual**2 - 1) / 0.6).sum(), rtol=0.02)


def test_a_score_that_is_a_pytree():
    """Its arrays are arguments of the compiled program: new values need no new compilation."""
    sde = ss.VPSDE()
    calls = []

    def score(mean, x, t):
        calls.append(1)
        return gaussian.score(sde, mean, STD)(x, t)

    means = []
    for mean in (jnp.float32(0), np.float32(2)):
        prior = ss.Prior(jax.tree_util.Partial(score, mean), sde, (2,))
        calls.clear()
        means.append(float(prior.sample(300, seed=0).mean()))
    assert means == pytest.approx([0.0, 2.0], abs=0.1)
    assert not calls  # The second prior used the program of the first.


RARE = mixture.Mixture(jnp.zeros((10, 3)), jnp.array([1.0, *(9 * [1e-4])]))  # 90 % are 0.
FAR, NARROW = "where samples start", "Samples are too narrow"


@pytest.mark.parametrize(
    ("sde", "mean", "std", "expected"),
    [
        (ss.VPSDE(), 0.0, 1000.0, FAR),
        (ss.VPSDE(), 100.0, 1.0, FAR),
        (ss.VESDE(), 0.0, 1000.0, FAR),
        (ss.VPSDE(), 0.0, 0.001, "about 0.0009.* has 0.01.*" + NARROW),
        (ss.VESDE(), 0.5, 0.001, "about 0.0009.* has 0.01.*" + NARROW),
        (ss.VPSDE(), 2.0, 5.0, None),
        (ss.VESDE(), 0.5, 0.03, None),
        (ss.RectifiedFlow(), -0.5, 0.05, None),
        (ss.EDMSDE(), 0.0, np.array([0.5, 0.0, 0.0]), None),  # Constant entries are no mistake.
        (ss.VPSDE(), None, None, None),  # RARE
    ],
)
def test_data_that_do_not_fit_the_noise(sde, mean, std, expected):
    score = RARE.score(sde) if mean is None else gaussian.score(sde, mean, std)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ss.Prior(score, sde, (3,))
    messages = [str(each.message) for each in caught if "loc and scale" in str(each.message)]
    assert len(messages) == (expected is not None)
    assert not messages or re.search(expected, messages[0])


@pytest.mark.slow
def test_hamiltonian_monte_carlo():
    """A prior inside a model of numpyro, x and y = 2 x + noise: the posterior is Gaussian."""
    numpyro = pytest.importorskip("numpyro")
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


# --- errors, devices and compilation ----------------------------------------------------------


def test_completion_shows_the_api_only():
    assert {name for name in dir(ss) if not name.startswith("__")} == set(ss.__all__)


def test_samples_that_are_not_finite():
    """A score that fails on the way is reported with the step."""
    sde = ss.VPSDE()

    def fails_late(x, t):
        return jnp.where(expand(t, x) < 0.1, jnp.nan, gaussian.score(sde, 0.0, 1.0)(x, t))

    prior = ss.Prior(fails_late, sde, (2,))
    with pytest.raises(NotFiniteError, match=r"3 of 3 events are not finite; .* step \d+ of"):
        prior.sample(3)


@pytest.mark.slow
def test_methods_can_be_compiled():
    """Samples may be parts of other compiled programs."""
    sde, mesh = ss.VPSDE(), sharding.make_mesh(jax.devices()[:2])
    prior = ss.Prior(gaussian.score(sde, 0.3, STD), sde, (2,), mesh=mesh)
    x = jax.jit(functools.partial(prior.sample, 5))(seed=jax.random.key(0))
    np.testing.assert_allclose(x, prior.sample(5, seed=0), atol=1e-5)
    daps = prior.posterior(x[0], lambda x: x, noise=0.1, method="daps", langevin_steps=2)
    found = jax.jit(lambda key: daps.sample(3, key, steps=30))(jax.random.key(0))
    np.testing.assert_allclose(found, daps.sample(3, seed=0, steps=30), atol=1e-4)


@pytest.mark.parametrize("devices", [0, 2])
def test_one_program_executes_all_steps(devices):
    mesh = sharding.make_mesh(jax.devices()[:devices]) if devices else None
    sde = ss.VPSDE(beta_max=21.0 + devices)  # No other test has compiled programs for it.
    prior = ss.Prior(gaussian.score(sde, 0.3, STD), sde, (2,), mesh=mesh)
    for drawn in (prior, prior.posterior(jnp.ones(2), lambda x: x, noise=0.1, method="smc")):
        before = execution._advance._cache_size()
        drawn.sample(4, seed=0, steps=5)
        assert execution._advance._cache_size() == before + 1


@pytest.mark.slow
def test_devices_share_batches():
    """Numbers of events that the devices do not divide, in several batches, as on one device."""
    sde, mesh = ss.VPSDE(), sharding.make_mesh(jax.devices()[:2])
    score = gaussian.score(sde, 0.3, STD)
    one, shared = (ss.Prior(score, sde, (2,), mesh=each) for each in (None, mesh))
    y = jnp.array([[0.3], [1.0], [-0.5]])

    def results(prior):
        x = prior.sample((7,), seed=1, batch_size=4)
        logp, error = prior.log_prob(x, trace="Rademacher", probes=1, return_error=True)
        assert np.isnan(error).all()  # One probe says nothing about its error.
        posterior = prior.posterior(y, lambda x: x[:1], noise=0.2, method="moment_matching")
        return x, *prior.encode(x, return_nfe=True), logp, posterior.sample((2, 3))

    found, expected = results(shared), results(one)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)
    assert found[-1].shape == (2, 3, 3, 2)
    rest = one.sample(3, seed=1, first=4)
    np.testing.assert_allclose(rest, found[0][4:], atol=1e-4)


def test_interrupts_take_effect_between_steps(monkeypatch):
    """An exception of the progress bar stands for Ctrl-C; the next call is not affected."""
    prior, seen = gaussian_prior(), []
    expected = prior.sample(2, steps=50)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # A shell may ignore it.

    @contextlib.contextmanager
    def counting(text, total, unit):
        yield lambda step: seen.append(step) or (step == 3 and signal.raise_signal(signal.SIGINT))

    with monkeypatch.context() as patch:
        patch.setattr(progress, "counting", counting)
        with pytest.raises(KeyboardInterrupt):
            prior.sample(2, steps=50)
    signal.signal(signal.SIGINT, before)
    assert seen == [0, 1, 2, 3]
    np.testing.assert_array_equal(prior.sample(2, steps=50), expected)


@pytest.mark.parametrize("name", ["vpsde", "subvpsde", "vesde"])
def test_default_sampler_is_within_one_percent_of_closed_forms(name):
    """A Gaussian, two modes and heavy tails, as the entries of one event."""
    sde = SDES[name]()
    weights = np.array([[1, 0, 0], [0.7, 0.3, 0], [0.8, 0.15, 0.05]], np.float32)
    means = np.array([[0, 0, 0], [-1, 1, 0], [0, 0, 0]], np.float32)
    stds = np.array([[0.5, 1, 1], [0.3, 0.3, 1], [0.25, 0.7, 2]], np.float32)

    def log_density(x, t):  # of events (3,)
        alpha, var = sde.alpha(t), sde.alpha(t) ** 2 * stds**2 + sde.var(t)
        logs = -jnp.square(x[:, None] - alpha * means) / (2 * var) - jnp.log(var) / 2
        return jax.scipy.special.logsumexp(logs, 1, weights).sum()

    prior = ss.Prior(jax.vmap(jax.grad(log_density)), sde, (3,))
    x = np.asarray(prior.sample(200_000, seed=0, batch_size=200_000))
    mean = (weights * means).sum(1)
    std = np.sqrt((weights * (stds**2 + means**2)).sum(1) - mean**2)
    np.testing.assert_allclose(x.std(0), std, rtol=0.01)
    np.testing.assert_allclose(x.mean(0), mean, atol=0.01)
    np.testing.assert_allclose((x[:, 1] > 0).mean(), 0.3, atol=0.006)


def test_error_of_samples():
    """It is above the true one, that of many steps, and less than 30 times as large."""
    prior = gaussian_prior()
    x, stated = prior.sample((40, 5), seed=0, return_error=True)
    exact = prior.sample((40, 5), seed=0, sampler="dpm++_3m", steps=400)
    true = np.sqrt(np.mean(np.square(x - exact), -1))
    assert stated.shape == (40, 5)
    assert 1 < float(np.sqrt(np.mean(stated**2) / np.mean(true**2))) < 30
    for sampler in ("pc", "dpm++_2m_sde", "ode"):
        refused(f"{re.escape(sampler)}.*dpm", prior.sample, 3, sampler=sampler, return_error=True)


# --- stated errors of densities contain those of p_T and of the noise at t_min ------------------


def one_mode(mean, std, dims=8) -> mixture.Mixture:
    """One Gaussian as a mixture of three, so that cases share programs."""
    return mixture.Mixture(jnp.full((3, dims), mean), jnp.full(3, std))


def scaled(factor, dims=8):
    law = mixture.make(3, (dims,))
    return mixture.Mixture(law.means * factor, law.stds * factor)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sde", "law", "trace", "largest"),
    [
        (ss.VPSDE(), one_mode(0.3, 0.5), "exact", 0.02),
        (ss.VPSDE(), one_mode(10.0, 1.0), "exact", 0.3),
        (ss.VPSDE(), one_mode(0.0, 100.0), "exact", 2),
        (ss.VESDE(), one_mode(0.3, 0.01, 64), "Rademacher", 10),
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
