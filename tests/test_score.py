"""Labels, outputs and discrete marginals against recorded official values and closed forms."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import losses
from models.score import PARAMETERIZATIONS, ScoreModel, conventions
from sde_lib import SDES, VPSDE, expand
from tests import reference


def model(sde_name: str, num_scales: int | None = None) -> ScoreModel:
    """The conventions of an SDE with default parameters."""
    return ScoreModel(SDES[sde_name](), num_scales, **conventions(sde_name)._asdict())


@pytest.mark.parametrize("name", ["vesde", "vpsde", "subvpsde"])
def test_labels(name):
    recorded, prefix = reference.arrays("sde"), name.removesuffix("sde") + "/"
    labels = model(name).label(recorded["t"])
    np.testing.assert_allclose(labels, recorded[f"{prefix}label_continuous"], rtol=2e-7)
    if f"{prefix}N1000/sampling_label_discrete" in recorded:
        labels = model(name, 1000).label(recorded[f"{prefix}N1000/sampling_t"])
        expected = recorded[f"{prefix}N1000/sampling_label_discrete"]
        np.testing.assert_allclose(labels, expected, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("n", [10, 232, 500, 1000, 1086, 2000])
def test_discrete_times_keep_their_index_in_float32(n):
    t = np.arange(n, dtype=np.float32) * np.float32(1 / (n - 1))
    ascending, descending = model("vpsde", n).label(t), model("vesde", n).label(t)
    assert np.array_equal(ascending, np.arange(n))
    assert np.array_equal(descending, np.arange(n)[::-1])
    assert descending.dtype == jnp.int32


def test_marginals_of_the_ddpm_chain():
    recorded = reference.arrays("sde")
    alpha, std = model("vpsde", 1000).marginal(np.arange(1000) / np.float32(999))
    np.testing.assert_allclose(alpha, recorded["vp/N1000/sqrt_alphas_cumprod"], rtol=1e-5)
    # The official 1 - prod(alphas) cancels in float32 at the lowest levels.
    expected = recorded["vp/N1000/sqrt_1m_alphas_cumprod"]
    np.testing.assert_allclose(std[3:], expected[3:], rtol=1e-4)
    betas = VPSDE().betas(1000)
    np.testing.assert_allclose(std, np.sqrt(1 - np.cumprod(1 - betas)), rtol=1e-6)
    between, level = (model("vpsde", 101).marginal(jnp.array([t])) for t in (0.3094, 0.3))
    np.testing.assert_array_equal(between, level)  # Between levels, that of the lower one.
    with pytest.raises(ValueError, match="'edm' has no labels for discrete noise levels"):
        ScoreModel(VPSDE(), 1000, "edm").label(jnp.array([0.5]))


def test_marginals_of_a_fine_chain_are_those_of_the_sde():
    """DDPM's chain converges to the VP SDE (Appendix B)."""
    t = jnp.linspace(0.1, 1, 7)
    alpha, std = model("vpsde", 100_000).marginal(t)
    np.testing.assert_allclose(alpha, VPSDE().alpha(t), rtol=2e-3)
    np.testing.assert_allclose(std, VPSDE().std(t), rtol=2e-3)


def outputs(data, z, alpha, std):
    """The exact outputs for x_t = alpha data + std z, by each parameterization's definition."""
    y, sigma, data_std = data + std / alpha * z, std / alpha, 0.5
    total = jnp.sqrt(sigma**2 + data_std**2)  # Karras et al. (2022), Table 1
    c_skip, c_out = data_std**2 / total**2, sigma * data_std / total
    return {
        "noise": z,
        "score": -z / std,
        "velocity": (alpha * z - std * data) / jnp.sqrt(alpha**2 + std**2),
        "flow": z - data,
        "data": data,
        "edm": (data - c_skip * y) / c_out,
    }


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_outputs_represent_scores(parameterization):
    """c_skip x + c_out F is the data, F represents -z / std, and c_in x has the stated scale."""
    chain = dataclasses.replace(model("vpsde", 1000), parameterization=parameterization)
    models = [ScoreModel(sde(), parameterization=parameterization) for sde in SDES.values()]
    t, z = jnp.array([0.3, 0.9]), jnp.arange(-3.0, 3.0).reshape(2, 3)
    data = jnp.cos(z)
    for score_model in (chain, *models):
        marginal = score_model.marginal(t)
        alpha, std = (each[:, None] for each in marginal)
        x = alpha * data + std * z
        exact = outputs(data, z, alpha, std)[parameterization]
        c_skip, c_out, c_in = (
            score_model.coefficient(name, marginal, x) for name in ("c_skip", "c_out", "c_in")
        )
        denoised = score_model.denoised_from_output(exact, x, marginal)
        np.testing.assert_allclose(c_skip * x + c_out * exact, denoised, rtol=1e-6)
        np.testing.assert_allclose(denoised, data, atol=2e-4)
        score = score_model.score_from_output(exact, x, t)
        rtol = 1e-6 if parameterization in ("noise", "score") else 1e-3
        np.testing.assert_allclose(score, -z / std, rtol=rtol, atol=1e-3 * rtol)
        variance = alpha**2 * 0.25 + std**2
        expected = 1 / variance if parameterization == "edm" else 1
        np.testing.assert_allclose(c_in**2, expected, rtol=1e-5)


@pytest.mark.parametrize("parameterization", ["velocity", "flow", "data", "edm"])
def test_losses_of_later_parameterizations(parameterization):
    """They are the mean squared errors of the network's output."""
    score_model = ScoreModel(VPSDE(), parameterization=parameterization)
    x, z = (
        jnp.linspace(-1, 1, 12).reshape(3, 2, 2, 1),
        jnp.cos(jnp.arange(12.0)).reshape(3, 2, 2, 1),
    )
    t = jnp.array([0.1, 0.5, 0.9])
    alpha, std = (expand(each, x) for each in score_model.marginal(t))
    exact = outputs(x, z, alpha, std)[parameterization]

    def score(noised, t):
        return score_model.score_from_output(exact + 0.1 * x, noised, t)

    weight = score_model.loss_weight(t)
    found = losses.denoising_score_matching(score, VPSDE(), x, t, z, weight=weight)
    np.testing.assert_allclose(found, (0.01 * x**2).mean((1, 2, 3)), rtol=2e-3)


def test_other_sdes_use_the_default_conventions():
    defaults = conventions("a new sde")
    assert defaults == conventions("subvpsde")
    names = {"edmsde": "edm", "rectifiedflow": "flow", "cosinesde": "noise", "vesde": "score"}
    assert {sde: model(sde).parameterization for sde in names} == names
    assert model("vpsde").loss_weight(jnp.array([0.5])) is None
    score_model = ScoreModel(VPSDE(T=2.0), **defaults._asdict())
    t = jnp.array([0.5, 2.0])
    np.testing.assert_allclose(score_model.label(t), 999 * t / 2)
    np.testing.assert_allclose(score_model.marginal(t)[1], VPSDE(T=2.0).std(t))
