"""The one loss against the recorded official losses, and its defining property."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import losses
from sde_lib import VESDE, VPSDE, SubVPSDE
from tests import gaussian, reference

SDES = {"ve": VESDE(), "vp": VPSDE(), "subvp": SubVPSDE()}
FLAGS = [(lw, rm) for lw in (False, True) for rm in (False, True)]


def levels_to_times(labels: np.ndarray, n: int, descending: bool) -> np.ndarray:
    """SMLD counts its noise levels from the largest, DDPM from the least."""
    index = n - 1 - labels if descending else labels
    return index.astype(np.float32) * np.float32(1 / (n - 1))


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize(("likelihood_weighting", "reduce_mean"), FLAGS)
def test_continuous_losses(name, likelihood_weighting, reduce_mean):
    a = reference.arrays("losses")
    score = lambda x, t: -x / (1 + t[:, None, None, None])
    ours = losses.denoising_score_matching(
        score,
        SDES[name],
        *(a[f"closed/{key}"] for key in ("data", "t", "z")),
        likelihood_weighting=likelihood_weighting,
        reduce_mean=reduce_mean,
    )
    theirs = a[f"closed/{name}/lw{int(likelihood_weighting)}_rm{int(reduce_mean)}_per_sample"]
    # The official float32 std has lost digits at small t, where ours has not (see test_sde_lib).
    fine = np.abs(a[f"closed/{name}/std"] / SDES[name].std(a["closed/t"]) - 1) < 1e-6
    assert fine.sum() >= 3
    np.testing.assert_allclose(ours[fine], theirs[fine], rtol=3e-6)
    np.testing.assert_allclose(ours, theirs, rtol=2e-4)


@pytest.mark.parametrize("reduce_mean", [False, True])
@pytest.mark.parametrize("name", ["smld", "ddpm"])
def test_discrete_losses(name, reduce_mean):
    a, sde = reference.arrays("losses"), SDES["ve" if name == "smld" else "vp"]
    labels = a["closed/labels"]
    output = lambda x, t: -x / (1 + sde.label(t, 1000)[:, None, None, None] / 1000)
    score = lambda x, t: sde.score_from_output(output(x, t), t, 1000)
    t = levels_to_times(labels, 1000, name == "smld")
    ours = losses.denoising_score_matching(
        score, sde, a["closed/data"], t, a["closed/z"], num_scales=1000, reduce_mean=reduce_mean
    )
    np.testing.assert_allclose(ours, a[f"closed/{name}/rm{int(reduce_mean)}_per_sample"], rtol=1e-5)


@pytest.mark.parametrize("name", list(reference.notes("losses")["nets"]))
def test_losses_and_gradients_of_networks(name):
    a, note = reference.arrays("losses"), reference.notes("losses")["nets"][name]
    experiment, params = reference.experiment(note["folder"]), reference.trained(note["folder"]).ema
    n, data, z = note.get("N"), a[f"{name}/data"], a[f"{name}/z"]
    descending = isinstance(experiment.sde, VESDE)
    t = a[f"{name}/t"] if n is None else levels_to_times(a[f"{name}/labels"], n, descending)

    weighted = name == "net_vp"
    key = "rm1" if n is not None else "lw1_rm0" if weighted else "lw0_rm1"

    def loss(params):
        options = {"num_scales": n, "likelihood_weighting": weighted, "reduce_mean": not weighted}
        score = experiment.score(params)
        return losses.denoising_score_matching(score, experiment.sde, data, t, z, **options).mean()

    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))
    np.testing.assert_allclose(value, a[f"{name}/{key}"], rtol=1e-5)
    np.testing.assert_allclose(norm, a[f"{name}/{key}_gradnorm"], rtol=1e-5)


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
def test_the_true_score_is_the_minimum(sde):
    """Any change of the true score of Gaussian data makes the loss larger."""
    mean, std = 0.3, 0.4
    x = mean + std * jax.random.normal(jax.random.key(0), (50_000, 2, 1, 1))
    t, z = losses.draw(jax.random.key(1), sde, x)
    true = gaussian.score(sde, mean, std)

    def loss(scale, shift):
        score = lambda x, t: scale * true(x, t) + shift
        return losses.denoising_score_matching(score, sde, x, t, z).mean()

    slopes = jax.grad(loss, argnums=(0, 1))(1.0, 0.0)
    assert abs(slopes[0]) < 0.02
    assert abs(slopes[1]) < 0.02 * sde.prior_std
    assert loss(1.0, 0.0) < min(loss(0.8, 0.0), loss(1.2, 0.0))


def test_draws():
    x = jnp.zeros((4000, 1, 1, 1))
    t, z = losses.draw(jax.random.key(0), VPSDE(), x)
    assert VPSDE().t_min <= t.min()
    assert t.max() <= 1
    assert abs(t.mean() - 0.5) < 0.02
    assert abs(z.std() - 1) < 0.05
    t, _ = losses.draw(jax.random.key(0), VPSDE(), x, num_scales=5)
    assert set(np.asarray(VPSDE().label(t, 5)).tolist()) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
def test_importance_sampled_times(sde):
    """The likelihood-weighted loss of a wrong score has the same mean, and less variance; with VE, the same times.

    From t = 1e-3 on: with uniform times, what lies below is too rare to be seen.
    """
    sde = dataclasses.replace(sde, t_min=1e-3)
    x = 0.3 + 0.4 * jax.random.normal(jax.random.key(0), (100_000, 2, 1, 1))
    score = lambda x, t: 0.8 * gaussian.score(sde, 0.3, 0.4)(x, t)

    def moments(importance_weighting):
        t, z = losses.draw(jax.random.key(1), sde, x, importance_weighting=importance_weighting)
        assert sde.t_min * 0.999 <= t.min()
        assert t.max() <= sde.T
        options = {"likelihood_weighting": True, "importance_weighting": importance_weighting}
        values = losses.denoising_score_matching(score, sde, x, t, z, **options)
        return values.mean(), values.std()

    (uniform, spread), (mean, less) = moments(False), moments(True)
    assert abs(uniform - mean) < 4 * np.hypot(spread, less) / np.sqrt(100_000)
    assert less < (1.001 if isinstance(sde, VESDE) else 0.9) * spread


def test_losses_by_noise_level():
    sums, counts = losses.by_noise_level(
        jnp.array([1.0, 2.0, 4.0]), jnp.array([0.05, 0.07, 1.0]), VPSDE()
    )
    assert sums.tolist() == [3, 0, 0, 0, 0, 0, 0, 0, 0, 4]
    assert counts.tolist() == [2, 0, 0, 0, 0, 0, 0, 0, 0, 1]
