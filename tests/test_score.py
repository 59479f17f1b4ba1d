"""Labels, outputs and discrete marginals against recorded official values and closed forms."""

import jax.numpy as jnp
import numpy as np
import pytest

from models.score import PARAMETERISATIONS, ScoreModel, conventions
from sde_lib import SDES, VPSDE
from tests import reference


def model(sde_name: str, num_scales: int | None = None) -> ScoreModel:
    """The conventions of an SDE with default parameters."""
    return ScoreModel(SDES[sde_name](), num_scales, **conventions(sde_name)._asdict())


@pytest.mark.parametrize("name", SDES)
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


def test_marginals_of_a_fine_chain_are_those_of_the_sde():
    """DDPM's chain converges to the VP SDE (Appendix B)."""
    t = jnp.linspace(0.1, 1, 7)
    alpha, std = model("vpsde", 100_000).marginal(t)
    np.testing.assert_allclose(alpha, VPSDE().alpha(t), rtol=2e-3)
    np.testing.assert_allclose(std, VPSDE().std(t), rtol=2e-3)


@pytest.mark.parametrize("num_scales", [None, 1000])
@pytest.mark.parametrize("parameterisation", PARAMETERISATIONS)
def test_outputs_represent_scores(parameterisation, num_scales):
    """For given x_0 and z, each parameterisation converts its exact output to -z / std."""
    default = model("vpsde", num_scales)
    score_model = ScoreModel(
        default.sde, num_scales, parameterisation, level_marginal=default.level_marginal
    )
    t, z = jnp.array([0.2, 0.9]), jnp.arange(12.0).reshape(2, 2, 3, 1)
    std = score_model.marginal(t)[1].reshape(2, 1, 1, 1)
    exact_outputs = {"noise": z, "score": -z / std}
    score = score_model.score_from_output(exact_outputs[parameterisation], t)
    np.testing.assert_allclose(score, -z / std, rtol=1e-6)


def test_marginals_between_levels_are_those_of_the_lower_level():
    score_model = model("vpsde", 101)
    between, level = (score_model.marginal(jnp.array([t])) for t in (0.3094, 0.3))
    np.testing.assert_array_equal(between, level)


def test_labels_of_other_final_times():
    """Labels are functions of t / T."""
    t = jnp.array([0.0, 0.6, 2.0])
    index = ScoreModel(VPSDE(T=2.0), 11, "noise").label(t)
    descending = ScoreModel(VPSDE(T=2.0), 11, "score").label(t)
    np.testing.assert_allclose(index, [0, 3, 10], atol=1e-4)
    np.testing.assert_array_equal(descending, [10, 7, 0])


def test_inputs_and_outputs_of_networks():
    """Data in [0, 1] are passed as 2 x - 1; the output is divided by the noise scale."""
    x, t = jnp.arange(4.0).reshape(2, 2), jnp.array([0.25, 1.0])

    def network(inputs, label, rngs, **conditioning):
        received.append((inputs, label, conditioning))
        return 6 * jnp.ones_like(inputs)

    def output(**options):
        score_model = ScoreModel(VPSDE(), **options)
        return score_model.output(network, x, score_model.label(t)), *received[-1]

    received = []
    result, inputs, label, conditioning = output()
    np.testing.assert_array_equal(result, 6)
    np.testing.assert_array_equal(inputs, x)
    np.testing.assert_allclose(label, 999 * t)
    assert conditioning == {}
    result, inputs, _, conditioning = output(centered=False, sigmas=(), num_classes=7)
    np.testing.assert_array_equal(inputs, 2 * x - 1)
    np.testing.assert_allclose(result, [[6 / 249.75] * 2, [6 / 999] * 2])
    np.testing.assert_array_equal(conditioning["classes"], [7, 7])
    result, inputs, label, _ = output(num_scales=5, sigmas=(1.0, 2, 3, 4, 5), dtype=jnp.bfloat16)
    np.testing.assert_allclose(label, [1, 4])
    np.testing.assert_allclose(result, [[3, 3], [1.2, 1.2]], rtol=1e-6)
    assert (inputs.dtype, result.dtype) == (jnp.bfloat16, jnp.float32)


def test_other_sdes_use_the_default_conventions():
    defaults = conventions("a new sde")
    assert defaults == conventions("subvpsde")
    score_model = ScoreModel(VPSDE(T=2.0), **defaults._asdict())
    t = jnp.array([0.5, 2.0])
    np.testing.assert_allclose(score_model.label(t), 999 * t / 2)
    np.testing.assert_allclose(score_model.marginal(t)[1], VPSDE(T=2.0).std(t))
