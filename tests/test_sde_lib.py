"""SDEs against recorded official outputs, and closed forms where the official float32 cancels."""

import copy
import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sde_lib
from sde_lib import EDMSDE, VESDE, VPSDE, CosineSDE, RectifiedFlow, SubVPSDE
from tests import reference
from tests.refusal import refused

SDES = {"ve": VESDE(), "vp": VPSDE(), "subvp": SubVPSDE()}
LATER = {"cosine": CosineSDE(), "edm": EDMSDE(), "flow": RectifiedFlow()}
ALL = SDES | LATER
of_all = pytest.mark.parametrize("sde", ALL.values(), ids=ALL)


@pytest.fixture(params=SDES)
def case(request):
    """(name, SDE, t, x, z, recorded official outputs by name) of each SDE."""
    arrays = reference.arrays("sde")
    prefix = request.param + "/"
    recorded = {
        name.removeprefix(prefix): value
        for name, value in arrays.items()
        if name.startswith(prefix)
    }
    return request.param, SDES[request.param], arrays["t"], arrays["x"], arrays["z"], recorded


def exact(name: str, t: np.ndarray) -> dict[str, np.ndarray]:
    """The closed forms of alpha, std, f and g, in float64."""
    t = t.astype(np.float64)
    if name == "ve":
        std = 0.01 * 5000.0**t
        values = np.ones_like(t), std, 0 * t, std * np.sqrt(2 * np.log(5000.0))
    elif name in ("vp", "subvp"):
        integral, beta = 0.1 * t + 0.5 * 19.9 * t**2, 0.1 + 19.9 * t
        var = -np.expm1(-integral)
        std, g = np.sqrt(var), np.sqrt(beta)
        if name == "subvp":
            std, g = var, np.sqrt(beta * -np.expm1(-2 * integral))
        values = np.exp(-integral / 2), std, -beta / 2, g
    elif name == "edm":
        values = np.ones_like(t), t, 0 * t, np.sqrt(2 * t)
    elif name == "flow":
        values = 1 - t, t, -1 / (1 - t), np.sqrt(2 * t / (1 - t))
    else:
        angle, start = np.pi / 2 * (t + 0.008) / 1.008, np.pi / 2 * 0.008 / 1.008
        alpha, rate = np.cos(angle) / np.cos(start), np.pi / 2 / 1.008 * np.tan(angle)
        values = alpha, np.sqrt(1 - alpha**2), -rate, np.sqrt(2 * rate)
    return dict(zip(("alpha", "std", "f", "g"), values))


def assert_close(actual, expected, rtol=1e-6, atol=1e-6):
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", ALL)
def test_closed_forms(name):
    """Also at both ends of the times, where alpha or std are small."""
    sde = ALL[name]
    ends = [sde.t_min, sde.t_end, sde.T]
    t = np.concatenate([ends, np.linspace(sde.t_end, sde.T, 20)]).astype(np.float32)
    t = np.concatenate([t, reference.arrays("sde")["t"]]) if name in SDES else t
    found = sde.alpha(t), sde.std(t), sde.drift_coefficient(t), sde.diffusion(t)
    tolerance = {"rtol": 1e-6, "atol": 0} if name in SDES else {"rtol": 3e-5, "atol": 1e-7}
    for actual, expected in zip(found, exact(name, t).values()):
        assert_close(actual, expected, **tolerance)


def test_agrees_with_the_official_functions(case):
    name, sde, t, x, z, recorded = case
    # The official 1 - exp(.) cancels at small t, where `test_closed_forms` is the test.
    accurate = np.abs(recorded["std"] / exact(name, t)["std"] - 1) < 1e-6
    assert accurate.sum() >= 8
    assert_close(sde.std(t)[accurate], recorded["std"][accurate])
    assert_close(sde_lib.expand(sde.alpha(t), x) * x, recorded["mean"])
    assert_close(sde.drift(x, t), recorded["drift"])
    score = -x / (1 + t[:, None, None, None])
    for flag in (0, 1):
        actual = sde.reverse_drift(score, x, t, probability_flow=bool(flag))
        expected = recorded[f"rev_pf{flag}/drift"]
        scale = np.abs(expected).max((1, 2, 3))
        error = np.abs(actual - expected).max((1, 2, 3)) / np.maximum(scale, 1)
        assert error[accurate].max() < 2e-6
    assert_close(sde.prior_logp(z), recorded["prior_logp"], rtol=1e-6, atol=0)
    assert sde.prior_std == pytest.approx(float(recorded["prior_scale"]))


def steps_at(name, sde, t, n, indices):
    """Our steps at times t, or at these indices of the chain; and the exact g of each, (B,)."""
    if name == "subvp":  # Its coefficients are functions of t.
        g = exact(name, t)["g"] / np.sqrt(n)
        ratio = 1 + sde.drift_coefficient(t) / n
        return sde_lib.Step(t, 1 / n, ratio, sde.diffusion(t) ** 2 / n, None), g
    positions = n - 1 - indices  # Steps are in sampling order.
    if name == "ve":
        variances = np.append(sde.sigmas(n), 0.0) ** 2
        g = np.sqrt(variances[:-1] - variances[1:])
    else:
        g = np.sqrt(sde.betas(n)[::-1])
    return jax.tree.map(lambda leaf: leaf[positions], sde.discretize(n)), g[positions]


