"""Samplers whose states become infinite or NaN: the step is reported, and nothing is shown."""

import argparse

import factory
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sampling
import solvers
import training
from commands import latents, restoration
from configs import remedies
from errors import InputError, NotFiniteError
from experiment import Experiment
from metrics import samples_stage
from metrics.stage import Context
from report.training_log import TrainingLog
from sde_lib import VPSDE
from solvers.finite import note_bad
from tests import gaussian, tiny

HEUN = {"sampling.method": "solver", "sampling.solver": "heun", "sampling.num_steps": 5}


def failing(sde, below, images=slice(None)):
    """The score of a Gaussian, NaN at times below `below` for some of the images."""
    exact = gaussian.score(sde, 0.4, 0.3)

    def score(x, t):
        chosen = jnp.zeros(len(x), bool).at[images].set(True) & (t < below)
        return jnp.where(chosen.reshape(-1, *[1] * (x.ndim - 1)), jnp.nan, exact(x, t))

    return score


def start(sde, count=4):
    keys = sampling.image_keys(jax.random.key(0), jnp.arange(count))
    return keys, sampling.prior_sample(keys, sde, (count, 4))


def test_bad_steps_by_definition():
    """Image 0 is finite, 1 is infinite after step 2, 2 is NaN after step 3 only."""
    states = np.zeros((4, 3, 2), np.float32)
    states[1:, 1, 0], states[2, 2, 1] = np.inf, np.nan
    bad_step = jnp.zeros(3, int)
    for index, x in enumerate(states):
        bad_step = note_bad(bad_step, jnp.asarray(x), index + 1)
    assert bad_step.tolist() == [0, 2, 3]


def test_the_first_bad_row_of_a_plan():
    """A score that fails below a time fails first in the row that evaluates it there."""
    sde = VPSDE()
    levels = solvers.noise_levels(sde, "log_snr", 8)
    plan = solvers.SOLVERS["dpm++_2m"].plan(levels)
    keys, x = start(sde)
    times = np.asarray(sde.time_at(jnp.asarray(plan.level)))
    score = failing(sde, below=(times[4] + times[5]) / 2, images=slice(1, None, 2))
    loop = solvers.few_step_loop(keys, score, sde, plan, levels[-1])
    _, frames, bad_row = jax.jit(lambda x: loop.run(x))(x)
    assert bad_row.tolist() == [0, 6, 0, 6]
    assert len(frames) == 0


@pytest.mark.parametrize("corrector", ["none", "langevin_per_image"])
def test_the_first_bad_step_of_the_predictor_corrector_loop(corrector):
    """The other images keep their values, up to rounding."""
    sde, steps = VPSDE(), VPSDE().discretize(40)
    keys, x = start(sde)
    options = {"corrector": sampling.CORRECTORS[corrector]}
    run = jax.jit(
        lambda score: sampling.predictor_corrector(keys, score, sde, x, steps, **options),
        static_argnums=0,
    )
    below = float(steps.t[12]) + 1e-4  # t falls: the score fails from step 13 on.
    y, _, bad_step = run(failing(sde, below, slice(1, 3)))
    assert bad_step.tolist() == [0, 13, 13, 0]
    exact, _, none = run(failing(sde, 0.0))
    np.testing.assert_allclose(y[jnp.array([0, 3])], exact[jnp.array([0, 3])], rtol=1e-5)
    assert none.tolist() == [0] * 4


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({"sampling.method": "pc"}, 21),
        ({"sampling.method": "solver", "sampling.solver": "deis", "sampling.num_steps": 7}, 7),
        (HEUN, 9),
        ({"sampling.method": "ode"}, None),
        ({"sampling.method": "solver", "sampling.solver": "adaptive_sde"}, None),
    ],
    ids=["pc", "deis", "heun", "ode", "adaptive"],
)
def test_samplers_of_configs(changes, steps):
    """Every sampler marks the images that fail; an ODE is solved image by image, so all fail."""
    sde = VPSDE()
    sampler = factory.make_sampler(tiny.config(**changes), sde)
    assert sampler.steps == steps
    keys, x = start(sde, 3)
    x = x.reshape(3, 2, 2, 1)
    samples = jax.jit(lambda: sampler(keys, failing(sde, 0.5, slice(1)), x))()
    expected = [True] * 3 if changes["sampling.method"] == "ode" else [True, False, False]
    assert np.isnan(samples.x).all((1, 2, 3)).tolist() == expected
    assert (samples.bad_step > 0).tolist() == expected
    assert samples.bad_step[0] <= (steps or 1)


