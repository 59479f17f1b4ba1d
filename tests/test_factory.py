"""Samplers from configs: counted evaluations, options that reach the sampler, and the last step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import experiment
import sampling
from sde_lib import VESDE
from tests import gaussian, tiny

SDE = VESDE(sigma_max=5.0)
KEYS = sampling.image_keys(jax.random.key(0), jnp.arange(2))
PRIOR = sampling.prior_sample(KEYS, SDE, (2, 20, 20, 1))
SCORE = gaussian.score(SDE, 0.4, 0.3)
METHODS = {
    "pc": {"sampling.predictor": "reverse_diffusion", "sampling.corrector": "ald"},
    "ode": {"sampling.method": "ode"},
    "deis": {"sampling.method": "solver", "sampling.solver": "deis", "sampling.num_steps": 5},
    "adaptive_sde": {"sampling.method": "solver", "sampling.solver": "adaptive_sde"},
}


def sample(score=SCORE, keys=KEYS, prior=PRIOR, **changes):
    """Samples by a config with four steps and with `changes` by field name."""
    config = tiny.config(**{"model.num_scales": 4, "sampling.tolerance": 0.1, **changes})
    return experiment.make_sampler(config, SDE)(keys, score, prior)


@pytest.mark.parametrize(
    ("predictor", "corrector", "n_steps_each", "expected"),
    [
        ("reverse_diffusion", "ald", 3, 16),
        ("euler_maruyama", "langevin", 1, 8),
        ("ancestral_sampling", "none", 3, 4),
        ("none", "langevin_per_image", 2, 8),
    ],
)
def test_evaluations_of_predictor_and_corrector(predictor, corrector, n_steps_each, expected):
    """Each of the four steps has one evaluation for the predictor and one for each correction."""
    calls = []

    def score(x, t):
        calls.append(t)
        return SCORE(x, t)

    changes = {"sampling.predictor": predictor, "sampling.corrector": corrector}
    with jax.disable_jit():
        result = sample(score, **changes, **{"sampling.n_steps_each": n_steps_each})
    assert result.nfe.tolist() == [len(calls)] * 2 == [expected] * 2


@pytest.mark.parametrize("noise_removal", [True, False])
@pytest.mark.parametrize("name", ["ode", "adaptive_sde"])
def test_evaluations_of_adaptive_steps(name, noise_removal):
    """The reported evaluations are the calls of the score for a batch of one image."""
    calls = []

    def score(x, t):
        jax.debug.callback(lambda: calls.append(1))
        return SCORE(x, t)

    changes = {**METHODS[name], "sampling.noise_removal": noise_removal}
    result = jax.jit(lambda keys, prior: sample(score, keys, prior, **changes))(KEYS[:1], PRIOR[:1])
    jax.effects_barrier()
    jax.block_until_ready(result)
    assert result.nfe.tolist() == [len(calls)]


def test_options_of_the_corrector():
    """The sampler of a config is `predictor_corrector` with the config's values."""
    results = []
    for snr, n_steps_each in ((0.1, 1), (0.2, 1), (0.1, 3)):
        changes = {"sampling.snr": snr, "sampling.n_steps_each": n_steps_each}
        expected, *_ = sampling.predictor_corrector(
            KEYS,
            SCORE,
            SDE,
            PRIOR,
            SDE.discretize(4),
            predictor=sampling.reverse_diffusion,
            corrector=sampling.annealed_langevin,
            snr=snr,
            n_steps_each=n_steps_each,
        )
        results.append(sample(**METHODS["pc"], **changes).x)
        np.testing.assert_allclose(results[-1], expected, rtol=1e-5)
    assert np.abs(results[0] - results[1]).max() > 0.01
    assert np.abs(results[0] - results[2]).max() > 0.01


def test_noise_removal():
    """Without it, samples keep the noise of the last step or the noise at t_end."""

    def samples(name, noise_removal, num_steps=5):
        changes = {"sampling.num_steps": num_steps, "sampling.noise_removal": noise_removal}
        return sample(**METHODS[name] | changes).x

    t_end, steps = jnp.full(2, SDE.t_end), SDE.discretize(4)
    noise = samples("pc", False) - samples("pc", True)
    assert float(noise.std()) == pytest.approx(float(jnp.sqrt(steps.var[-1])), rel=0.1)

    x = samples("ode", False)
    np.testing.assert_allclose(x, gaussian.flow(SDE, 0.4, 0.3, PRIOR, 1, SDE.t_end), atol=1e-3)
    denoised = x + steps.var[-1] * SCORE(x, t_end)
    np.testing.assert_allclose(samples("ode", True), denoised, atol=1e-6)

    # The grid of n steps that end at level 0 is that of n - 1 steps to t_end, and one more step.
    for name in ("adaptive_sde", "deis"):
        x = samples(name, False, num_steps=4)
        denoised = SDE.posterior_mean(SCORE(x, t_end), x, t_end)
        assert np.abs(x - denoised).max() > 1e-4
        np.testing.assert_allclose(samples(name, True), denoised, atol=1e-5)