@pytest.mark.parametrize("n", [10, 1000])
def test_discretizations_are_the_official_ones(case, n):
    name, sde, t, x, _, recorded = case
    if name == "vp" and n == 10:
        pytest.skip("beta_max / N > 1: the official code returns NaN, ours raises InputError")
    indices = recorded.get(f"N{n}/timestep_index")
    if name != "subvp":
        assert list(recorded[f"N{n}/sampling_index"]) == list(range(n))[::-1]
    step, g = steps_at(name, sde, t, n, indices)
    assert_close(sde_lib.expand(step.ratio - 1, x) * x, recorded[f"N{n}/discretize_f"])
    assert_close(jnp.sqrt(step.var), g, atol=0)
    # The official G cancels in float32 at some times.
    accurate = np.abs(recorded[f"N{n}/discretize_G"] / g - 1) < 2e-5
    assert accurate.mean() > 0.7
    assert_close(sde.sampling_times(n), recorded[f"N{n}/sampling_t"])


def test_noise_levels_of_smld_and_ddpm():
    """Each index is used once, also at 2000 steps.

    The official code computes the index from the time in float32, of which 999 of 2000 are wrong.
    """
    recorded = reference.arrays("sde")
    sigmas, betas = VESDE().sigmas(1000), VPSDE().betas(1000)
    # The official sigmas are the float32 exponential of float32 logarithms.
    assert_close(sigmas[::-1], recorded["ve/N1000/discrete_sigmas"], rtol=4e-6, atol=0)
    assert_close(betas, recorded["vp/N1000/discrete_betas"], rtol=1e-6, atol=0)
    assert_close(VPSDE().discretize(2000).var[::-1], VPSDE().betas(2000), rtol=1e-6, atol=0)


def test_ancestral_steps_of_ddpm():
    """The official code adds noise of variance beta_i."""
    steps = VPSDE().discretize(40)
    assert_close(steps.ancestral_var[::-1], VPSDE().betas(40))
    assert_close(steps.ratio[::-1], np.sqrt(1 - VPSDE().betas(40)))


def test_invalid_values_raise_input_errors():
    for sde in (VPSDE(), SubVPSDE()):
        refused("20 steps are too few .* use more than 20 steps", sde.discretize, 20)
    assert VPSDE().betas(21).max() == pytest.approx(20 / 21)
    message = "0 < sigma_min < sigma_max; got sigma_min = 1.0 and sigma_max = 0.1"
    refused(message, VESDE, sigma_min=1.0, sigma_max=0.1)
    refused("0 < beta_min <= beta_max; got beta_min = 0 and", SubVPSDE, beta_min=0)
    refused("T < 1; got T = 1.0", CosineSDE, T=1.0)
    assert VPSDE(beta_min=20.0).beta_max == 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Required(VPSDE):
    """An SDE of a user, with an argument that has no default."""

    share: float


def test_copies():
    """Also of classes with required arguments, which copy and pickle do not pass."""
    sde = Required(share=0.5)
    for copied in (copy.copy(sde), pickle.loads(pickle.dumps(sde)), dataclasses.replace(sde)):
        assert copied == sde


@pytest.mark.parametrize("name", LATER)
def test_later_sdes_end_close_to_their_prior(name):
    """p_T diverges from the prior by at most alpha^2 |x_0|^2 / 2 var, for VP 2e-5 |x_0|^2."""
    sde = LATER[name]
    ratio = 1 / float(sde.noise_to_signal(jnp.float32(sde.T)))
    assert ratio**2 / 2 < (8e-5 if name == "edm" else 3.1e-5)
    assert sde.prior_std == pytest.approx(float(sde.std(jnp.float32(sde.T))))


@of_all
def test_time_at_inverts_noise_to_signal(sde):
    ts = jnp.geomspace(sde.t_min, sde.T, 40)
    assert_close(sde.time_at(sde.noise_to_signal(ts)), ts, rtol=1e-4, atol=5e-8)
    assert_close([sde.time_at(jnp.float32(1e9)), sde.time_at(jnp.float32(0))], [sde.T, 0])
    compiled = sde_lib.SDE.time_at._cache_size()
    dataclasses.replace(sde).time_at(ts)  # An equal SDE has the same program.
    assert sde_lib.SDE.time_at._cache_size() == compiled