def test_the_adaptive_solver_stops_when_only_failed_images_are_left():
    sde = VPSDE()
    keys, x = start(sde, 2)
    y, nfe = solvers.adaptive_sde(keys, failing(sde, 0.5), sde, x)
    assert np.isnan(y).all()
    assert nfe.max() < 1000  # 20,000 evaluations without this rule


@pytest.mark.parametrize(
    ("changes", "steps", "expected"),
    [
        (
            {"sampling.method": "pc", "sampling.corrector": "langevin"},
            21,
            r"2 of 3 images are not finite; the first failed at step 4 of 21\. The "
            r"sampler is predictor '\w+' and corrector 'langevin', 21 steps\. To correct it: raise "
            r"model\.num_scales = 21, or lower sampling\.snr = 0\.16, or choose another",
        ),
        (
            HEUN,
            9,
            r"at evaluation 4 of 9\. The sampler is 'heun', 5 steps .*num_steps = 5",
        ),
        ({"sampling.method": "ode"}, None, "the solver did not converge.*probability-flow ODE"),
        (
            {"sampling.method": "solver", "sampling.solver": "adaptive_sde"},
            None,
            r"did not converge\. The sampler is 'adaptive_sde', .*sampling\.tolerance = 0\.02",
        ),
        ({"guidance.classes": (1,), "guidance.scale": 9.0}, 21, r"lower guidance\.scale = 9\.0"),
        ({"sampling.temperature": 2.0}, 21, r"lower sampling\.temperature = 2"),
    ],
)
def test_messages(changes, steps, expected):
    config = Experiment(tiny.config(**changes)).config
    unit = Experiment(config).sampler.unit
    remedies.check_samples(config, np.zeros(3, int), steps, unit)
    with pytest.raises(NotFiniteError, match=expected) as raised:
        remedies.check_samples(config, np.array([6, 0, 4]), steps, unit)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("method", ["pc", "ode"])
def test_latent_codes_need_the_probability_flow(method):
    config = Experiment(tiny.config(**{"sampling.method": method})).config
    message = "the probability-flow ODE with adaptive steps.*set sampling.method = 'solver'"
    with pytest.raises(NotFiniteError, match=message):
        remedies.check_samples(config, np.ones(2), None, codes=True)


def test_the_scale_of_the_ve_sde_is_named():
    config = Experiment(tiny.config("ve.digits_ncsnpp_continuous")).config
    with pytest.raises(NotFiniteError, match=r"check that model\.sigma_max = [0-9.]+ is that of"):
        remedies.check_samples(config, np.ones(2), 21)


# --- commands -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A workdir whose checkpoint 3 has NaN parameters."""
    return tiny.untrained(tmp_path_factory.mktemp("nan"), scale=np.nan)


def test_evaluation_writes_no_samples(tmp_path):
    experiment = Experiment(tiny.config(**HEUN, **{"eval.batch_size": 4}))
    params = jax.tree.map(lambda a: np.full(a.shape, np.nan, a.dtype), experiment.abstract_params)
    with pytest.raises(InputError, match="4 of 4 images are not finite.*at evaluation 1 of 9"):
        samples_stage.run(Context(experiment, params, tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [latents.encode, latents.interpolate])
def test_latent_codes_are_not_written(workdir, command):
    with pytest.raises(InputError, match="images are not finite"):
        command(tiny.config(**HEUN), str(workdir))
    assert not list((workdir / "latents").glob("*/*"))


def test_reconstructions_are_not_written(workdir):
    changes = {"restore.count": 2, "restore.samples": 1, "restore.method": "moment_matching"}
    with pytest.raises(InputError, match="choose another restore.method than 'moment_matching'"):
        restoration.restore(tiny.config(**HEUN, **changes), str(workdir))
    assert not list(workdir.glob("restore/**/*.png"))
    assert not list(workdir.glob("restore/**/answers*"))


def test_training_goes_on_without_samples(tmp_path, capsys):
    def sample_images(params, first, count):
        remedies.check_samples(config, np.ones(count), 21)

    config = Experiment(tiny.config()).config
    with TrainingLog(tmp_path, 2, 4, batch_size=8) as log:
        training.loop._show_samples(argparse.Namespace(sample_images=sample_images), {}, log)
    assert not (tmp_path / "samples").exists()
    assert "step 2: warning: no picture of samples: 64 of 64 images" in capsys.readouterr().out
