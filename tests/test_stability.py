"""Samplers whose steps are too long are reported before they run; the others keep Gaussians."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sampling
import solvers
from commands.samples import sample
from experiment import Experiment
from sde_lib import SDES, VESDE, VPSDE
from solvers.plan import plan_growth
from solvers.predictor_corrector import predictor_growth
from tests import gaussian, tiny
from tests.refusal import refused
from tests.test_sampling import Cosine

DATA_STD = 0.5


def draw(sde, run):
    """States of 16 images of 1,024 entries, for data N(0, DATA_STD^2 I)."""
    keys = sampling.image_keys(jax.random.key(0), jnp.arange(16))
    score = gaussian.score(sde, 0.0, DATA_STD)
    return jax.jit(lambda keys, x: run(keys, score, x))(
        keys, sampling.prior_sample(keys, sde, (16, 1024))
    )


def deviations(sde, states, times):
    """Their std, relative to the exact one, which at the end is that of the data."""
    exact = [float(np.hypot(sde.alpha(t) * DATA_STD, sde.std(t))) for t in jnp.asarray(times)]
    return np.asarray(states).std(axis=(1, 2)) / np.array([*exact, DATA_STD])


@pytest.mark.parametrize(
    ("sde", "name"),
    [
        (VPSDE(), "ancestral_sampling"),
        (VESDE(), "reverse_diffusion"),
        (Cosine(), "euler_maruyama"),
    ],
)
def test_predictors(sde, name):
    """The closed form is the std of simulated states, also where the sampler is unstable."""
    steps, predictor = sde.discretize(30), sampling.PREDICTORS[name]
    options = {"predictor": predictor, "shown": range(30), "denoise": False}
    _, frames, _ = draw(
        sde,
        lambda keys, score, x: sampling.predictor_corrector(keys, score, sde, x, steps, **options),
    )
    found = predictor_growth(sde, predictor, steps, DATA_STD).stds
    simulated = deviations(sde, frames, steps.t[1:])
    np.testing.assert_allclose(found, simulated, rtol=0.03)  # 16,384 numbers: 0.6 %; noise: 3 %.
    assert (found.max() > 3) == (name == "euler_maruyama" and isinstance(sde, Cosine))


@pytest.mark.parametrize("name", ["dpm++_2m_sde", "unipc_3", "restart"])
def test_solvers(name):
    sde, solver = VPSDE(), solvers.SOLVERS[name]
    defaults = tiny.config().sampling
    levels = solvers.noise_levels(sde, "log_snr", 12)
    plan = solver.plan(levels, **{field: defaults[field] for field in solver.options})
    prediction = {"noise_prediction": solver.noise_prediction}
    _, states = draw(
        sde,
        lambda keys, score, x: solvers.few_step(keys, score, sde, x, plan, 0.0, **prediction),
    )
    found, errors = plan_growth(plan, DATA_STD, **prediction)
    # A state is at the level of the next row, before that row adds noise.
    following = np.append(plan.level[1:] ** 2 - plan.added_noise[1:] ** 2, 0).clip(0)
    alphas = np.append(sde.alpha(sde.time_at(jnp.asarray(plan.level[1:]))), 1.0)
    simulated = np.asarray(states).std(axis=(1, 2)) / alphas / np.sqrt(DATA_STD**2 + following)
    np.testing.assert_allclose(found, simulated, rtol=0.03)
    assert found.max() < 1.5
    assert errors.max() < 10


@pytest.fixture
def cosine(monkeypatch):
    """A config of an SDE that is new to the project; beta dt is about 8 near T."""
    monkeypatch.setitem(SDES, "cosine", Cosine)
    return functools.partial(tiny.config, **{"training.sde": "cosine", "model.num_scales": 250})


def test_unstable_samplers_are_refused(cosine, tmp_path):
    """Before anything is computed or written, and with the step."""
    message = r"step 1 of 250 of the sampler is unstable: .* have 4\.1\d times .*raise the number"
    experiment = Experiment(cosine())
    refused(message, experiment.draw_images, experiment.trained_model({}), 0, 1)
    refused(message, sample, cosine(), str(tmp_path), 1)
    assert not list(tmp_path.iterdir())


def test_stable_samplers_and_one_that_multiplies_errors_of_the_network(caplog):
    """One step in time of this SDE leads from noise level 637 to 12, with the errors of 637."""
    for name in ("dpm++_2m_sde", "deis", "ode"):
        sampling.make(name, Cosine()).check_stable()
    for predictor in ("reverse_diffusion", "ancestral_sampling"):
        sampling.make("pc", Cosine(), 250, predictor=predictor).check_stable()
    assert not caplog.text
    sampler = sampling.make("deis", Cosine(), schedule="time")
    for _ in range(2):
        sampler.check_stable()
    assert len(caplog.records) == 1  # Each round of a command checks.
    assert "step 1 of 20 of the sampler multiplies errors of the network by 52.6" in caplog.text
    assert "another solver than 'deis' or schedule than 'time'" in caplog.text


@pytest.mark.parametrize("noise_prediction", [False, True])
def test_growth_of_errors(noise_prediction):
    """One DDIM step from level s to level 0 leaves s times the error of the predicted noise."""
    plan = solvers.SOLVERS["ddim"].plan(np.array([3.0, 0.0]))
    if noise_prediction:  # y - 3 m is the same step.
        plan = plan._replace(predictor_state=np.ones(1), predictor_weights=np.full((1, 1), -3.0))
    found = plan_growth(plan, DATA_STD, noise_prediction=noise_prediction)
    assert found.errors == pytest.approx(3.0 / DATA_STD)
    long = solvers.SOLVERS["ddim"].plan(np.geomspace(80, 0.01, 1200))  # It is not checked.
    assert plan_growth(long, DATA_STD).stds.size == 0


def test_a_plan_that_multiplies_its_states():
    """A step that extrapolates beyond its data is reported as well."""
    levels = np.array([10.0, 5.0, 1.0, 0.0])
    plan = solvers.SOLVERS["ddim"].plan(levels)
    plan = plan._replace(predictor_state=5 * plan.predictor_state)
    growth = functools.partial(plan_growth, plan, DATA_STD)
    sampler = sampling.Sampler(lambda keys, score: None, 3, "", growth, "do something else")
    refused("step 1 of 3 .*do something else.", sampler.check_stable)
    assert growth().stds[0] == pytest.approx(5, rel=0.2)
