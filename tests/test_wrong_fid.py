"""The benchmark of wrong FIDs: its ways to bytes, its samplers, differences and verdicts."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from benchmarks import wrong_fid, wrong_fid_page
from benchmarks.wrong_fid_causes import CAUSES, CLOTHES, ELSEWHERE, SOLVER, VE, Cause
from benchmarks.wrong_fid_images import FILES, ROUNDINGS
from experiment import Experiment
from metrics.distances import Moments
from sde_lib import VESDE, VPSDE
from tests import tiny


def test_every_cause_changes_its_protocol():
    for cause in CAUSES:
        assert cause.wrong != cause.right
        for protocol in (cause.wrong, cause.right):
            assert {protocol.file, protocol.split_file} <= FILES.keys()
            assert protocol.rounding in ROUNDINGS
    assert len({(cause.wrong, cause.right) for cause in CAUSES}) == len(CAUSES)
    assert ELSEWHERE.keys() <= {cause.name for cause in CAUSES}


# --- images ---

X = np.array([-1.2, -1.0, -0.003, 0.01, 0.41, 1.0, 1.2], np.float32).reshape(1, 7, 1, 1)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nearest", [0, 0, 127, 129, 180, 255, 255]),
        ("truncated", [0, 0, 127, 128, 179, 255, 255]),
        ("not dequantized", [0, 0, 127, 129, 180, 255, 255]),
        ("not clipped", [256 - 26, 0, 127, 128, 179, 255, 24]),
        ("stretched", [0, 21, 127, 129, 171, 234, 255]),
        ("not shifted", [0, 0, 0, 3, 105, 255, 255]),
        ("floats", [0, 0, 127.1175, 128.775, 179.775, 255, 255]),
    ],
)
def test_roundings(name, expected):
    """Worked out by hand from x in [-1, 1] and 256 levels."""
    config = tiny.config(**{"data.dataset": "noise", "data.centered": True})
    config.unlock().data.uniform_dequantization = True
    found = ROUNDINGS[name](Experiment(config), X)
    np.testing.assert_allclose(found.ravel(), expected, atol=1e-4)


def test_noise_of_the_last_step():
    """beta(1e-3) = 0.12 for the VP SDE: 0.011 in [-1, 1], 1.4 of 255 grey levels, and rounding."""
    config = tiny.config(**{"data.dataset": "noise", "data.centered": True})
    found = ROUNDINGS["noised"](Experiment(config), np.zeros((1, 300, 300, 1), np.float32))
    assert found.std() == pytest.approx(np.hypot(127.5 * np.sqrt(0.12 / 1000), 12**-0.5), rel=0.02)


def test_files_keep_flat_images():
    flat = np.full((2, 8, 8, 1), 100, np.uint8)
    for name, file in FILES.items():
        np.testing.assert_allclose(file(flat), 100, atol=1 if name == "dequantized" else 0)


def test_the_reduction_is_that_of_pillow():
    """Pillow's cubic kernel is antialiased; without antialiasing the result has more contrast."""
    noise = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 1), np.uint8)
    image = Image.fromarray(noise[0, ..., 0].astype(np.float32))
    cubic = Image.Resampling.BICUBIC
    expected = np.asarray(image.resize((8, 8), cubic).resize((16, 16), cubic))
    found, aliased = (FILES[name](noise)[0, ..., 0] for name in ("halved", "halved, aliased"))
    np.testing.assert_allclose(found, expected.clip(0, 255), atol=0.51)
    assert found.std() < 0.8 * aliased.std()


# --- samplers ---


def test_linear_levels():
    sde = wrong_fid.LinearLevels(sigma_min=0.01, sigma_max=5.0)
    levels = np.asarray(sde.std(sde.discretize(6).t))
    np.testing.assert_allclose(np.diff(levels), -4.99 / 5, rtol=1e-4)
    assert isinstance(sde, VESDE)


