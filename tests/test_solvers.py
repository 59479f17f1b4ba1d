"""Solvers: orders of convergence, moments, diffusers' schedulers and latent codes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sampling
import solvers
import solvers.plan
from sde_lib import EDMSDE, VESDE, VPSDE, RectifiedFlow, SubVPSDE
from tests import gaussian
from tests.refusal import refused
from tests.test_sampling import Cosine

SDES = {"ve": VESDE(), "vp": VPSDE(), "subvp": SubVPSDE(), "cosine": Cosine()}
SDES |= {"edm": EDMSDE(), "flow": RectifiedFlow()}
MEAN, STD = np.linspace(-0.5, 0.5, 12).reshape(2, 2, 3), np.linspace(0.1, 1, 12).reshape(2, 2, 3)
DETERMINISTIC = [name for name, solver in solvers.SOLVERS.items() if not solver.stochastic]
ORDERS = {"ddim": 1, "dpm++_2m": 2, "dpm++_3m": 3, "dpm++_3m_diffusers": 2, "unipc_2": 2}
ORDERS |= {"unipc_3": 3, "deis": 3, "heun": 2, "euler": 1}
# Plans do not depend on the SDE, whose times and scales any solver reads in the same way.
EXECUTED = [(name, "vp") for name in ("unipc_3", "deis", "restart", "heun_churn")]
EXECUTED += [("dpm++_2m_sde", name) for name in ("ve", "cosine")]


def run(name, score, sde, x, levels, keys=None, plan=None, **options):
    solver = solvers.SOLVERS[name]
    plan = plan or solver.plan(np.asarray(levels, np.float64), **options)

    @jax.jit
    def sample(keys, x):
        return solvers.few_step(
            keys, score, sde, x, plan, levels[-1], noise_prediction=solver.noise_prediction
        )

    return sample(keys, x)


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
def test_schedules(sde):
    """n levels from T to t_end, and 0; or n + 1 levels from T to t_end."""
    first, last = (float(sde.noise_to_signal(jnp.float32(t))) for t in (sde.T, sde.t_end))
    for denoise, count in ((True, 7), (False, 8)):
        u = np.linspace(0, 1, count)
        expected = {
            "karras": (first ** (1 / 7) + u * (last ** (1 / 7) - first ** (1 / 7))) ** 7,
            "log_snr": first ** (1 - u) * last**u,
            "time": sde.noise_to_signal(jnp.asarray(sde.T + u * (sde.t_end - sde.T), jnp.float32)),
        }
        if isinstance(sde, EDMSDE):  # Its time is the noise level.
            expected["time"] = expected["karras"]
        assert expected.keys() == solvers.SCHEDULES.keys()
        for name, levels in expected.items():
            actual = solvers.noise_levels(sde, name, 7, denoise=denoise)
            np.testing.assert_allclose(actual[:count], levels, rtol=1e-4)
            assert actual[count:].tolist() == [0.0] * denoise


def test_noise_of_a_plan():
    """The noise before and after an evaluation, and that of each row, are independent."""
    plan = solvers.plan.identity_plan(np.array([3.0, 3.0]), 1)
    plan.added_noise[:] = plan.predictor_noise[:] = 1.0
    keys = sampling.image_keys(jax.random.key(0), jnp.arange(100))
    arguments = (lambda x, t: x, VESDE(), jnp.zeros((100, 100)), plan, 0.0)
    x, _ = solvers.few_step(keys, *arguments)
    assert float(x.std()) == pytest.approx(2, rel=4 / np.sqrt(2e4))
    with pytest.raises(ValueError, match="keys = None, but this plan adds noise"):
        solvers.few_step(None, *arguments)


@pytest.mark.parametrize(
    ("name", "sde"),
    [*((name, "vp") for name in DETERMINISTIC), ("dpm++_2m", "ve"), ("dpm++_2m", "cosine")],
)
def test_order_of_convergence(name, sde):
    """The error against the closed-form probability flow decreases with the order of the solver."""
    sde = SDES[sde]
    score = gaussian.score(sde, MEAN, STD)
    x = sde.prior_std * jax.random.normal(jax.random.key(0), (4, 2, 2, 3))
    exact = gaussian.flow(sde, MEAN, STD, x, sde.T, sde.t_end)
    # Few enough steps that float32 rounding does not dominate, enough for the asymptotic order.
    counts = (16, 32) if ORDERS[name] > 2 else (40, 80)
    errors = []
    for n in counts:
        levels = solvers.noise_levels(sde, "log_snr", n, denoise=False)
        errors.append(np.abs(run(name, score, sde, x, levels)[0] - exact).max())
    assert np.log2(errors[0] / errors[1]) > ORDERS[name] - 0.3
    assert errors[1] < (0.15 if ORDERS[name] == 1 else 0.02)


def test_frames_where_something_is_seen():
    """They are evenly spaced in arctan(std / alpha), from the first state to the last one.

    Few states are all shown, and no state twice, even if nearly all levels are the same.
    """
    levels = np.append(np.geomspace(100, 0.01, 2000), 0.0)
    frames = solvers.frame_indices(levels, 16)
    assert (len(frames), frames[0], frames[-1]) == (16, 0, 2000)
    angles = np.arctan(levels[frames])
    np.testing.assert_allclose(np.diff(angles), -angles[0] / 15, atol=0.003)
    assert solvers.frame_indices(levels[:5], 16).tolist() == [0, 1, 2, 3, 4]
    ends = np.array([9.0, *[1e-3] * 30, 0.0])
    assert (np.diff(solvers.frame_indices(ends, 16)) > 0).all()
    assert solvers.frame_indices(ends, 16)[[0, -1]].tolist() == [0, 31]
    rising = np.array([4.0, 1.0, 0.1, 1.0, 0.1, 0.0])  # As of the solver "restart".
    assert solvers.frame_indices(rising, 4).tolist() == [0, 2, 3, 5]
    assert solvers.frame_indices(np.array([np.inf, 1.0, 0.9, 0.0]), 3).tolist() == [0, 1, 3]


def test_adaptive_steps():
    """Moments, and step sizes per image. (Biased in few dimensions: see its docstring.)"""
    sde = VPSDE()
    keys = sampling.image_keys(jax.random.key(0), jnp.arange(100))
    x = sampling.prior_sample(keys, sde, (100, 192))
    score = gaussian.score(sde, 0.4, 0.3)
    sample = jax.jit(lambda keys, x: solvers.adaptive_sde(keys, score, sde, x))
    y, nfe = sample(keys, x)
    assert float(y.mean()) == pytest.approx(0.4, abs=0.01)
    assert float(y.std()) == pytest.approx(0.3, abs=0.01)
    alone, nfe_alone = sample(keys[7:9], x[7:9])
    np.testing.assert_allclose(alone, y[7:9], rtol=1e-3, atol=1e-4)
    assert nfe_alone.tolist() == nfe[7:9].tolist()
    assert len(set(nfe.tolist())) > 1
    assert (nfe % 2 == 1).all()  # Two evaluations a step, and one at the end.
    assert nfe.mean() == pytest.approx(314, rel=0.05)  # Measured.
    unfinished, _ = solvers.adaptive_sde(keys[:2], score, sde, x[:2], max_steps=3)
    assert np.isnan(unfinished).all()


# --- diffusers ----------------------------------------------------------------------------------


def bimodal(level, y, np=np):
    """D(y, level) for data at -0.5 or 0.5 in every pixel, with a standard deviation of 0.1."""
    var = level**2 + 0.1**2
    mean = 0.5 * np.tanh(y / (2 * var))  # mean of the two modes, weighted by p(mode | y)
    return mean + 0.1**2 / var * (y - mean)


def execute(plan, y, noise, noise_prediction, denoiser=bimodal):
    """Execute a plan in float64 by its definition: the states y after each row."""
    previous = y
    history = np.zeros((plan.predictor_weights.shape[1], *y.shape))
    states = []
    for i, level in enumerate(plan.level):
        y = y + plan.added_noise[i] * noise[i]
        prediction = denoiser(level, y)
        if noise_prediction:
            prediction = (y - prediction) / level
        history = np.concatenate([[prediction], history[:-1]])
        y = plan.corrector_state[i] * y + plan.corrector_previous[i] * previous
        y = y + np.tensordot(plan.corrector_weights[i], history, 1)
        previous = y
        y = plan.predictor_state[i] * y + np.tensordot(plan.predictor_weights[i], history, 1)
        y = y + plan.predictor_noise[i] * noise[i]
        states.append(y)
    return np.array(states)


PEERS = {  # scheduler, its order and options
    "ddim": ("DPMSolver", 1, {"algorithm_type": "dpmsolver++"}),
    "dpm++_2m": ("DPMSolver", 2, {"algorithm_type": "dpmsolver++"}),
    "dpm++_3m_diffusers": ("DPMSolver", 3, {"algorithm_type": "dpmsolver++"}),
    "dpm++_2m_sde": ("DPMSolver", 2, {"algorithm_type": "sde-dpmsolver++"}),
    "unipc_2": ("UniPC", 2, {}),
    "unipc_3": ("UniPC", 3, {}),
    "deis": ("DEIS", 3, {}),
}


@pytest.mark.parametrize("name", PEERS)
def test_trajectories_of_diffusers(name):
    """diffusers' schedulers give the same states, with the same noise, in float64."""
    n = 12
    reason = "diffusers and PyTorch are not installed (requirements-dev.txt)"
    torch, diffusers = (
        pytest.importorskip(package, reason=reason) for package in ("torch", "diffusers")
    )
    (kind, order, options), solver = PEERS[name], solvers.SOLVERS[name]
    options |= {"beta_start": 1e-4, "beta_end": 0.02, "use_karras_sigmas": True}
    scheduler = getattr(diffusers, f"{kind}MultistepScheduler")(solver_order=order, **options)
    scheduler.set_timesteps(n)
    scheduler.sigmas = scheduler.sigmas.double()
    levels = scheduler.sigmas.numpy()
    alpha = 1 / np.sqrt(1 + levels**2)
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(3, 5)), rng.normal(size=(n, 3, 5))
    ours = execute(solver.plan(levels), x / alpha[0], noise, solver.noise_prediction)
    state = torch.tensor(x)
    for i, timestep in enumerate(scheduler.timesteps):
        # We lower the order of the step to level 0 only; diffusers also that of the step before it.
        scheduler.register_to_config(lower_order_final=levels[i + 1] == 0)
        y = state.numpy() / alpha[i]
        predicted = torch.tensor((y - bimodal(levels[i], y)) / levels[i])
        extra = {"variance_noise": torch.tensor(noise[i])} if solver.stochastic else {}
        state = scheduler.step(predicted, timestep, state, **extra).prev_sample
        if name.startswith("unipc") and i + 1 < n:
            continue  # diffusers corrects the state at the beginning of the next step.
        np.testing.assert_allclose(
            alpha[i + 1] * ours[i], state.numpy(), atol=1e-5, err_msg=f"step {i}"
        )


