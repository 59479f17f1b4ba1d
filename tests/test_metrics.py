"""Distances: closed forms, values recorded from TF-GAN, and torch-fidelity if installed."""

import functools
import math

import numpy as np
import pytest

from metrics import distances
from metrics.distances import Moments
from tests import programs, reference
from tests.refusal import refused


def correlated_features(count, dims, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, dims)) @ rng.normal(size=(dims, dims)) + rng.normal(size=dims)


# --- moments and the Frechet distance ---


def test_merged_moments_equal_those_of_all_images():
    x = correlated_features(1000, 6) + 1e4  # Sums of squares would lose eight digits here.
    parts = [Moments.from_features(part) for part in np.split(x, [1, 2, 300, 999])]
    left = functools.reduce(Moments.merge, parts)
    right = functools.reduce(Moments.merge, parts[::-1])
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
    refused("3 images are not finite", Moments.from_features, np.array([[1.0], [math.nan], [2.0]]))
    three, four = (Moments.from_features(correlated_features(9, dims)) for dims in (3, 4))
    refused("with 3 and 4 entries", distances.frechet_distance, three, four)


# --- the other distances ---


@pytest.mark.parametrize(("shift", "ratio"), [(0, math.sqrt(2)), (1, 1)])
def test_kernel_distance_is_unbiased_and_its_standard_error_correct(shift, ratio):
    """For equal laws the statistic is degenerate, and the jackknife's variance twice too large."""

    def draw(seed):
        rng = np.random.default_rng(seed)
        x, y = rng.normal(size=(120, 3)), rng.normal(size=(150, 3)) + shift
        return distances.kernel_distance(x, y)

    values, stderrs, _ = np.array([draw(seed) for seed in range(80)]).T
    # k(x, y) = (x y / 3 + 1)^3 has the moments E k(x, x') = 1 + 3 E u^2, and so on, u = x y / 3.
    expected = 0.0 if shift == 0 else mean_kernel(0, 0) + mean_kernel(1, 1) - 2 * mean_kernel(0, 1)
    assert abs(values.mean() - expected) < 3 * values.std() / math.sqrt(80)
    assert np.sqrt((stderrs**2).mean()) / values.std() == pytest.approx(ratio, rel=0.2)


def mean_kernel(a, b):
    """E (x y / 3 + 1)^3 for independent x ~ N(a 1, I) and y ~ N(b 1, I) in three dimensions."""
    # Gauss-Hermite quadrature over x; given x, x y is normal with mean b sum(x) and variance |x|^2.
    nodes, weights = np.polynomial.hermite_e.hermegauss(6)
    x = np.stack(np.meshgrid(nodes, nodes, nodes), -1).reshape(-1, 3) + a
    w = np.einsum("i,j,k->ijk", weights, weights, weights).reshape(-1) / weights.sum() ** 3
    m, v = 1 + b * x.sum(1) / 3, (x**2).sum(1) / 9
    return w @ (m**3 + 3 * m * v)


def test_kernel_distance_of_all_pairs():
    """The definition, written out; the order of images does not change the value."""
    x, y = correlated_features(33, 4), correlated_features(41, 4, seed=1)
    k = [(a @ b.T / 4 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y))]
    within = [(each.sum() - np.trace(each)) / (n * (n - 1)) for each, n in zip(k, (33, 41))]
    value = distances.kernel_distance(x, y).value
    assert value == pytest.approx(sum(within) - 2 * k[2].mean(), rel=1e-10)
    assert distances.kernel_distance(x[::-1], y[1:]).value != value
    assert distances.kernel_distance(x[::-1], y).value == pytest.approx(value, rel=1e-10)
    refused("29 and 41 images are too few", distances.kernel_distance, x[:29], y)


def test_inception_score():
    """The exponential of the entropy of the mean prediction less the mean entropy of each."""
    half = np.array([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5], [0.9, 0.05, 0.05]])
    certain = np.eye(3)[np.repeat([0, 1, 2], [6, 3, 1])]
    for p in (half, certain, np.tile(np.eye(5), (4, 1)), np.full((7, 5), 0.2)):
        entropies = [-(q[q > 0] * np.log(q[q > 0])).sum() for q in (*p, p.mean(0))]
        expected = math.exp(entropies[-1] - np.mean(entropies[:-1]))
        logits = np.log(np.maximum(p, 1e-300)) + np.resize([3.0, -2, 500], (len(p), 1))
        assert distances.inception_score(logits) == pytest.approx(expected, rel=1e-10)