def test_chain_of_the_cosine_schedule():
    """beta_i of Nichol & Dhariwal (2021), which they clip, and marginals that converge."""
    sde, n = LATER["cosine"], 1000
    levels = np.cos((np.arange(n + 1) / n + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(sde.betas(n)[:-1], 1 - levels[1:-1] / levels[:-2], rtol=1e-9)
    assert sde.betas(n)[-1] == 0.999
    t = np.array([0.1, 0.5, 0.9])
    alpha_bar = np.cumprod(1 - sde.betas(n))[(t * n).astype(int) - 1]
    np.testing.assert_allclose(np.sqrt(alpha_bar), sde.alpha(t), rtol=1e-5)


def test_times_of_edm():
    """The noise levels of EDM, Eq. (5)."""
    t = LATER["edm"].sampling_times(18)
    i = np.arange(18)
    expected = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    assert_close(t, expected, rtol=1e-5, atol=0)


@of_all
def test_transitions_compose_to_the_marginal(sde):
    """The forward transitions of all steps, applied to x_0, give the marginal at the first time."""
    ts = jnp.linspace(sde.T, sde.t_end, 37)
    steps = sde.steps(ts)
    alpha, var = 1.0, 0.0
    for ratio, step_var in zip(steps.ratio[::-1], steps.var[::-1]):
        alpha, var = ratio * alpha, ratio**2 * var + step_var
    assert_close(alpha, sde.alpha(ts[0]), rtol=1e-5)
    assert_close(var, sde.var(ts[0]), rtol=1e-5)


@pytest.mark.parametrize("name", [*ALL, "chain"])
def test_ancestral_steps_give_the_marginal(name):
    """For a point mass, ancestral sampling takes the variance at t to that at the next time.

    Its step is y = (x + var score) / ratio + noise with score = -(x - alpha x_0) / var(t).
    """
    sde, n = (ALL | {"chain": VESDE()})[name], 40
    ts = jnp.linspace(sde.T, 0.1, n)
    steps, var = sde.steps(ts), np.asarray(sde.var(ts), np.float64)
    if name == "chain":
        steps, var = sde.discretize(n), sde.sigmas(n) ** 2
    kept = (1 - steps.var / var) / steps.ratio
    after = kept**2 * var + steps.ancestral_var
    # In float32, 1 - var / var(t) cancels to 1e-7 var(t) / var(s).
    assert_close(after, np.append(var[1:], 0), rtol=2e-5, atol=0)
    assert steps.ancestral_var[-1] == 0


@of_all
def test_lengths_of_steps(sde):
    """Steps lead from each time to the next, whose marginals follow; chains have equal steps."""
    times = sde.sampling_times(50)
    alpha, std = sde.marginal_after(sde.steps(times))
    np.testing.assert_allclose(alpha, jnp.append(sde.alpha(times)[1:], 1.0), rtol=1e-5)
    np.testing.assert_allclose(std, jnp.append(sde.std(times)[1:], 0.0), rtol=2e-3, atol=1e-3)
    ts = np.array([0.9, 0.5, 0.4, 0.1])
    assert_close(sde.steps(ts).t, ts)
    assert_close(sde.steps(ts).dt, [0.4, 0.1, 0.3, 0.1])
    if sde not in LATER.values():
        chain = dataclasses.replace(sde, T=2.0).discretize(50)
        assert_close(chain.dt, np.full(50, 0.04))
        assert_close(chain.t, np.linspace(2, sde.t_end, 50))


@pytest.mark.parametrize("name", SDES)
def test_other_final_times(name):
    """The forms of the paper in u = t / T: VE is the same; in VP, beta is integrated over T."""
    sde, t = dataclasses.replace(SDES[name], T=3.0), jnp.array([0.3, 1.5, 3.0])
    u = np.asarray(t, np.float64) / 3
    if name == "ve":
        assert_close(sde.std(t), exact("ve", u)["std"])
        assert_close(sde.diffusion(t), exact("ve", u)["g"] / np.sqrt(3))
        return
    log_alpha = 3 * np.log(exact("vp", u)["alpha"])
    var = -np.expm1(2 * log_alpha)
    assert_close(sde.alpha(t), np.exp(log_alpha), rtol=1e-5)
    assert_close(sde.var(t), var if name == "vp" else var**2, rtol=1e-5)
    assert_close(sde.drift_coefficient(t), exact("vp", u)["f"], rtol=1e-5)
    chain = np.prod(1 - sde.betas(100_000))
    assert np.log(chain) == pytest.approx(2 * log_alpha[-1], rel=1e-3)


@pytest.mark.parametrize("n", [21, 1000])
def test_euler_steps_of_subvp(n):
    """g^2 dt var(t - dt) / var(t), in float64; the last step leads to t = 0 or beyond."""
    steps, t = SubVPSDE().discretize(n), np.linspace(1, 1e-3, n)
    var, g2 = (exact("subvp", t)[key] ** 2 for key in ("std", "g"))
    var_next = exact("subvp", np.maximum(t - 1 / n, 0))["std"] ** 2
    assert_close(steps.t, t)
    assert_close(steps.dt, np.full(n, 1 / n))
    assert_close(steps.var, g2 / n, rtol=2e-5, atol=0)
    assert_close(steps.ancestral_var, g2 / n * var_next / var, rtol=2e-4, atol=1e-9)
    assert_close(steps.ratio, 1 - (0.1 + 19.9 * t) / 2 / n)
