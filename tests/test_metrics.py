"""Distances: closed forms, values recorded from TF-GAN, and torch-fidelity if installed."""

import math

import numpy as np
import pytest

from errors import InputError
from metrics import distances
from metrics.distances import Moments
from tests import reference


def correlated_features(count, dims, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, dims)) @ rng.normal(size=(dims, dims)) + rng.normal(size=dims)


# --- moments and the Frechet distance ---


def test_merged_moments_equal_those_of_all_images():
    x = correlated_features(1000, 6) + 1e4  # Sums of squares would lose eight digits here.
    parts = [Moments.from_features(part) for part in np.split(x, [1, 2, 300, 999])]
    left = parts[0].merge(parts[1]).merge(parts[2]).merge(parts[3]).merge(parts[4])
    right = parts[0].merge(parts[1].merge(parts[2].merge(parts[3].merge(parts[4]))))
    for merged in (left, right):
        assert merged.count == 1000
        np.testing.assert_allclose(merged.mean, x.mean(0), rtol=1e-14)
        np.testing.assert_allclose(merged.covariance, np.cov(x.T), rtol=1e-11)


def test_frechet_distance_of_commuting_covariances():
    """|m - n|^2 + sum (s - t)^2 for standard deviations s and t along common axes."""
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))
    m, n = np.arange(5.0), np.ones(5)
    s, t = np.array([1.0, 2, 0, 0.5, 3]), np.array([2.0, 2, 1, 0, 1e-3])
    a, b = (Moments(None, mean, q * std**2 @ q.T) for mean, std in ((m, s), (n, t)))
    expected = np.sum((m - n) ** 2) + np.sum((s - t) ** 2)
    assert distances.frechet_distance(a, b) == pytest.approx(expected, rel=1e-7)
    assert distances.frechet_distance(b, a) == pytest.approx(expected, rel=1e-7)


def test_frechet_distance_between_halves_of_a_set_decreases_with_its_size():
    scaled = []
    for count in (200, 800, 3200):
        x = correlated_features(count, 8)
        full, half, other = (Moments.from_features(part) for part in (x, x[::2], x[1::2]))
        rounding = 1e-12 * np.trace(full.covariance)
        assert distances.frechet_distance(full, full) == pytest.approx(0, abs=rounding)
        scaled.append(distances.frechet_distance(half, other) * count)
    assert max(scaled) < 4 * min(scaled)  # The bias is of order 1 / N.
    assert min(scaled) > 0


def test_frechet_distance_of_few_samples():
    """With fewer images than features it is real and symmetric, and exact for a single image."""
    few, many = correlated_features(5, 40), correlated_features(500, 40, seed=1)
    a, b = Moments.from_features(few), Moments.from_features(many)
    assert (a.rank_deficient, b.rank_deficient) == (True, False)
    there, back = distances.frechet_distance(a, b), distances.frechet_distance(b, a)
    assert there == pytest.approx(back, rel=1e-6)
    single = Moments.from_features(few[:1])
    expected = np.sum((single.mean - b.mean) ** 2) + np.trace(b.covariance)
    assert distances.frechet_distance(single, b) == pytest.approx(expected, rel=1e-12)


def test_features_that_cannot_be_compared():
    with pytest.raises(InputError, match="Features of 3 images are not finite"):
        Moments.from_features(np.array([[1.0], [math.nan], [2.0]]))
    three, four = (Moments.from_features(correlated_features(9, dims)) for dims in (3, 4))
    with pytest.raises(InputError, match="with 3 and 4 entries come from different networks"):
        distances.frechet_distance(three, four)


# --- the other distances ---


def test_kernel_distance_is_unbiased_and_its_standard_error_correct():
    shifted, same = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        x, y = rng.normal(size=(2, 120, 3))
        same.append(distances.kernel_distance(x, y, 20))
        shifted.append(distances.kernel_distance(x, y + 1, 20).value)
    values, stderrs = np.array(same).T
    assert abs(values.mean()) < 4 * values.std() / math.sqrt(40)
    assert values.std() == pytest.approx(np.sqrt((stderrs**2).mean()), rel=0.5)
    assert np.mean(shifted) > 10 * values.std()