def values(estimates):
    return tuple(estimate.value for estimate in estimates.values())


@pytest.mark.slow
@pytest.mark.parametrize("dims", [4, pytest.param(16, marks=pytest.mark.slow)])
def test_errors_of_precision_and_recall_are_those_over_draws(dims):
    """Binomial errors would be 0.6 to 0.85 times as large for recall."""
    rng = np.random.default_rng(dims)
    real = rng.normal(size=(500, dims))
    draws = (0.8 * rng.normal(size=(300, dims)) for _ in range(40))
    found = [distances.precision_recall(real, draw) for draw in draws]
    for name in ("precision", "recall"):
        drawn, stderrs, _ = np.array([each[name] for each in found]).T
        assert np.sqrt((stderrs**2).mean()) == pytest.approx(drawn.std(ddof=1), rel=0.25)


def test_precision_and_recall(monkeypatch):
    real = np.array([[0.0], [1], [2], [3], [10]])  # Radii to the second neighbor: 2, 1, 1, 2, 8.
    # Radii: 4.6, 4.8, 4.6, 15.4, 15.6.
    generated = np.array([[-1.9], [-2.1], [2.5], [17.9], [18.1]])
    for rows in (1024, 2):
        monkeypatch.setattr(distances, "CHUNK_ROWS", rows)
        assert values(distances.precision_recall(real, generated, k=2)) == pytest.approx((0.6, 1))
        assert values(distances.precision_recall(real, real)) == (1, 1)
        assert values(distances.precision_recall(real + 1e4, real)) == (0, 0)
    refused("5 and 3 images are too few", distances.precision_recall, real, generated[:3])


def test_products_are_exact():
    """Distances to neighbors are compared, so that rounded products would count wrong images."""
    x = np.ones((5, 3), np.float32)
    exact = programs.exact_products(distances._squared_distances, x, x)
    assert exact == [True]


def test_jackknife():
    """It gives the standard error of a mean, and the unbiased variance from the biased one."""
    x = correlated_features(30, 1)[:, 0]
    found = distances.jackknife(lambda kept: x[kept].mean(), 30)
    assert found[:2] == pytest.approx((x.mean(), x.std(ddof=1) / math.sqrt(30)))
    found = distances.jackknife(lambda kept: x[kept].var(), 30)
    assert found.extrapolated == pytest.approx(x.var(ddof=1))


# --- recorded values and other implementations ---


def tfgan_blocks(x, record):
    count = math.ceil(max(len(record["A"]), len(record["B"])) / 100)
    sizes = np.full(count, len(x) // count)
    sizes[count - len(x) % count :] += 1
    return np.split(x, np.cumsum(sizes)[:-1])


def test_values_of_tfgan():
    record = reference.arrays("metrics_tfgan")
    a, b, a2, b2 = (Moments.from_features(record[name]) for name in ("A", "B", "A2", "B2"))
    assert distances.frechet_distance(a, b) == pytest.approx(float(record["fid"]), rel=1e-5)
    assert distances.frechet_distance(a2, b2) == pytest.approx(float(record["fid2"]), rel=1e-5)
    one_block = distances.kernel_distance(record["A"], record["B"]).value
    assert one_block == pytest.approx(float(record["kid_one_block"]), rel=1e-5)
    # TF-GAN averages over blocks: as few as possible of at most 100 images, the longer ones last.
    blocks = []
    for x, y in zip(*(tfgan_blocks(record[name], record) for name in ("A", "B"))):
        blocks.append(distances.kernel_distance(x, y).value)
    stderr = np.std(blocks, ddof=1) / math.sqrt(len(blocks))
    expected = float(record["kid_block100"]), float(record["kid_std_block100"])
    assert (np.mean(blocks), stderr) == pytest.approx(expected, rel=1e-5)
    score = distances.inception_score(record["logits"])
    assert score == pytest.approx(float(record["is"]), rel=1e-5)


@pytest.mark.slow
def test_values_of_torch_fidelity():
    missing = "not installed (requirements-dev.txt)"
    torch = pytest.importorskip("torch", reason=missing)
    pytest.importorskip("torch_fidelity", reason=missing)
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
    ours = values(distances.precision_recall(real, generated))
    assert ours == pytest.approx(expected, abs=1e-6)