@pytest.mark.parametrize(("name", "sde"), EXECUTED)
def test_plans_are_executed(monkeypatch, name, sde):
    """`few_step` with a score of x_t agrees with `execute` with a denoiser of y."""
    sde = SDES[sde]
    solver, levels = solvers.SOLVERS[name], solvers.noise_levels(sde, "karras", 12)
    options = {"heun_churn": {"churn": 3.0}, "restart": {"restart": (3, 2, 0.06, 0.3)}}
    plan = solver.plan(levels, **options.get(name, {}))
    rng = np.random.default_rng(0)
    x, noise = sde.prior_std * rng.normal(size=(3, 5)), rng.normal(size=(len(plan.level), 3, 5))
    monkeypatch.setattr(
        solvers.plan, "_noise", lambda keys, row, *_: jnp.asarray(noise, jnp.float32)[row]
    )

    def score(x, t):
        level, alpha = sde.noise_to_signal(t)[:, None], sde.alpha(t)[:, None]
        return (alpha * bimodal(level, x / alpha, jnp) - x) / sde.var(t)[:, None]

    keys = sampling.image_keys(jax.random.key(0), jnp.arange(3))
    ours, _ = run(name, score, sde, jnp.asarray(x, jnp.float32), levels, keys, plan)
    first_alpha = float(sde.alpha(sde.time_at(levels[0])))
    expected = execute(plan, x / first_alpha, noise, solver.noise_prediction)[-1]
    # y is as large as the first level, and rounded to float32.
    np.testing.assert_allclose(ours, expected, atol=1e-5 * max(levels[0], 100))


# --- latent codes -------------------------------------------------------------------------------


def test_stochastic_solvers_have_no_latent_codes():
    message = "'restart' does not follow the .*choose one of ddim, deis"
    refused(message, sampling.make_flow, "restart", VPSDE())
