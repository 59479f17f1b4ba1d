"""The studies of conditional networks and of guidance: their errors against closed forms."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import pytest

from api.conditional import NetworkScore
from controllable import inverse_problems
from score_sde import VPSDE, Prior, operators
from studies import common, learned
from studies.common import Estimate
from studies.posterior_cases import CALLS
from studies.posterior_own import counted

SHAPE = (4, 4, 1)


def gaussian(seed, std, *leading):
    return std * np.random.default_rng(seed).normal(size=(*leading, *SHAPE))


@pytest.mark.parametrize(
    ("distance", "floor", "expected"),
    [
        ((0.5, 0.05), (0.3, 0.0), (0.4, 0.0625)),  # d(0.5) / 0.4 times 0.05
        ((0.5, 0.05), (0.3, 0.05), (0.4, 0.05 * math.hypot(0.5, 0.3) / 0.4)),
        ((0.2, 0.01), (0.3, 0.0), (0.0, math.sqrt(0.004))),  # The square is off by 0.004.
        ((0.3, 0.0), (0.3, 0.0), (0.0, 0.0)),
    ],
)
def test_excess_over_a_floor(distance, floor, expected):
    found = common.excess(Estimate(*distance), Estimate(*floor))
    assert found[:2] == pytest.approx(expected)


def test_distance_beyond_that_of_the_truth():
    """It is 0 for exact samples, and near the difference of spreads for wrong ones."""
    truth, train = gaussian(0, 1.0, 200), gaussian(1, 1.0, 2000)
    assert learned.distance_beyond(truth[None], truth, train)[:2] == (0.0, 0.0)
    exact = learned.distance_beyond(gaussian(2, 1.0, 8, 200), truth, train)
    wrong = learned.distance_beyond(gaussian(2, 2.0, 8, 200), truth, train)
    assert abs(exact.value) < 3 * exact.stderr < 0.05
    floor = 0.1  # About the distance of 200 samples.
    assert wrong.value == pytest.approx(1 - floor, abs=0.1)


def test_floors_of_a_problem():
    """PSNR is that of noise where all is measured; the nearest training image is the truth."""
    images = np.random.default_rng(0).integers(64, 192, (60, *SHAPE)).astype(np.uint8)
    task = learned.Problem(learned.Data(images, images, None, None), operators.mask(np.ones(SHAPE)))
    pseudo_inverse, nearest = task.floors()
    noise = -20 * math.log10(learned.NOISE / 2) + 10 / math.log(10) / 16  # Mean log of chi squared
    assert float(pseudo_inverse["psnr"].split(" ")[0]) == pytest.approx(noise, abs=0.6)
    assert (nearest["psnr"], nearest["beyond"]) == ("99", "0")


def test_costs_of_samples():
    """Steps of a solver are evaluations; each of moment_matching needs gradients, too."""
    sde = VPSDE()
    score = NetworkScore({}, lambda params, x, t, condition: -x, sde)
    prior = counted(Prior(score, sde, SHAPE))
    x, cost = learned.draw(lambda seed: prior.sample((2, 3), seed, steps=7))
    assert x.shape == (4, 3, *SHAPE)
    assert (cost["evaluations"], cost["gradients"]) == (7, 0)
    y = jnp.zeros((3, *SHAPE))
    posterior = prior.posterior(
        y, operators.mask(np.ones(SHAPE)), noise=0.1, method="moment_matching", iterations=2
    )
    _, cost = learned.draw(lambda seed: posterior.sample(2, seed, steps=7))
    assert cost["evaluations"] == 7 + 1  # The last one draws what the last state leaves open.
    assert 7 < cost["gradients"] <= 7 * 3 + 2 + inverse_problems.ROOT
    CALLS.clear()
