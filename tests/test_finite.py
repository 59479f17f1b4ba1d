"""Samplers whose states become infinite or NaN: the step is reported, and nothing is shown."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sampling
import solvers
from api.execution import check_finite
from commands import latents, restoration
from experiment import Experiment
from metrics import samples_stage
from metrics.stage import Context
from sde_lib import VPSDE
from tests import gaussian, tiny
from tests.refusal import refused

HEUN = {"sampling.method": "solver", "sampling.solver": "heun", "sampling.num_steps": 5}
HEUN |= tiny.MLP


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


def test_the_first_bad_step_of_the_predictor_corrector_loop():
    """The other images keep their values, up to rounding."""
    sde, steps = VPSDE(), VPSDE().discretize(40)
    keys, x = start(sde)
    options = {"corrector": sampling.CORRECTORS["langevin_per_image"]}

    @functools.partial(jax.jit, static_argnums=0)
    def run(score):
        return sampling.predictor_corrector(keys, score, sde, x, steps, **options)

    below = float(steps.t[12]) + 1e-4  # t falls: the score fails from step 13 on.
    y, _, bad_step = run(failing(sde, below, slice(1, 3)))
    assert bad_step.tolist() == [0, 13, 13, 0]
    exact, _, none = run(failing(sde, 0.0))
    np.testing.assert_allclose(y[jnp.array([0, 3])], exact[jnp.array([0, 3])], rtol=1e-5)
    assert none.tolist() == [0] * 4


@pytest.mark.parametrize(
    ("name", "steps", "evaluations"),
    [("pc", 21, 21), ("heun", 5, 9), ("ode", None, None), ("adaptive_sde", None, None)],
)
def test_samplers(name, steps, evaluations):
    """Every sampler marks the images that fail; an ODE is solved image by image, so all fail."""
    options = {"corrector": "none"} if name == "pc" else {}  # Langevin steps couple the images.
    sampler = sampling.make(name, VPSDE(), steps, **options)
    assert sampler.steps == evaluations
    keys, x = start(VPSDE(), 3)
    x = x.reshape(3, 2, 2, 1)
    samples = jax.jit(lambda: sampler(keys, failing(VPSDE(), 0.5, slice(1)), x))()
    expected = [True] * 3 if name == "ode" else [True, False, False]
    assert np.isnan(samples.x).all((1, 2, 3)).tolist() == expected
    assert (samples.bad_step > 0).tolist() == expected
    assert samples.bad_step[0] <= (evaluations or 1)
    assert samples.nfe.max() < 1000  # 20,000 evaluations if adaptive steps did not stop.


def test_messages():
    """One line names the number of failed images, the first step, the sampler, and what to do."""
    for name, steps, expected in (
        ("pc", 21, "2 of 3 .*at step 4 of 21.*'langevin'.*steps, now 21.*snr = 0.16"),
        ("adaptive_sde", None, "2 of 3 .*'adaptive_sde'.*raise tolerance = 0.02"),
    ):
        sampler = sampling.make(name, VPSDE(), steps)
        check_finite(np.zeros(3, int), sampler)
        refused(expected, check_finite, np.array([6, 0, 4]), sampler)


# --- commands -------------------------------------------------------------------------------------


@pytest.fixture
def _failing_network(monkeypatch):
    """All scores of networks are NaN."""

    monkeypatch.setattr("experiment.network_score", lambda model, graph, params, x, *_: x * jnp.nan)


@pytest.mark.usefixtures("_failing_network")
def test_results_of_commands_are_not_written(tmp_path):
    context = Context(Experiment(tiny.config(**HEUN, **{"eval.batch_size": 4})), {}, tmp_path)
    refused("4 of 4 .*at evaluation 1 of 9", samples_stage.run, context)
    assert not list(tmp_path.iterdir())
    workdir = tiny.untrained(tmp_path, **tiny.MLP)
    changes = {"restore.count": 2, "restore.samples": 1, "restore.method": "pigdm"}
    for command, config in (
        (latents.encode, tiny.config(**HEUN)),
        (restoration.restore, tiny.config(**HEUN, **changes)),
    ):
        refused("are not finite", command, config, str(workdir))
    for pattern in ("latents/*/*", "restore/**/*.png", "restore/**/samples*"):
        assert not list(workdir.glob(pattern))
