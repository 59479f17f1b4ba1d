"""Samplers by name: counted evaluations, options that reach the sampler, steps, the last step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sampling
from experiment import Experiment
from sde_lib import VESDE, VPSDE
from tests import gaussian, tiny
from tests.refusal import refused

SDE = VESDE(sigma_max=5.0)
KEYS = sampling.image_keys(jax.random.key(0), jnp.arange(2))
PRIOR = sampling.prior_sample(KEYS, SDE, (2, 20, 20, 1))
SCORE = gaussian.score(SDE, 0.4, 0.3)
LEVELS = sampling.Defaults(levels=4, options={"tolerance": 0.1, "corrector": "ald"})


@functools.partial(jax.jit, static_argnames=("name", "steps", "options"))
def _sample(keys, prior, name, steps, options):
    return sampling.make(name, SDE, steps, defaults=LEVELS, **dict(options))(keys, SCORE, prior)


def sample(name, steps=None, **options):
    """Samples, by 'pc' and the last step of 'ode' with four steps."""
    return _sample(KEYS, PRIOR, name, steps, tuple(options.items()))


# --- names, steps and options -----------------------------------------------------------------


def test_which_steps_are_taken():
    """Those given, else those of the defaults, else 20 for a few-step solver and `levels`."""
    for name in sampling.kinds():
        made = sampling.make(name, VPSDE(), defaults=sampling.Defaults(levels=50))
        adaptive = name in ("ode", "adaptive_sde")
        expected = 50 if name == "pc" else 20
        assert made.steps is None if adaptive else made.steps >= expected, name
        if not adaptive:
            assert str(expected) in made.title
            assert sampling.make(name, VPSDE(), 30).title != made.title
    defaults = sampling.Defaults("deis", steps=9, options={"schedule": "karras", "snr": 3.0})
    made = sampling.make(None, VPSDE(), defaults=defaults)
    assert made.steps == 9
    assert "'deis'" in made.title
    assert "'karras'" in made.title
    assert made is sampling.make("deis", VPSDE(), 9, schedule="karras")


@pytest.mark.parametrize(
    ("method", "num_steps", "steps"),
    [("pc", 0, 21), ("pc", 50, 50), ("solver", 0, 20), ("solver", 9, 9), ("ode", 9, None)],
)
def test_the_steps_of_a_config(method, num_steps, steps):
    """sampling.num_steps = 0 means model.num_scales for pc, and 20 for solvers."""
    config = tiny.config(**{"sampling.method": method, "sampling.num_steps": num_steps})
    config.sampling.predictor = "reverse_diffusion"
    assert Experiment(config).sampler.steps == steps


@pytest.mark.parametrize(
    ("name", "steps", "options", "message"),
    [
        ("heun_2", None, {}, "sampler = 'heun_2' must be one of adaptive_sde, ddim"),
        ("ode", 5, {}, "steps = 5: the sampler 'ode' chooses its steps"),
        ("deis", 0, {}, "steps = 0 must be an integer from 1 to"),
        ("deis", 5, {"snr": 0.1}, "snr = 0.1 has no effect on the sampler 'deis'"),
        ("heun", 5, {"second_point": 0.0}, "second_point = 0.0 must be a finite number, above 0"),
        ("pc", 50, {"predictor": "none", "probability_flow": True}, "'none' has no such form"),
        ("heun_churn", 5, {"churn_interval": (2.0, 1.0)}, "the lower noise level before the"),
    ],
)
def test_invalid_arguments(name, steps, options, message):
    refused(message, sampling.make, name, VPSDE(), steps, **options)


# --- evaluations and samples ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected", "options"),
    [
        ("pc", 16, {"predictor": "reverse_diffusion", "corrector": "ald", "n_steps_each": 3}),
        ("pc", 4, {"predictor": "ancestral_sampling", "corrector": "none", "n_steps_each": 3}),
        ("pc", 8, {"predictor": "none", "corrector": "langevin_per_image", "n_steps_each": 2}),
        ("unipc_3", 4, {}),
        ("restart", 11, {}),
        ("ode", None, {"noise_removal": True}),
        ("adaptive_sde", None, {}),
    ],
)
def test_evaluations_are_counted(name, expected, options):
    """The reported evaluations are the calls of the score for a batch of one image."""
    sampler = sampling.make(name, SDE, None if expected is None else 4, defaults=LEVELS, **options)
    calls = []

    def score(x, t):
        jax.debug.callback(lambda: calls.append(1))
        return SCORE(x, t)

    result = jax.jit(lambda keys, x: sampler(keys, score, x))(KEYS[:1], PRIOR[:1])
    jax.block_until_ready(result)
    jax.effects_barrier()
    assert result.nfe.tolist() == [len(calls)]
    assert expected in (None, len(calls))


@pytest.mark.slow
def test_noise_removal():
    """Without it, samples keep the noise of the last step or the noise at t_end."""

    def drawn(name, noise_removal, steps=None):
        return sample(name, steps, noise_removal=noise_removal).x

    t_end, steps = jnp.full(2, SDE.t_end), SDE.discretize(4)
    noise = drawn("pc", False) - drawn("pc", True)
    assert float(noise.std()) == pytest.approx(float(jnp.sqrt(steps.var[-1])), rel=0.1)

    x = drawn("ode", False)
    np.testing.assert_allclose(x, gaussian.flow(SDE, 0.4, 0.3, PRIOR, 1, SDE.t_end), atol=1e-3)
    denoised = x + steps.var[-1] * SCORE(x, t_end)
    np.testing.assert_allclose(drawn("ode", True), denoised, atol=1e-6)

    # The grid of n steps that end at level 0 is that of n - 1 steps to t_end, and one more step.
    for name, few, more in (("adaptive_sde", None, None), ("deis", 4, 5)):
        x = drawn(name, False, few)
        denoised = SDE.posterior_mean(SCORE(x, t_end), x, t_end)
        assert np.abs(x - denoised).max() > 1e-4
        np.testing.assert_allclose(drawn(name, True, more), denoised, atol=1e-5)


def test_the_flow_and_the_trajectory_of_predictors():
    """Without noise, samples depend on the prior only. Frames end before the noise is removed."""
    options = (("predictor", "reverse_diffusion"), ("corrector", "none"), ("trajectory", True))
    for flow in (True, False):
        given = (*options, ("probability_flow", flow))
        one, other = (_sample(keys, PRIOR, "pc", 20, given) for keys in (KEYS, KEYS[::-1]))
        assert one.frames.shape == (16, *PRIOR.shape)
        assert np.array_equal(one.x, other.x) == flow
        assert np.abs(one.frames[-1] - one.x).max() < 0.2
