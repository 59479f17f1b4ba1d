"""Invalid arguments of the Python API: one line, before anything is computed."""

import functools
import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import score_sde as ss
from api.arguments import DOMAINS
from controllable import operators
from tests import fuzz_api, gaussian

SDE = ss.VPSDE()
SCORE = gaussian.score(SDE, 0.0, 0.5)
PRIOR = ss.Prior(SCORE, SDE, (2,))
LONG = ss.Prior(SCORE, SDE, (1000,))
MASK = ss.operators.mask([True, False])


def without_axes(x, t):
    return -x / (1 + t)


def of_batches_of_two(x, t):
    return -x[:2]


def bad(function, *arguments, **options):
    return functools.partial(function, *arguments, **options)


def measured(y, operator=MASK, noise: object = 0.1, **options):
    return bad(PRIOR.posterior, y, operator, noise=noise, **options)


INVALID = [
    (bad(ss.Prior, SCORE, SDE, (10**6, 10**6)), r"GB of memory or more, but .* GB are free"),
    (bad(PRIOR.sample, 10**12), r"A result of 1000000000000 events .* GB of memory"),
    (bad(LONG.log_prob, np.zeros((10**4, 1000)), trace="exact"), "A trace by 1000 probes for each"),
    (bad(PRIOR.sample, 1, temperature=1000), "temperature = 1000 must be .* at most 2"),
    (bad(PRIOR.log_prob, "text"), "x = an|x = 'text' must be an array"),
    (bad(PRIOR.log_prob, np.full(2, math.nan)), "x = .* finite real numbers"),
    (bad(PRIOR.sample, 1, seed=jax.random.split(jax.random.key(0))), "must be one key"),
    (measured(np.array([1e20, 0])), r"y holds 1e\+20, but the largest number .* is 1e\+05"),
    (measured(np.array([math.inf, 0])), "y = .* finite real numbers"),
    (measured(0.0, lambda x: 1e20 * x[0]), "holds .* but the largest number that float32 resolves"),
    (measured(np.zeros(2), noise=1e-30), "noise = 1e-30 must be a standard deviation"),
    (measured(np.zeros(2), noise=1e30), r"noise = 1e\+30 must be a standard deviation"),
    (measured(0.0, lambda x: jnp.argmax(x)), "The operator cannot be differentiated"),
    (measured(0.0, lambda x: 1 / 0), "operator cannot be applied .*ZeroDivisionError"),
    (measured(0.0, None, None, log_likelihood=lambda x, y: x), "log_likelihood must be a number"),
    (measured(None, ss.operators.mask(np.eye(2))), r"mask of shape \(2, 2\) does not fit"),
    (measured(None, ss.operators.Operator("text")), "The operator has the singular_values 'text'"),
    (bad(ss.operators.blur, (8, 8), -1.0), "std = -1.0 must be a finite number"),
    (bad(ss.operators.mask, [0.5, 1.0]), "known = .* of True or False"),
    (bad(ss.VPSDE, t_min=2.0), "requires 0 < t_min < T; got t_min = 2.0 and T = 1.0"),
    (bad(ss.VPSDE, beta_min=30.0), "requires 0 < beta_min <= beta_max"),
    (bad(ss.VESDE, sigma_max=math.nan), "sigma_max = nan must be a finite number"),
    (bad(ss.RectifiedFlow, T=1.0), "requires T < 1; got T = 1.0"),
    (bad(ss.EDMSDE, T=10**400), "T = .* must be a finite number"),
    (bad(ss.Prior, SCORE, ss.VPSDE(beta_max=1e9), (2,)), "all must be finite and above 0"),
    *((bad(ss.Prior, SCORE, SDE, (2,), support=each), "support = .* with low < high")
      for each in ((1, 2, 3), (2, 1), (0, math.nan), 1, "12")),
    *((bad(ss.Prior, SCORE, SDE, each), "shape = .* must be a tuple")
      for each in ((0,), (2, -1), (2.0,), (True,), "2", 2, None)),
    (bad(ss.Prior, lambda x, t: x + 1j, SDE, (2,)), "type complex64; it must hold real"),
    (bad(ss.Prior, lambda x, t: jnp.ones_like(x, int), SDE, (2,)), "has the type int"),
    (bad(ss.Prior, without_axes, SDE, (2,)), r"t with shape \(3,\) fails: .*broadcast"),
    (bad(ss.Prior, lambda x, t: 1 / 0, SDE, (2,)), "fails: ZeroDivisionError, division by zero"),
    (bad(ss.Prior, None, SDE, (2,)), "score = None must be a function"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), INVALID)
def test_invalid_arguments(call, message):
    with pytest.raises(ss.InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_values_of_numpy_and_jax_are_those_of_python():
    x = PRIOR.sample(np.int64(2), steps=np.int32(3), temperature=jnp.float32(1))
    np.testing.assert_array_equal(x, PRIOR.sample([2], steps=3))
    assert ss.VPSDE(beta_max=jnp.float32(20)) == ss.VPSDE()
    assert ss.Prior(SCORE, SDE, np.array([2])).event_shape == (2,)


def test_every_argument_of_the_operators_has_a_domain():
    for name in set(operators.__all__) - {"Operator", "Shape"}:
        names = inspect.signature(getattr(ss.operators, name)).parameters
        assert not set(names) - set(DOMAINS) - {"seed"}, name


def test_random_calls():
    found = fuzz_api.run(60, seed=1)
    assert min(found["result"], found["one line"]) > 5, found
