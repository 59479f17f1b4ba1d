"""Fitted noise levels: the dynamic program, closed forms for Gaussian data, and their use."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import score_sde as ss
import solvers
from commands import samples, schedules
from loading import schedules_of
from sde_lib import EDMSDE, VESDE, VPSDE
from solvers.fitting import Reference, best_path, step_errors
from tests import gaussian, tiny
from tests.refusal import refused

STD = np.geomspace(0.1, 1, 12)
FAST = {"sampling.method": "solver", "sampling.num_steps": 4}


def test_the_best_path():
    """It costs no more than any other of as many steps, where costs depend on the level before."""
    n = 7
    costs = np.random.default_rng(0).random((n, n, n + 1))
    descending = np.arange(n)[:, None, None] < np.arange(n)[:, None]
    descending = descending & (np.arange(n)[:, None] < np.arange(n + 1))
    first = np.where(np.arange(n + 1) > 0, costs[0, 0], np.inf)
    costs = np.where(descending, costs, np.inf)
    costs[0, 0] = first
    for steps in (1, 2, 3, 5, 7):

        def cost(path):
            before = (path[0], *path[:-2])
            return sum(costs[index] for index in zip(before, path, path[1:]))

        paths = [(0, *inner, n) for inner in itertools.combinations(range(1, n), steps - 1)]
        assert tuple(best_path(costs, steps)) == min(paths, key=cost)


def test_errors_of_steps():
    """Those of 'ddim' and of the first step of the SDE for Gaussian data, in closed form."""
    levels, data_std = np.array([5.0, 2.0, 0.7, 0.1]), 0.5
    z = np.random.default_rng(0).normal(size=(3, 40, 2))
    total = np.hypot(data_std, levels)
    states = total[:, None, None] * z[0]
    share = (data_std / total) ** 2
    denoised = share[:, None, None] * states
    variance = states[0].var(0).mean() / total[0] ** 2
    given = Reference(levels, states, denoised, 1)
    found = step_errors(solvers.SOLVERS["ddim"].plan, given, noise_prediction=False)
    rms, after = np.sqrt(np.mean(z[0] ** 2)), np.append(total, share[-1] * total[-1])
    for h, i, j in [(0, 0, 1), (0, 0, 3), (0, 1, 2), (1, 2, 3), (0, 2, 4)]:
        ratio = np.append(levels, 0)[j] / levels[i]
        error = abs(ratio + (1 - ratio) * share[i] - after[j] / total[i]) * total[i] * rms
        assert found[h, i, j] == pytest.approx(error * after[-1] / after[j], rel=1e-6)
    assert variance > 0
    assert np.isinf(found[1, 1, 2])
    assert np.isinf(found[0, 2, 1])


def test_states_without_noise():
    """With a constant prediction d, the mean of the reverse SDE is d (1 - (s / s_0)^2)."""
    levels, d = np.array([9.0, 4.0, 1.5, 0.3]), np.random.default_rng(0).normal(size=(1, 8, 3))
    found = Reference(levels, np.zeros((4, 8, 3)), np.repeat(d, 4, 0), 2).without_noise()
    np.testing.assert_allclose(found, d * (1 - (levels[:, None, None] / 9) ** 2), atol=1e-12)


@pytest.mark.parametrize("name", ["ddim", "dpm++_3m", "dpm++_2m_sde", "unipc_2", "unipc_3", "deis"])
def test_errors_follow_from_plans(name):
    """Each is that of the last row of the plan of the levels [h, i, j], executed."""
    solver, rng, n = solvers.SOLVERS[name], np.random.default_rng(0), 5
    levels, decay = np.array([9.0, 4.0, 1.5, 0.3, 0.1]), 2 if solver.stochastic else 1
    y, data = rng.normal(size=(2, n, 8, 3))
    given = Reference(levels, y, data, decay)
    found = step_errors(solver.plan, given, noise_prediction=solver.noise_prediction)
    moved = np.concatenate([given.without_noise(), data[-1:]])
    predicted = (y - data) / levels[:, None, None] if solver.noise_prediction else data
    variances = [each.var(0).mean() for each in (*y, data[-1])]
    ends = np.append(levels, 0)
    steps = [(0, 0, j) for j in range(1, n + 1)] + list(itertools.combinations(range(n + 1), 3))
    for h, i, j in steps:
        plan = solver.plan(ends[[h, i, j] if i else [i, j]])
        c = type(plan)(*(np.append(leaf[-1], 0.0) for leaf in plan))
        latest = predicted[[i, h]]
        state = c.corrector_state[0] * y[i] + c.corrector_previous[0] * y[h]
        state = state + np.tensordot(c.corrector_weights[:2], latest, 1)
        state = c.predictor_state[0] * state + np.tensordot(c.predictor_weights[:2], latest, 1)
        natural = (ends[j] / ends[i]) ** decay
        error = state - natural * (y[i] - moved[i]) - moved[j]
        expected = np.sqrt(np.mean(error**2) * (variances[-1] / variances[j]) ** decay)
        assert found[h, i, j] == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert np.isfinite(found).sum() == len(steps)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sde"),
    [("ddim", VPSDE()), ("unipc_2", VESDE(sigma_max=5.0)), ("deis", EDMSDE())],
)
def test_samples_of_gaussian_data(name, sde):
    """On the exact flow, six fitted steps have no larger an error than those of the default."""
    prior = ss.Prior(gaussian.score(sde, 0.0, STD), sde, STD.shape)
    levels = prior.fit_schedule(6, sampler=name).levels
    default = solvers.noise_levels(sde, "log_snr", 6)
    x = sde.prior_std * jax.random.normal(jax.random.key(0), (256, *STD.shape))
    exact = gaussian.flow(sde, np.zeros(12), STD, x, sde.T, sde.t_end)
    solver, errors = solvers.SOLVERS[name], []
    for each in (np.array(levels), default):
        plan = solver.plan(each)
        kind = {"noise_prediction": solver.noise_prediction}
        found = solvers.few_step(None, prior.score, sde, x, plan, 0.0, **kind)[0]
        errors.append(np.square(found - exact).mean())
    assert errors[0] <= errors[1]
    assert name != "ddim" or errors[0] < 0.9 * errors[1]
    drawn = prior.sample(8, sampler=name, steps=6)
    np.testing.assert_array_equal(drawn, prior.sample(8, sampler=name, schedule=levels))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return tiny.untrained(tmp_path_factory.mktemp("fitting"))


@pytest.mark.slow
def test_levels_are_stored(workdir, capsys):
    """`load` and --mode=sample use them for this solver and number of steps, and say so."""
    config = tiny.config(**FAST)
    before = np.load(samples.sample(config, str(workdir), 2) / "samples_0.npz")["samples"]
    assert "on the schedule 'log_snr'" in capsys.readouterr().out
    path = schedules.fit(config, str(workdir))
    assert path == workdir / "schedules.json" == schedules_of(workdir)
    levels = tuple(json.loads(path.read_text())[0]["levels"])
    assert len(levels) == 5
    model = ss.load(workdir)
    assert "noise levels of 'dpm++_2m_sde' with 4 steps" in capsys.readouterr().out
    default = model.make_sampler("dpm++_2m_sde", 4, schedule="log_snr")
    assert model.make_sampler("dpm++_2m_sde", 4) is not default
    assert model.make_sampler("dpm++_2m_sde", 4, fitted=False) is default
    for other in ({"name": "dpm++_2m_sde", "steps": 5}, {"name": "deis", "steps": 4}):
        assert "'log_snr'" in model.make_sampler(**other).title
    np.testing.assert_array_equal(
        model.sample(2, sampler="dpm++_2m_sde", steps=4),
        model.sample(2, sampler="dpm++_2m_sde", schedule=levels),
    )
    after = np.load(samples.sample(config, str(workdir), 2) / "samples_0.npz")["samples"]
    assert "steps on the noise levels" in capsys.readouterr().out
    assert (after != before).any()
    given = tiny.config(**FAST, **{"sampling.schedule": "karras"})
    samples.sample(given, str(workdir), 2, folder="given", given={"sampling.schedule"})
    assert "on the schedule 'karras'" in capsys.readouterr().out
    schedules.fit(config, str(workdir))  # Replaces the entry.
    assert len(json.loads(path.read_text())) == 1
    path.write_text(path.read_text().replace('"parameters": ', '"parameters": 1'))
    capsys.readouterr()
    assert ss.load(workdir).defaults.fitted == ()
    assert "not used, since other parameters were fitted" in capsys.readouterr().out
    path.write_text("[1]")
    refused("schedules.json is damaged: an entry of its content is of type int", ss.load, workdir)


@pytest.mark.parametrize(
    ("solver", "steps", "message"),
    [
        ("heun", 4, "sampler = 'heun': noise levels are fitted for solvers with one evaluation"),
        ("adaptive_sde", 4, "sampler = 'adaptive_sde': noise levels are fitted for solvers"),
        ("deis", 33, "steps = 33 must be from 2 to 32 for levels to be fitted"),
        ("deis", 1, "steps = 1 must be from 2 to 32 for levels to be fitted"),
    ],
)
def test_what_cannot_be_fitted(solver, steps, message, workdir):
    prior = ss.Prior(gaussian.score(VPSDE(), 0.0, STD), VPSDE(), STD.shape)
    refused(message, prior.fit_schedule, steps, sampler=solver)
    changes = {"sampling.solver": solver, "sampling.num_steps": steps}
    refused(message, schedules.fit, tiny.config(**changes), "nothing")


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ((5.0, 1.0, 1.0, 0.0), "must descend from 5, the noise level of time T, to 0"),
        ((4.0, 1.0, 0.0), "must descend from 5"),
        ((5.0, 1.0), "must descend from 5"),
        ((5.0,), "must be one of karras, log_snr, time, or a tuple of 2 to"),
        ((5.0, float("nan"), 0.0), "must be one of karras, log_snr, time, or a tuple of 2 to"),
    ],
)
def test_levels_that_are_refused(levels, message):
    prior = ss.Prior(gaussian.score(VESDE(sigma_max=5.0), 0.0, STD), VESDE(sigma_max=5.0), (12,))
    refused(message, prior.sample, 2, sampler="deis", schedule=levels)
    refused("steps = 7, but the 3 noise levels", prior.sample, 2, steps=7, schedule=(5, 1, 0))


def test_latent_codes_at_given_levels():
    """The probability flow ends at the noise level of t_end, where no last step denoises."""
    sde = VESDE(sigma_max=5.0)
    prior = ss.Prior(gaussian.score(sde, 0.0, STD), sde, STD.shape)
    last = float(sde.noise_to_signal(jnp.float32(sde.t_end)))
    x = STD * np.random.default_rng(0).normal(size=(4, 12)).astype(np.float32)
    levels = tuple(np.geomspace(5, last, 60))
    codes = prior.encode(x, sampler="dpm++_2m", schedule=levels)
    assert np.abs(prior.decode(codes, sampler="dpm++_2m", schedule=levels) - x).max() < 0.02
    refused("must descend from 5", prior.encode, x, sampler="deis", schedule=(5.0, 1.0, 0.0))
