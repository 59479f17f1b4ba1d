"""Calibration sees errors of mode weights that change sign with y; marginal ranks do not."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from api import calibration
from sde_lib import EDMSDE
from studies.calibration import judge, modes, prior_of
from studies.correctors import errors

SAMPLES = 63


def test_wrong_mode_weights_are_rejected():
    """Weights are off by 0.2; most tests of the ranks alone pass. Exact samples pass."""
    rejected, by_ranks = {}, {}
    for error in (0.2, 0.0):
        found = [judge(np.random.default_rng(seed), 400, weights=error) for seed in range(6)]
        rejected[error] = sum(each.kind != "calibrated" for each in found)
        alone = [
            min(p for name, p in each.p_values.items() if name not in calibration.INDEPENDENCE)
            for each in found
        ]
        by_ranks[error] = sum(p < calibration.SIGNIFICANCE / 40 for p in alone)
    assert rejected[0.2] >= 5 > 3 > by_ranks[0.2]
    assert rejected[0.0] <= 1


def test_p_values_of_independent_ranks_are_uniform():
    """Also for measurements that are images, or the same in all simulations."""
    found = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        y = calibration.features(rng.normal(size=(30, 5, 5, 3)))
        found.append(calibration.independence(rng.random((30, 3)), y))
    for values in np.transpose(found):
        assert abs(np.mean(values < 0.2) - 0.2) < 4 * np.sqrt(0.2 * 0.8 / 100)
    constant = calibration.independence(rng.random((60, 3)), np.ones((60, 2)))
    assert min(constant) > 0.5


def test_what_can_remain():
    """Errors of the stated size are found in about half of 60 repetitions."""
    rng, names = np.random.default_rng(0), ["x[0]"]
    count = 300

    def share_found(scale: float, shift: float) -> float:
        found = 0
        for _ in range(60):
            truth, samples = rng.normal(size=(count, 1)), rng.normal(size=(count, SAMPLES, 1))
            ranks = calibration.ranks(truth, scale * samples + shift, rng.random((count, 1)))
            found += calibration.judge(ranks, names).kind != "calibrated"
        return found / 60

    spread, bias = calibration.detectable(rng.random((count, 1)), names)
    assert 0.25 < share_found(1 - spread, 0.0) < 0.75
    assert 0.25 < share_found(1.0, bias) < 0.85


def test_the_mixture_of_the_studies():
    """Errors of planted samples, and the score."""
    mixture, rng = modes(64)[0], np.random.default_rng(0)  # Its modes do not overlap.
    x = mixture.draw(rng, 2000)
    centers = mixture.means[np.square(x[:, None] - mixture.means).sum(-1).argmin(1)]
    is_first = (centers == mixture.means[0]).all(1)
    np.testing.assert_allclose(errors(mixture, x), 0, atol=3)
    np.testing.assert_allclose(errors(mixture, centers + 1.2 * (x - centers))[1], 20, atol=1)
    np.testing.assert_allclose(errors(mixture, x[is_first])[0], 60, atol=1e-6)

    def log_p(x):
        parts = jax.vmap(jax.scipy.stats.multivariate_normal.logpdf, (None, 0, 0))(
            x, mixture.means, jnp.asarray(mixture.covariances + 1e-4 * np.eye(64))
        )
        return jax.nn.logsumexp(parts + jnp.log(mixture.weights))

    point = jnp.asarray(x[0], jnp.float32)
    found = prior_of(mixture, EDMSDE()).score(point[None], jnp.full(1, 0.01))[0]
    expected = jax.grad(log_p)(point)
    np.testing.assert_allclose(found, expected, atol=0.01 * float(jnp.abs(expected).max()))