def test_kernel_distance_of_one_block():
    x, y = correlated_features(30, 4), correlated_features(20, 4, seed=1)
    assert math.isnan(distances.kernel_distance(x, y).stderr)
    with pytest.raises(InputError, match="30 and 20 images cannot be split into 15 blocks of at"):
        distances.kernel_distance(x, y, 2)


def test_inception_score():
    """1 for a constant classifier; the number of classes for certain and balanced predictions."""
    constant, certain = np.full((7, 5), 3.0), np.tile(1e4 * np.eye(5), (4, 1))
    assert distances.inception_score(constant) == pytest.approx(1, rel=1e-12)
    assert distances.inception_score(certain) == pytest.approx(5, rel=1e-12)


def test_precision_and_recall(monkeypatch):
    real = np.array([[0.0], [1], [2], [3], [10]])  # Radii to the second neighbor: 2, 1, 1, 2, 8.
    # Radii: 4.6, 4.8, 4.6, 15.4, 15.6.
    generated = np.array([[-1.9], [-2.1], [2.5], [17.9], [18.1]])
    for rows in (1024, 2):
        monkeypatch.setattr(distances, "CHUNK_ROWS", rows)
        assert distances.precision_recall(real, generated, k=2) == pytest.approx((0.6, 1.0))
        assert distances.precision_recall(real, real) == (1, 1)
        assert distances.precision_recall(real + 1e4, real) == (0, 0)
    with pytest.raises(InputError, match="5 and 3 images are too few for neighbor number 3"):
        distances.precision_recall(real, generated[:3])


def test_jackknife():
    """It gives the standard error of a mean, and the unbiased variance from the biased one."""
    x = correlated_features(30, 1)[:, 0]
    without = np.array([np.delete(x, i) for i in range(30)])
    stderr = distances.jackknife(x.mean(), without.mean(1)).stderr
    assert stderr == pytest.approx(x.std(ddof=1) / math.sqrt(30))
    assert distances.jackknife(x.var(), without.var(1)).extrapolated == pytest.approx(x.var(ddof=1))


# --- recorded values and other implementations ---


def test_values_of_tfgan():
    record = reference.arrays("metrics_tfgan")
    a, b, a2, b2 = (Moments.from_features(record[name]) for name in ("A", "B", "A2", "B2"))
    assert distances.frechet_distance(a, b) == pytest.approx(float(record["fid"]), rel=1e-5)
    assert distances.frechet_distance(a2, b2) == pytest.approx(float(record["fid2"]), rel=1e-5)
    one_block = distances.kernel_distance(record["A"], record["B"]).value
    assert one_block == pytest.approx(float(record["kid_one_block"]), rel=1e-5)
    blocks = distances.kernel_distance(record["A"], record["B"], 100)
    expected = float(record["kid_block100"]), float(record["kid_std_block100"])
    assert blocks == pytest.approx(expected, rel=1e-5)
    score = distances.inception_score(record["logits"])
    assert score == pytest.approx(float(record["is"]), rel=1e-5)


def test_values_of_torch_fidelity():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (requirements-dev.txt)")
    pytest.importorskip(
        "torch_fidelity", reason="torch-fidelity is not installed (requirements-dev.txt)"
    )
    from torch_fidelity import metric_fid, metric_prc

    real = correlated_features(200, 8)
    generated = 0.8 * correlated_features(150, 8) + 0.3
    statistics = [metric_fid.fid_features_to_statistics(torch.tensor(x)) for x in (generated, real)]
    expected = metric_fid.fid_statistics_to_metric(*statistics, verbose=False)
    fid = distances.frechet_distance(Moments.from_features(real), Moments.from_features(generated))
    assert fid == pytest.approx(expected["frechet_inception_distance"], rel=1e-8)
    expected = metric_prc.calculate_precision_recall_full(
        torch.tensor(generated), torch.tensor(real)
    )
    assert distances.precision_recall(real, generated) == pytest.approx(expected, abs=1e-6)
