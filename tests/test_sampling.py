"""Samplers: recorded official steps and trajectories, and the moments of Gaussian data."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sampling
from sde_lib import SDE, VESDE, VPSDE, RectifiedFlow, SubVPSDE
from solvers.loop import PRIOR
from tests import gaussian, reference
from tests.reference import KEYS, replay

SDES = {"ve": VESDE(), "vp": VPSDE(), "subvp": SubVPSDE()}


def test_the_noise_of_the_prior_is_that_of_no_step():
    for sde in SDES.values():
        noise = np.asarray(sampling.prior_sample(KEYS, sde, (3, 8, 8, 3))) / sde.prior_std
        assert abs(noise.std() - 1) < 0.1
        assert not np.isin(noise, sampling.standard_normal(KEYS, (3, 8, 8, 3))).any()
    fold_in = jax.vmap(lambda i: jax.random.key_data(jax.random.fold_in(KEYS[0], i)))
    prior = jax.random.key_data(jax.random.fold_in(KEYS[0], PRIOR))
    assert not (fold_in(jnp.arange(20_000)) == prior).all(-1).any()


@pytest.mark.parametrize("case", list(reference.notes("samplers")["step"]))
def test_recorded_steps(monkeypatch, case):
    note, a = reference.notes("samplers")["step"][case], reference.arrays("samplers")
    sde, n = reference.sde(note["sde"]), note["sde"]["N"]
    x, t = jnp.asarray(a[f"step/{case}/x"]), jnp.asarray(a[f"step/{case}/t"])
    indices = n - 1 - (t * (n - 1)).astype(int)
    step = jax.tree.map(lambda leaf: leaf[indices], sde.discretize(n))._replace(t=t)
    if "subvp" in case:
        step = step._replace(ratio=1 + sde.drift_coefficient(t) / n, var=sde.diffusion(t) ** 2 / n)
    closed_form = gaussian.score(sde, a["mu"], a["s"])
    first_score = jnp.asarray(a[f"step/{case}/score"])
    assert reference.image_error(closed_form(x, t), first_score) < 5e-4

    def score(x_t, t):
        # The official float32 std cancels at t = 0.0172, so the first score is the recorded one.
        return first_score if x_t is x else closed_form(x_t, t)

    for name in note["cases"]:
        prefix, noise = f"step/{case}/{name}/", a[f"step/{case}/{name}/noise"]
        if name.startswith(("langevin", "ald")):
            kind, repeats = name.split("_n")
            replay(monkeypatch, noise)
            x_next = x
            for _ in range(int(repeats)):
                x_next, mean = sampling.CORRECTORS[kind](KEYS, score, sde, x_next, step, snr=0.16)
        else:
            replay(monkeypatch, [noise])
            options = {"probability_flow": True} if name.endswith("_pf") else {}
            predictor = sampling.PREDICTORS[name.removesuffix("_pf")]
            x_next, mean = predictor(KEYS, score, sde, x, step, **options)
        assert reference.image_error(x_next, a[prefix + "x_next"]) < 1e-5, name
        assert reference.image_error(mean, a[prefix + "x_mean"]) < 1e-5, name


@pytest.mark.parametrize("case", list(reference.notes("samplers")["traj"]))
def test_recorded_trajectories(monkeypatch, case):
    note, a = reference.notes("samplers")["traj"][case], reference.arrays("samplers")
    sde = reference.sde(note["sde"])
    noises = replay(monkeypatch, a[f"traj/{case}/noises"])
    found = reference.trajectory(note, gaussian.score(sde, a["mu"], a["s"]), sde, noises)
    for name, x in zip(("denoise", "no_denoise"), found, strict=True):
        assert reference.image_error(x, a[f"traj/{case}/out_{name}"]) < 5e-6


@pytest.mark.parametrize("name", reference.cases(SDES, ("ve", "subvp")))
def test_recorded_ode_samples(name):
    a, sde = reference.arrays("samplers"), SDES[name]
    last = jax.tree.map(lambda leaf: leaf[-1], sde.discretize(1000))
    score = gaussian.score(sde, a["mu"], a["s"])
    solve = functools.partial(sampling.probability_flow_ode, score, sde)
    z = a[f"ode/{name}/z"]
    found = {}
    for step, key in ((None, "x"), (last, "x_denoise")):
        x, nfe = jax.jit(functools.partial(solve, denoise_step=step))(z)
        found[key] = x
        x = x if name == "ve" else (x + 1) / 2
        np.testing.assert_allclose(x, a[f"ode/{name}/{key}"], atol=2e-4)
    exact = gaussian.flow(sde, a["mu"], a["s"], z, sde.T, sde.t_end)
    np.testing.assert_allclose(found["x"], exact, atol=2e-4)
    assert nfe.shape == (3,)
    # Measured; the official solver of SciPy has 104, 68 and 62 evaluations for the whole batch.
    assert nfe.mean() == pytest.approx({"ve": 98, "vp": 70, "subvp": 80}[name], rel=0.05)


# --- moments of Gaussian data ---------------------------------------------------------------------


def moments(sde, predictor, corrector, n=400, count=40, dims=250, **options):
    """Mean and standard deviation of samples of N(0.4, 0.3^2) data in `dims` dimensions."""
    keys = sampling.image_keys(jax.random.key(1), jnp.arange(count))
    run = functools.partial(
        sampling.predictor_corrector, predictor=predictor, corrector=corrector, **options
    )
    score = gaussian.score(sde, 0.4, 0.3)
    prior, steps = sampling.prior_sample(keys, sde, (count, dims)), sde.discretize(n)
    x, *_ = jax.jit(lambda keys, prior: run(keys, score, sde, prior, steps))(keys, prior)
    return float(x.mean()), float(x.std())


CASES = [
    (name, predictor, "none", {})
    for name, predictor in (
        *(("ve", "euler_maruyama"), ("vp", "euler_maruyama"), ("subvp", "euler_maruyama")),
        *(("ve", "reverse_diffusion"), ("subvp", "ancestral_sampling")),
        ("flow", "ancestral_sampling"),
    )
]
# A corrector alone lags behind the decreasing noise level and keeps the last noise.
ALONE = {"n_steps_each": 8, "count": 10, "dims": 64}
CASES += [("ve", "none", each, ALONE) for each in sampling.CORRECTORS if each != "none"]


@pytest.mark.parametrize(("name", "predictor", "corrector", "options"), CASES)
def test_moments_of_gaussian_data(name, predictor, corrector, options):
    """Of predictors alone, whose errors a corrector would hide, and of correctors alone."""
    pair = sampling.PREDICTORS[predictor], sampling.CORRECTORS[corrector]
    mean, std = moments((SDES | {"flow": RectifiedFlow()})[name], *pair, **options)
    tolerance = 0.04 if options else 0.01
    assert mean == pytest.approx(0.4, abs=tolerance)
    assert std == pytest.approx(0.3, abs=tolerance)


@pytest.mark.parametrize("name", SDES)
def test_ancestral_sampling_of_a_point_mass(name):
    """The state after each step has the marginal distribution at the time of the next one."""
    n = 20
    sde, ts = SDES[name], jnp.linspace(1, 0.1, n)
    keys = sampling.image_keys(jax.random.key(1), jnp.arange(100))
    prior = sde.alpha(1.0) * 0.4 + sampling.prior_sample(keys, sde, (100, 100))

    @jax.jit
    def run(keys, prior):
        score, steps = gaussian.score(sde, 0.4, 0.0), sde.steps(ts)
        options = {"predictor": sampling.ancestral_sampling, "shown": range(n)}
        return sampling.predictor_corrector(keys, score, sde, prior, steps, **options)

    x, frames, _ = run(keys, prior)
    np.testing.assert_allclose(x, 0.4, atol=1e-5)
    np.testing.assert_allclose(frames[-1], x, atol=1e-6)  # The last step adds no noise.
    # Four standard errors of 10,000 entries.
    std, alpha = sde.std(ts[1:]), sde.alpha(ts[1:])
    np.testing.assert_allclose(frames[:-1].std((1, 2)), std, rtol=4 / np.sqrt(2e4))
    np.testing.assert_array_less(np.abs(frames[:-1].mean((1, 2)) - alpha * 0.4), 0.04 * std)


def test_the_loop():
    """Corrections, constraint, prediction, constraint: each with its own keys, at one time."""
    sde, events = VESDE(), []

    def record(name, keys, x, step):
        events.append((name, float(step.t), jax.random.key_data(keys).tolist()))
        return x + 1, x

    def corrector(keys, score, sde, x, step, *, snr):
        return record(f"corrector {snr}", keys, x, step)

    def predictor(keys, score, sde, x, step):
        return record("predictor", keys, x, step)

    def constraint(keys, x, mean, step):
        return record("constraint", keys, x, step)

    options = {"snr": 0.3, "n_steps_each": 2, "constraint": constraint, "shown": [0, 3]}
    x, steps = jnp.zeros((3, 1)), sde.discretize(4)
    updates = {"predictor": predictor, "corrector": corrector}
    with jax.disable_jit():
        last_mean, frames, _ = sampling.predictor_corrector(
            KEYS, None, sde, x, steps, **updates, **options
        )
    names, times, keys = zip(*events)
    assert names == 4 * ("corrector 0.3", "corrector 0.3", "constraint", "predictor", "constraint")
    np.testing.assert_allclose(times, np.repeat(steps.t, 5))
    assert len({str(each) for of_event in keys for each in of_event}) == 3 * len(events)
    np.testing.assert_allclose(last_mean, 19)  # 20 updates add 1; the mean is without the last.
    np.testing.assert_allclose(frames[:, 0, 0], [5, 20])  # After the first and the last step.


@pytest.mark.parametrize(
    ("name", "predictor"), [("vp", "euler_maruyama"), ("ve", "reverse_diffusion")]
)
def test_moments_of_the_probability_flow(name, predictor):
    step = functools.partial(sampling.PREDICTORS[predictor], probability_flow=True)
    mean, std = moments(SDES[name], step, sampling.none, n=4000)
    assert mean == pytest.approx(0.4, abs=0.01)
    assert std == pytest.approx(0.3, abs=0.01)


# --- a new SDE; test_extending.py has new predictors and correctors -----------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cosine(SDE):
    """alpha = cos, sigma = sin (Nichol & Dhariwal 2021, without their offset)."""

    T: float = 0.999

    def alpha(self, t):
        return jnp.cos(jnp.pi / 2 * t)

    def var(self, t):
        return jnp.sin(jnp.pi / 2 * t) ** 2


PAIRS = [
    (sampling.reverse_diffusion, sampling.CORRECTORS["ald"]),
    (sampling.ancestral_sampling, sampling.CORRECTORS["langevin_per_image"]),
]


@pytest.mark.parametrize(("predictor", "corrector"), PAIRS, ids=lambda f: f.__name__)
def test_new_sde_predictor_and_corrector(predictor, corrector):
    mean, std = moments(Cosine(), predictor, corrector)
    assert mean == pytest.approx(0.4, abs=0.015)
    assert std == pytest.approx(0.3, abs=0.015)


# --- images do not depend on their batch --------------------------------------------------------


@pytest.mark.parametrize("corrector", ["ald", "langevin_per_image"])
def test_images_do_not_depend_on_their_batch(corrector):
    sde = VPSDE()

    @jax.jit
    def sample(indices):
        keys = sampling.image_keys(jax.random.key(5), indices)
        x = sampling.prior_sample(keys, sde, (len(indices), 3, 2))
        options = {"corrector": sampling.CORRECTORS[corrector]}
        score, steps = gaussian.score(sde, 0.1, 0.2), sde.discretize(30)
        return sampling.predictor_corrector(keys, score, sde, x, steps, **options)[0]

    np.testing.assert_allclose(
        sample(jnp.arange(8))[5:7], sample(jnp.array([5, 6])), rtol=1e-5, atol=1e-6
    )
    assert np.abs(sample(jnp.arange(8))[5] - sample(jnp.arange(8))[6]).max() > 0.01


def test_ode_steps_are_per_image():
    sde = VPSDE()
    ode = jax.jit(lambda z: sampling.probability_flow_ode(gaussian.score(sde, 0.1, 0.2), sde, z)[0])
    z = jax.random.normal(jax.random.key(0), (6, 4)).at[0].multiply(100)
    np.testing.assert_allclose(ode(z)[2:4], ode(z[2:4]), rtol=1e-6)