def test_a_late_score():
    """Of p_0 = 0 the estimate of the noise, -std(t) score, is x / std, here at the later time."""
    sde, late = VPSDE(), 0.1

    def exact(x, t):
        return -x / sde.var(t)[:, None, None, None]

    x, t = jnp.ones((2, 1, 1, 1)), jnp.array([0.3, 0.95])
    noise = -sde.std(t) * wrong_fid.late_score(exact, sde, late)(x, t).ravel()
    np.testing.assert_allclose(noise, 1 / sde.std(jnp.array([0.4, 1.0])), rtol=1e-5)


def test_samples_are_drawn_once_for_all_images_of_them():
    for cause in CAUSES:
        part = wrong_fid.sampler_part(cause.wrong)
        if cause.right in (SOLVER, CLOTHES) and not cause.changes.keys() & {"fields", "t_end"}:
            assert part == cause.right
    changed = dataclasses.replace(VE, linear_levels=True, rounding="floats")
    assert wrong_fid.sampler_part(changed) == dataclasses.replace(VE, linear_levels=True)


# --- distances ---


@pytest.fixture
def shifted(monkeypatch):
    """The features of samples with the cause are those without it, moved by `shift`."""
    rng = np.random.default_rng(0)
    pool, shift = rng.normal(size=(400, 3)), np.array([0.5, 0, 0])
    moments = Moments.from_features(rng.normal(size=(500, 3)))
    right, wrong = SOLVER, dataclasses.replace(SOLVER, rounding="floats")
    features = {right: pool, wrong: pool + shift}
    monkeypatch.setattr(wrong_fid, "sample_features", features.get)
    monkeypatch.setattr(wrong_fid, "reference_of", lambda protocol: moments)
    return pool, shift, moments, Cause("", "", right, {"rounding": "floats"})


def test_difference_of_shifted_features(shifted):
    """A shift changes the Frechet distance by that of the squared distance of the means."""
    pool, shift, moments, cause = shifted
    found = wrong_fid.measure(cause)
    gap = pool.mean(0) - moments.mean
    assert found["difference"] == pytest.approx(shift @ shift + 2 * shift @ gap, rel=1e-9)
    assert found["difference"] == pytest.approx(found["wrong"] - found["right"], rel=1e-9)
    # Its only term that depends on the samples is 2 shift . mean, a mean over the ten groups.
    means = 2 * shift[0] * pool[:, 0].reshape(40, 10).mean(0)
    assert found["stderr"] == pytest.approx(np.std(means, ddof=1) / np.sqrt(10), rel=1e-6)


def test_numbers_of_samples(shifted):
    pool, _, moments, cause = shifted
    found = wrong_fid.measure_number(cause.right, 100)
    each = [wrong_fid.distance(pool[i : i + 100], moments) for i in range(0, 400, 100)]
    assert found["value"] == pytest.approx(np.mean(each))
    assert found["stderr"] == pytest.approx(np.std(each, ddof=1) / 2)
    assert found["sets"] == 4
    assert wrong_fid.measure_number(cause.right, 400)["stderr"] is None


@pytest.mark.parametrize(
    ("difference", "stderr", "expected"),
    [
        (0.31, 0.1, "higher"),
        (0.29, 0.1, "not decided"),
        (-0.31, 0.1, "lower"),
        (-0.29, 0.1, "not decided"),
        (0.05, 0.02, "the same"),
        (-0.05, 0.02, "the same"),
        (0.05, 0.03, "not decided"),
    ],
)
def test_verdicts(difference, stderr, expected):
    """The margin is 10 % of the distance 1 without the cause."""
    record = {"right": 1.0, "difference": difference, "stderr": stderr}
    assert wrong_fid_page.verdict(record) == expected


@pytest.mark.slow
def test_the_right_protocol_is_that_of_the_program(monkeypatch):
    """Its images are those of `--mode=sample` with the same sampler."""
    protocol = dataclasses.replace(SOLVER, count=20)
    monkeypatch.setattr(wrong_fid, "BATCH_SIZE", 20)
    experiment = wrong_fid.experiment_of(protocol.network, protocol.fields)
    images = ROUNDINGS["nearest"](experiment, wrong_fid.draw(protocol))
    expected = experiment.sample_images(wrong_fid.network(protocol.network)[1], 0, 20).x
    np.testing.assert_array_equal(images, expected)
