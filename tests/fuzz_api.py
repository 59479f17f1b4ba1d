"""Random calls of the Python API: python -m tests.fuzz_api --calls=300"""

import collections
import math
import random
import resource
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

import score_sde as ss
from tests import gaussian

SDE = ss.VPSDE()
PRIOR = ss.Prior(gaussian.score(SDE, 0.0, 0.5), SDE, (2,))
SHAPE, KNOWN = (4, 4), np.eye(4) > 0
POSTERIOR = PRIOR.posterior(
    jnp.zeros(2), ss.operators.mask(KNOWN[:2, :2][0]), noise=0.1, method="moment_matching"
)
CALIBRATION = ss.Calibration(np.full((20, 1), 0.5), ["x[0]"], "calibrated", "", {})
FAST = {"steps": 3, "batch_size": 4}
CALLS = [
    (ss.Prior, {"score": PRIOR.score, "sde": SDE, "shape": (2,), "support": (-9.0, 9.0)}),
    (PRIOR.sample, {"sample_shape": 2, "seed": 0, "sampler": "ddim", "temperature": 1.0, **FAST}),
    (PRIOR.sample, {"sampler": "pc", "snr": 0.1, "corrector": "none", "steps": 30}),
    (PRIOR.log_prob, {"x": np.zeros(2), "seed": 0, "trace": "exact", "probes": 1}),
    (PRIOR.log_prob, {"x": np.zeros((1, 2)), "tolerance": 0.01, "return_error": True}),
    (PRIOR.encode, {"x": np.zeros(2)}),
    (PRIOR.decode, {"z": np.zeros(2)}),
    (PRIOR.posterior, {"y": 0.0, "operator": jnp.sum, "noise": 0.1, "method": "dps", "scale": 1.0}),
    (PRIOR.posterior, {"y": 0.0, "log_likelihood": lambda x, y: -jnp.sum((x - y) ** 2)}),
    (POSTERIOR.sample, {"sample_shape": (2,), "seed": 0, "sampler": "ddim", **FAST}),
    (POSTERIOR.calibrate, {"simulations": 20, "samples": 20, "steps": 3, "batch_size": 400}),
    (CALIBRATION.coverage, {"level": 0.5}),
    (ss.load, {"workdir": "absent", "config": None, "checkpoint": None}),
    (ss.VPSDE, {"beta_min": 0.1, "beta_max": 20.0, "T": 1.0, "t_min": 1e-5, "t_end": 1e-3}),
    (ss.SubVPSDE, {"beta_min": 0.1, "beta_max": 20.0}),
    (ss.VESDE, {"sigma_min": 0.01, "sigma_max": 50.0, "T": 1.0}),
    (ss.CosineSDE, {"T": 0.9, "offset": 0.008}),
    (ss.RectifiedFlow, {"T": 0.9, "t_end": 0.01}),
    (ss.operators.block_mean, {"shape": SHAPE, "factor": 2}),
    (ss.operators.blur, {"shape": (8, 8), "std": 0.5}),
    (ss.operators.box, {"shape": SHAPE, "share": 0.5}),
    (ss.operators.channel_mean, {"shape": (4, 4, 2), "weights": (0.5, 0.5)}),
    (ss.operators.coil_fourier, {"maps": np.ones((2, 4, 4)), "known": KNOWN}),
    (ss.operators.compressed_sensing, {"shape": SHAPE, "rows": 3, "seed": 0}),
    (ss.operators.convolution, {"shape": SHAPE, "kernel": np.ones((3, 3))}),
    (ss.operators.decompose, {"function": jnp.ravel, "shape": SHAPE}),
    (ss.operators.dense, {"shape": (4,), "matrix": np.eye(4)}),
    (ss.operators.fourier_mask, {"known": KNOWN, "channels": False}),
    (ss.operators.frequency_columns, {"shape": SHAPE, "share": 0.5, "seed": 0}),
    (ss.operators.mask, {"known": KNOWN}),
    (ss.operators.motion_blur, {"shape": (8, 8), "length": 2.0, "angle": 30.0}),
    (ss.operators.radon, {"shape": SHAPE, "angles": [0, 90]}),
    (ss.operators.random_pixels, {"shape": SHAPE, "share": 0.5, "seed": 0}),
]
BAD = [None, "text", "", b"x", -1, 0, 1, 2, 1.5, math.nan, math.inf, -math.inf, 1e40, 1e-40, 10**30]
BAD += [True, 1j, [], {}, {"a": 1}, (), (1,), (1, 2, 3), (2, 0), (2, -1), (2.0,), (10**6, 10**6)]
BAD += [object(), np.zeros(0), np.ones((2, 2)), np.array([1j]), np.array(["a"]), range(3)]
BAD += [np.array([None, {}]), np.array([1, 2], "datetime64[s]"), jnp.ones(2), jnp.ones((2, 2), int)]
BAD += [jax.random.key(0), jax.random.split(jax.random.key(0)), np.float32(1), jnp.float32(1)]
BAD += [jnp.fft.fft, jnp.argmax, lambda *x: 1 / 0, lambda *x: None, lambda *x: "a", np.asarray]
BAD += [ss.VPSDE(), ss.operators.mask(KNOWN), 10**400, "\0", 2**63, -(2**70), [[1], [2, 3]]]


def outcome(function, arguments, traced=""):
    """Return 'result' or 'one line'. Other exceptions are raised, with the call."""
    try:
        if traced:
            jax.jit(lambda value: [function(**{**arguments, traced: value})][1:])(jnp.ones(2))
        else:
            function(**arguments)
    except ss.InputError as error:
        if "\n" not in str(error):
            return "one line"
        raise
    except Exception as error:
        raise AssertionError(f"{function}({arguments}), {traced}: {error!r}") from error
    return "result"


def run(calls, seed=0):
    """Make random calls, of which each has up to two random arguments; return the outcomes."""
    draw, found = random.Random(seed), collections.Counter()
    for _ in range(calls):
        function, valid = draw.choice(CALLS)
        names = draw.sample(sorted(valid), min(len(valid), draw.choice((0, 1, 1, 2))))
        arguments = {**valid, **{name: draw.choice(BAD) for name in names}}
        traced = names[0] if names and draw.random() < 0.1 else ""
        found[outcome(function, arguments, traced)] += 1
    return found


if __name__ == "__main__":
    start, calls = time.monotonic(), int(sys.argv[-1].removeprefix("--calls="))
    print(dict(run(calls)), f"{time.monotonic() - start:.0f} s")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, "MB")
