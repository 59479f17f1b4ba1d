"""Invalid arguments of the Python API: one line, before anything is computed."""

import dataclasses
import functools
import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np

import score_sde as ss
from api.arguments import DOMAINS
from controllable import operators
from tests import gaussian
from tests.refusal import refused

SDE = ss.VPSDE()
SCORE = gaussian.score(SDE, 0.0, 0.5)


def without_axes(x, t):
    return -x / (1 + t)


def without_adjoint():
    operator = ss.operators.dense((2,), np.eye(2))
    return dataclasses.replace(operator, from_basis=lambda c: 2 * operator.from_basis(c))


def bad(function, *arguments, **options):
    return functools.partial(function, *arguments, **options)


def invalid():
    """Calls with invalid arguments, and a part of the line."""
    prior, long = (ss.Prior(SCORE, SDE, (size,)) for size in (2, 1000))
    mask = ss.operators.mask([True, False])
    posterior = prior.posterior(np.zeros(2), mask, noise=0.1, method="ddrm")

    def measured(y=None, operator=mask, noise: object = 0.1, **options):
        return bad(prior.posterior, y, operator, noise=noise, **options)

    def of_posterior(method, *arguments, **options):
        return bad(getattr(posterior, method), *arguments, **options)

    return [
        # A prior.
        (bad(ss.Prior, SCORE, SDE, (10**6, 10**6)), r"GB of memory or more, but .* GB are free"),
        *((bad(ss.Prior, SCORE, SDE, (2,), support=each), "support = .* with low < high")
          for each in ((1, 2, 3), (2, 1), (0, math.nan), 1, "12")),
        *((bad(ss.Prior, SCORE, SDE, each), "shape = .* must be a tuple")
          for each in ((2, -1), (2.0,), (True,), "2", None)),
        *((bad(ss.Prior, SCORE, SDE, (2,), scale=each), "scale = .* must be positive")
          for each in (0.0, [1.0, -1.0])),
        (bad(ss.Prior, SCORE, SDE, (3,), loc=[1, 2]), r"loc has shape \(2,\); .* an event, \(3,\)"),
        (bad(ss.Prior, SCORE, SDE, (2,), scale=[[1.0, 1.0]]), r"scale has shape \(1, 2\)"),
        (bad(ss.Prior, SCORE, SDE, (2,), loc=math.nan), "loc = .* finite"),
        (bad(ss.Prior, SCORE, SDE, (2,), mesh=2), "mesh = 2 must be a mesh of devices"),
        (bad(ss.Prior, lambda x, t: x[..., :1], SDE, (2,)), r"has shape \(128, 1\)"),
        (bad(ss.Prior, lambda x, t: jnp.zeros(()), SDE, (2,)), r"\(\); .* Apply jax.vmap"),
        (bad(ss.Prior, lambda x, t: x * jnp.nan, SDE, (2,)), "score .* is not finite"),
        (bad(ss.Prior, lambda x, t: x + 1j, SDE, (2,)), "type complex64; it must hold real"),
        (bad(ss.Prior, without_axes, SDE, (2,)), r"t with shape \(128,\) fails .*broadcast"),
        (bad(ss.Prior, lambda x, t: 1 / 0, SDE, (2,)), "fails .*: ZeroDivisionError, division by"),
        (bad(ss.Prior, None, SDE, (2,)), "score = None must be a function"),
        (bad(ss.Prior, SCORE, "vp", (2,)), "sde is 'vp'"),
        (bad(ss.Prior, SCORE, ss.VPSDE(beta_max=1e9), (2,)), "all must be finite and above 0"),
        # Samples and densities.
        (bad(prior.sample, 10**12), r"A result of 1000000000000 events .* GB of memory"),
        (bad(prior.sample, 0), "sample_shape = 0 must be"),
        (bad(prior.sample, 1, seed=jax.random.split(jax.random.key(0))), "must be one key"),
        (bad(prior.sample, 1, seed=0.5), "seed = 0.5 must be an int or a key"),
        (bad(prior.sample, 1, seed=2**64), "seed = 18446744073709551616 must lie"),
        (bad(prior.sample, 1, sampler="dpm"), "sampler = 'dpm' must be one of"),
        (bad(prior.sample, 1, sampler="ode", steps=5), "steps = 5: the sampler 'ode' chooses"),
        (bad(prior.sample, 1, sampler="ddim", snr=0.1),
         "snr = 0.1 .* 'ddim'; its own options: noise_removal, schedule"),
        (bad(prior.sample, sampler="pc", snr=np.ones((3, 3))), "snr = array.* must be a finite"),
        *((bad(prior.sample, 1, **{name: value}), f"{name} = '?{value}")
          for name, value in {"sigma": 1, "schedule": "x", "batch_size": 0, "steps": 9.0}.items()),
        (bad(prior.sample, 1, temperature=1000), "temperature = 1000 must be .* at most 2"),
        (bad(long.log_prob, np.zeros((10**4, 1000)), trace="exact"), "A trace by 1000 probes for"),
        (bad(prior.log_prob, "text"), "x = an|x = 'text' must be an array"),
        *((bad(prior.log_prob, each), "x = .* finite real numbers")
          for each in (None, 1j, 10**400, np.full(2, math.nan), np.ones(2, np.longdouble))),
        (bad(prior.encode, np.zeros((2, 3))), r"x has shape \(2, 3\)"),
        (bad(prior.log_prob, np.zeros((0, 2))), "it contains no events"),
        (bad(prior.log_prob, np.zeros(2, int)), "floating-point data"),
        (bad(prior.log_prob, np.zeros(2), trace="sum"), "'sum' must be one of"),
        (bad(prior.log_prob, np.zeros(2), tolerance=0), "tolerance = 0 must be"),
        (lambda: jax.hessian(prior.log_prob)(jnp.ones(2)), "differentiate the score instead"),
        (bad(prior.encode, np.zeros(2), sampler="restart"), "sampler = 'restart' does not follow"),
        # Posteriors.
        (measured(np.array([1e20, 0])), r"y holds 1e\+20, but the largest number"),
        (measured(np.full(2, math.inf)), "y = .* finite real numbers"),
        (measured(np.zeros(3)), r"y has shape \(3,\), .* has shape \(2,\)"),
        *((measured(np.zeros(2), noise=each), f"noise = {each} must be a stand")
          for each in (1e-30, -1.0)),
        (measured(operator=jnp.sum, noise=0), "a function needs noise > 0"),
        *((measured(each, jnp.sum, "poisson"), "y must hold counts: non-negative integers")
          for each in (0.5, -1.0)),
        (measured(operator=3), "operator is int, but it must be an Operator"),
        (measured(0.0, lambda x: 1e20 * x[0]), r"holds .*e\+20, but the largest number"),
        (measured(0.0, lambda x: jnp.argmax(x)), "The operator cannot be differentiated"),
        (measured(operator=lambda x: x @ jnp.ones(5)), r"operator cannot be applied .* \(2,\)"),
        (measured(operator=ss.operators.blur((8, 8), 1.0)), r"cannot be applied .* shape \(2,\)"),
        (measured(operator=jnp.fft.fft), "their real and imaginary parts"),
        (measured(operator=without_adjoint()), "The operator's adjoint is wrong"),
        (measured(None, ss.operators.mask(np.eye(2))), r"mask of shape \(2, 2\) does not fit"),
        (measured(None, ss.operators.Operator("text")), "singular_values of the operator are"),
        (measured(0.0, None, None, log_likelihood=lambda x, y: x), "log_likelihood must be a num"),
        (measured(0.0, log_likelihood=lambda x, y: 0.0), "replaces operator and noise"),
        (measured(method="mcmc"), "method = 'mcmc' must be one of daps"),
        (measured(operator=jnp.sum, method="ddrm"), "'ddrm' cannot use .*: dps, daps, moment"),
        (measured(step=1), "step = 1 has no effect on method = 'moment_matching'"),
        (of_posterior("sample", 1, sampler="deis"), "sampler = 'deis' is not possible"),
        (measured(method="smcc"), r"weighted_pigdm\. Did you mean smc\?"),
        # Names that do not exist.
        *((bad(function, **{name: 3}), rf"{name} = 3 has no effect .*\. Did you mean {nearest}\?")
          for function, name, nearest in (
              (prior.sample, "stps", "steps"),
              (prior.sample, "schedul", "schedule"),
              (bad(prior.log_prob, np.zeros(2)), "tolerence", "tolerance"),
              (bad(ss.Prior, SCORE, SDE, (2,)), "suport", "support"),
              (bad(prior.posterior, np.zeros(2), jnp.sum), "nois", "noise"),
              (measured(np.zeros(2)), "methd", "method"),
              (measured(np.zeros(2), method="smc"), "particels", "particles"),
              (posterior.sample, "stps", "steps"),
              (bad(ss.operators.blur, (8, 8)), "sd", "std"),
              (bad(ss.load, "digits_vp"), "chekpoint", "checkpoint"),
              (bad(ss.train, np.eye(30, 2)), "batchsize", "batch_size"),
              (ss.VPSDE, "beta_mx", "beta_max"),
              (bad(ss.from_torch, SCORE), "scores", "score"),
              (bad(ss.from_numpy, SCORE), "scores", "score"),
          )),
        (bad(ss.Prior, SCORE, SDE), "Prior: missing a required argument: 'shape'; its arg"),
        (bad(ss.VPSDE, 0.1), "VPSDE: too many positional arguments; .* arguments: T, beta_max"),
        (bad(ss.from_torch, 3), "score = 3 must be a function"),
        (bad(ss.from_numpy, 3), "score = 3 must be a function"),
        (bad(ss.load, "digts_vp"), r"by --mode=train\. Did you mean digits_vp\?"),
        (of_posterior("calibrate", 5, 20), "simulations = 5 must be"),
        (lambda: measured()().sample(1), "The posterior has no y"),
        # Operators and SDEs.
        (bad(ss.operators.blur, (8, 8), -1.0), "std = -1.0 must be a finite number"),
        (bad(ss.operators.mask, [0.5, 1.0]), "known = .* of True or False"),
        (bad(ss.VPSDE, t_min=2.0), "requires 0 < t_min < T; got t_min = 2.0 and T = 1.0"),
        (bad(ss.VPSDE, beta_min=30.0), "requires 0 < beta_min <= beta_max"),
        (bad(ss.VESDE, sigma_max=math.nan), "sigma_max = nan must be a finite number"),
        (bad(ss.RectifiedFlow, T=1.0), "requires T < 1; got T = 1.0"),
    ]  # fmt: skip


def test_invalid_arguments():
    for call, message in invalid():
        refused(message, call)


def test_values_of_numpy_and_jax_are_those_of_python():
    prior = ss.Prior(SCORE, SDE, (2,))
    x = prior.sample(np.int64(2), steps=np.int32(3), temperature=jnp.float32(1))
    np.testing.assert_array_equal(x, prior.sample([2], steps=3))
    prior.sample(1, sampler="restart", steps=20, restart=[3, 1, 0.1, 1.0])
    assert ss.VPSDE(beta_max=jnp.float32(20)) == ss.VPSDE()
    assert ss.Prior(SCORE, SDE, np.array([2])).event_shape == (2,)


def test_every_argument_of_the_operators_has_a_domain():
    for name in set(operators.__all__) - {"Operator", "Shape"}:
        names = inspect.signature(getattr(ss.operators, name)).parameters
        assert not set(names) - set(DOMAINS) - {"seed"}, name


def test_random_calls():
    from tests import fuzz_api

    found = fuzz_api.run(60, seed=1)
    assert min(found["result"], found["one line"]) > 5, found
