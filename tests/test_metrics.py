"""Metrics: closed forms, TF-GAN's recorded values, and torch-fidelity where it is installed."""

import math

import numpy as np
import pytest

from errors import InputError
from metrics import distances
from metrics.distances import Moments
from tests import reference


def draws(count, dims, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, dims)) @ rng.normal(size=(dims, dims)) + rng.normal(size=dims)


# --- moments and the Frechet distance ---------------------------------------------------------------------------------


def test_moments_of_batches_are_those_of_the_whole():
    x = draws(1000, 6) + 1e4  # Sums of squares would lose eight digits here.
    parts = [Moments.of(part) for part in np.split(x, [1, 2, 300, 999])]
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


def test_frechet_distance_of_a_set_split_in_two_falls_with_its_size():
    distances = []
    for count in (200, 800, 3200):
        x = draws(count, 8)
        whole, half, other = Moments.of(x), Moments.of(x[::2]), Moments.of(x[1::2])
        assert distances.frechet_distance(whole, whole) == pytest.approx(
            0, abs=1e-12 * np.trace(whole.covariance)
        )
        distances.append(distances.frechet_distance(half, other) * count)
    assert max(distances) < 4 * min(distances)  # Its bias is of order 1 / N.
    assert min(distances) > 0


def test_few_samples():
    """Fewer images than features: real, symmetric, and exact where a matrix root is not even needed."""
    few, many = draws(5, 40), draws(500, 40, seed=1)
    a, b = Moments.of(few), Moments.of(many)
    assert (a.rank_deficient, b.rank_deficient) == (True, False)
    assert distances.frechet_distance(a, b) == pytest.approx(
        distances.frechet_distance(b, a), rel=1e-6
    )
    single = Moments.of(few[:1])
    expected = np.sum((single.mean - b.mean) ** 2) + np.trace(b.covariance)
    assert distances.frechet_distance(single, b) == pytest.approx(expected, rel=1e-12)


def test_features_that_cannot_be_compared():
    with pytest.raises(InputError, match="Features of 3 images are not finite"):
        Moments.of(np.array([[1.0], [math.nan], [2.0]]))
    with pytest.raises(InputError, match="with 3 and 4 entries are not those of one network"):
        distances.frechet_distance(Moments.of(draws(9, 3)), Moments.of(draws(9, 4)))


# --- the others -------------------------------------------------------------------------------------------------------


def test_kernel_distance_has_no_bias_and_the_error_that_it_says():
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
    x, y = draws(30, 4), draws(20, 4, seed=1)
    assert math.isnan(distances.kernel_distance(x, y).stderr)
    with pytest.raises(InputError, match="30 and 20 images cannot be 15 blocks of at least two"):
        distances.kernel_distance(x, y, 2)


def test_inception_score():
    """1 if images tell nothing of their classes; the number of classes if they tell all, evenly."""
    assert distances.inception_score(np.full((7, 5), 3.0)) == pytest.approx(1, rel=1e-12)
    assert distances.inception_score(np.tile(1e4 * np.eye(5), (4, 1))) == pytest.approx(
        5, rel=1e-12
    )


def test_precision_and_recall(monkeypatch):
    real = np.array([[0.0], [1], [2], [3], [10]])  # Radii to the second neighbour: 2, 1, 1, 2, 8.
    generated = np.array(
        [[-1.9], [-2.1], [2.5], [17.9], [18.1]]
    )  # Radii: 4.6, 4.8, 4.6, 15.4, 15.6.
    for rows in (1024, 2):
        monkeypatch.setattr(distances, "ROWS", rows)
        assert distances.precision_recall(real, generated, k=2) == pytest.approx((0.6, 1.0))
        assert distances.precision_recall(real, real) == (1, 1)
        assert distances.precision_recall(real + 1e4, real) == (0, 0)
    with pytest.raises(InputError, match="5 and 3 images are too few for neighbour number 3"):
        distances.precision_recall(real, generated[:3])


def test_jackknife():
    """Leaving out single images: the standard error of a mean, and the unbiased variance from the biased one."""
    x = draws(30, 1)[:, 0]
    without = np.array([np.delete(x, i) for i in range(30)])
    assert distances.jackknife(x.mean(), without.mean(1)).stderr == pytest.approx(
        x.std(ddof=1) / math.sqrt(30)
    )
    assert distances.jackknife(x.var(), without.var(1)).extrapolated == pytest.approx(x.var(ddof=1))


# --- recorded values and peers ----------------------------------------------------------------------------------------


def test_values_of_tfgan():
    a = {
        name: array if array.ndim else float(array)
        for name, array in reference.arrays("metrics_tfgan").items()
    }
    fid = distances.frechet_distance(Moments.of(a["A"]), Moments.of(a["B"]))
    few = distances.frechet_distance(Moments.of(a["A2"]), Moments.of(a["B2"]))
    assert (fid, few) == pytest.approx((a["fid"], a["fid2"]), rel=1e-5)
    assert distances.kernel_distance(a["A"], a["B"]).value == pytest.approx(
        a["kid_one_block"], rel=1e-5
    )
    blocks = distances.kernel_distance(a["A"], a["B"], 100)
    assert blocks == pytest.approx((a["kid_block100"], a["kid_std_block100"]), rel=1e-5)
    assert distances.inception_score(a["logits"]) == pytest.approx(a["is"], rel=1e-5)


def test_values_of_torch_fidelity():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed (requirements-dev.txt)")
    pytest.importorskip(
        "torch_fidelity", reason="torch-fidelity is not installed (requirements-dev.txt)"
    )
    from torch_fidelity import metric_fid, metric_prc

    real, generated = draws(200, 8), 0.8 * draws(150, 8) + 0.3
    theirs = [metric_fid.fid_features_to_statistics(torch.tensor(x)) for x in (generated, real)]
    theirs = metric_fid.fid_statistics_to_metric(*theirs, verbose=False)[
        "frechet_inception_distance"
    ]
    assert distances.frechet_distance(Moments.of(real), Moments.of(generated)) == pytest.approx(
        theirs, rel=1e-8
    )
    theirs = metric_prc.calculate_precision_recall_full(torch.tensor(generated), torch.tensor(real))
    assert distances.precision_recall(real, generated) == pytest.approx(theirs, abs=1e-6)
