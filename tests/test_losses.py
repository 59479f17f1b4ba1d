"""Denoising score matching against recorded official losses, and its minimum at the true score."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import losses
from models.score import ScoreModel, conventions
from sde_lib import VESDE, VPSDE, SubVPSDE, expand
from tests import gaussian, reference

SDES = {"ve": VESDE(), "vp": VPSDE(), "subvp": SubVPSDE()}


def levels_to_times(labels: np.ndarray, n: int, descending: bool) -> np.ndarray:
    """The times of noise levels, which SMLD numbers from the largest and DDPM from the smallest."""
    index = n - 1 - labels if descending else labels
    return index.astype(np.float32) * np.float32(1 / (n - 1))


@pytest.mark.parametrize("name", SDES)
def test_continuous_losses(name):
    recorded, sde = reference.arrays("losses"), SDES[name]
    x, t, z = (jnp.asarray(recorded[f"closed/{key}"]) for key in ("data", "t", "z"))

    def score(x, t):
        return -x / (1 + expand(t, x))

    # The official float32 std cancels at small t (see test_sde_lib).
    accurate = np.abs(recorded[f"closed/{name}/std"] / sde.std(t) - 1) < 1e-6
    assert accurate.sum() >= 3
    for weighted, reduce_mean in itertools.product((0, 1), (0, 1)):
        weight = losses.likelihood_weight(sde, t) if weighted else None
        options = {"weight": weight, "reduce_mean": bool(reduce_mean)}
        actual = losses.denoising_score_matching(score, sde, x, t, z, **options)
        expected = recorded[f"closed/{name}/lw{weighted}_rm{reduce_mean}_per_sample"]
        np.testing.assert_allclose(actual[accurate], expected[accurate], rtol=3e-6)
        np.testing.assert_allclose(actual, expected, rtol=2e-4)


@pytest.mark.parametrize(("name", "sde_name"), [("smld", "ve"), ("ddpm", "vp")])
def test_discrete_losses(name, sde_name):
    recorded, sde = reference.arrays("losses"), SDES[sde_name]
    model = ScoreModel(sde, 1000, **conventions(f"{sde_name}sde")._asdict())

    def score(x, t):
        return model.score_from_output(-x / (1 + expand(model.label(t), x) / 1000), x, t)

    x, z = jnp.asarray(recorded["closed/data"]), jnp.asarray(recorded["closed/z"])
    t = jnp.asarray(levels_to_times(recorded["closed/labels"], 1000, name == "smld"))
    for reduce_mean in (0, 1):
        options = {"marginal": model.marginal(t), "reduce_mean": bool(reduce_mean)}
        actual = losses.denoising_score_matching(score, sde, x, t, z, **options)
        expected = recorded[f"closed/{name}/rm{reduce_mean}_per_sample"]
        np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.slow  # `test_training` has a recorded step.
@pytest.mark.parametrize("name", reference.notes("losses")["nets"])
def test_losses_and_gradients_of_networks(name):
    recorded, note = reference.arrays("losses"), reference.notes("losses")["nets"][name]
    experiment, params = reference.experiment(note["folder"]), reference.trained(note["folder"]).ema
    assert experiment.score_model.num_scales == note.get("N")
    data, z = jnp.asarray(recorded[f"{name}/data"]), jnp.asarray(recorded[f"{name}/z"])
    weighted = name == "net_vp"
    if "N" in note:
        case, descending = "rm1", isinstance(experiment.sde, VESDE)
        t = levels_to_times(recorded[f"{name}/labels"], note["N"], descending)
    else:
        case = "lw1_rm0" if weighted else "lw0_rm1"
        t = recorded[f"{name}/t"]
    t = jnp.asarray(t)

    def loss(params):
        per_image = losses.denoising_score_matching(
            experiment.score(params),
            experiment.sde,
            data,
            t,
            z,
            marginal=experiment.score_model.marginal(t),
            weight=losses.likelihood_weight(experiment.sde, t) if weighted else None,
            reduce_mean=not weighted,
        )
        return per_image.mean()

    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))
    np.testing.assert_allclose(value, recorded[f"{name}/{case}"], rtol=1e-5)
    np.testing.assert_allclose(norm, recorded[f"{name}/{case}_gradnorm"], rtol=1e-5)


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
def test_the_true_score_is_the_minimum(sde):
    """Scaling or shifting the true score of Gaussian data increases the loss."""
    mean, std = 0.3, 0.4
    x = mean + std * jax.random.normal(jax.random.key(0), (50_000, 2, 1, 1))
    t, z = losses.draw(jax.random.key(1), sde, x)
    true_score = gaussian.score(sde, mean, std)

    def loss(scale, shift):
        def score(x, t):
            return scale * true_score(x, t) + shift

        return losses.denoising_score_matching(score, sde, x, t, z).mean()

    slopes = jax.grad(loss, argnums=(0, 1))(1.0, 0.0)
    assert abs(slopes[0]) < 0.02
    assert abs(slopes[1]) < 0.02 * sde.prior_std
    assert loss(1.0, 0.0) < min(loss(0.8, 0.0), loss(1.2, 0.0))


LEVELS = functools.partial(losses.level_times, num_scales=10)
LOG_NORMAL = functools.partial(losses.log_normal_times, mean=-1.2, std=1.2)


def test_draws():
    x = jnp.zeros((4000, 1, 1, 1))
    t, z = losses.draw(jax.random.key(0), VPSDE(), x)
    assert VPSDE().t_min <= t.min()
    assert t.max() <= 1
    assert abs(t.mean() - 0.5) < 0.02
    assert abs(z.std() - 1) < 0.05
    assert abs(np.corrcoef(t, z.reshape(-1))[0, 1]) < 4 / np.sqrt(4000)
    t, _ = losses.draw(jax.random.key(0), VPSDE(), x, LEVELS)
    counts = np.bincount(np.asarray(ScoreModel(VPSDE(), 10).label(t), int), minlength=10)
    assert len(counts) == 10
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize(
    "times", [losses.uniform_times, LEVELS, losses.importance_times, LOG_NORMAL]
)
def test_even_times(times):
    """The first 100 and all 400 have the distribution of random ones, with much smaller errors."""
    x, sde = jnp.zeros((400, 1, 1, 1)), VPSDE()

    def mean(t):
        """Of the share of the way through the distribution: uniform in t or in log(std / alpha)."""
        if times is LOG_NORMAL:
            logs = jnp.log(sde.noise_to_signal(t))
            return float(jax.scipy.stats.norm.cdf(logs, -1.2, 1.2).mean())
        if times is not losses.importance_times:
            return float(t.mean())
        first, t, last = (
            jnp.log(sde.noise_to_signal(jnp.float32(u))) for u in (sde.t_min, t, sde.T)
        )
        return float(((t - first) / (last - first)).mean())

    for seed in range(3):
        t, z = losses.draw(jax.random.key(seed), sde, x, times, even=True)
        assert len(set(t.tolist())) == (10 if times is LEVELS else 400)
        assert abs(z.std() - 1) < 0.2
        for first in (100, 400):
            # Random times would have an error of 0.03 and 0.014.
            assert mean(t[:first]) == pytest.approx(0.5, abs=1 / first + 1e-3)
    other, _ = losses.draw(jax.random.key(9), sde, x, times, even=True)
    assert (other != t).any()


def test_standard_error_at_even_times():
    """It is the deviation of the mean, to which the dependence on the time adds nothing."""
    draw = jax.jit(functools.partial(losses.draw, sde=VPSDE(), x=jnp.zeros((200, 1)), even=True))
    means, errors = [], []
    for seed in range(200):
        t, z = draw(jax.random.key(seed))
        values = np.asarray(2 * t**2 + 0.3 * z.ravel())
        means.append(values.mean())
        errors.append(losses.mean_stderr(values, np.asarray(t)))
    assert np.std(means) == pytest.approx(0.3 / np.sqrt(200), rel=0.2)
    assert np.mean(errors) == pytest.approx(0.3 / np.sqrt(200), rel=0.2)
    assert np.isnan(losses.mean_stderr(np.ones(1), np.ones(1)))
    # A peak counts alike at all times, also at the first, where a likelihood weight is largest.
    for position in (0, 4, 9):
        order = np.random.default_rng(0).permutation(10)
        found = losses.mean_stderr(5 * np.eye(10)[position][order], np.arange(10.0)[order])
        assert found == pytest.approx(5 / np.sqrt(11 * 10))


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
def test_importance_sampled_times(sde):
    """The likelihood-weighted loss of an inexact score has the same mean and a smaller variance.

    For VE the importance-sampled times are uniform, too. t_min is 1e-3, because uniform sampling
    draws too few smaller times for an estimate of the mean.
    """
    sde = dataclasses.replace(sde, t_min=1e-3)
    x = 0.3 + 0.4 * jax.random.normal(jax.random.key(0), (100_000, 2, 1, 1))

    def score(x, t):
        return 0.8 * gaussian.score(sde, 0.3, 0.4)(x, t)

    def moments(times, weight):
        t, z = losses.draw(jax.random.key(1), sde, x, times)
        assert sde.t_min * 0.999 <= t.min()
        assert t.max() <= sde.T
        values = losses.denoising_score_matching(score, sde, x, t, z, weight=weight(sde, t))
        return values.mean(), values.std()

    uniform_mean, uniform_std = moments(losses.uniform_times, losses.likelihood_weight)
    mean, std = moments(losses.importance_times, losses.importance_weight)
    assert abs(uniform_mean - mean) < 4 * np.hypot(uniform_std, std) / np.sqrt(100_000)
    largest_ratio = 1.001 if isinstance(sde, VESDE) else 0.9
    assert std < largest_ratio * uniform_std


def test_parts_of_a_batch():
    """Parts give the loss, the losses in the order of the images, and the gradient of the batch."""
    x = jnp.arange(1.0, 13.0).reshape(12, 1)
    batch = losses.Part(jax.random.key(0), x, x[:, 0], 2 * x, None)

    def loss(params, part):
        per_image = params["w"] ** 2 * part.t * part.x[:, 0] + part.z[:, 0]
        return per_image.mean(), per_image

    params = {"w": jnp.float32(3.0)}
    (value, per_image), grads = losses.value_and_grad(loss, params, batch, 3, unroll=True)
    t = np.arange(1, 13)
    np.testing.assert_allclose(per_image, 9 * t**2 + 2 * t)
    np.testing.assert_allclose(value, np.mean(9 * t**2 + 2 * t), rtol=1e-6)
    np.testing.assert_allclose(grads["w"], 6 * np.mean(t**2), rtol=1e-6)


@pytest.mark.parametrize("end", [1.0, 2.0])
def test_losses_by_noise_level(end):
    """A loss that is not finite affects its own level only."""
    times = end * jnp.array([0.05, 0.07, 0.32, 0.75, 1.0])
    values = jnp.array([1.0, 2.0, 4.0, jnp.nan, 8.0])
    sums, counts = losses.by_noise_level(values, times, VPSDE(T=end))
    np.testing.assert_array_equal(sums, [3, 0, 0, 4, 0, 0, 0, np.nan, 0, 8])
    np.testing.assert_array_equal(counts, [2, 0, 0, 1, 0, 0, 0, 1, 0, 1])
