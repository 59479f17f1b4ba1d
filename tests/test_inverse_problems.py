"""Inverse problems against recorded official runs, and against the exact posterior of Gaussian data."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import inverse_problems
import operators
import sampling
import solvers
from inverse_problems import Measurement
from sde_lib import VESDE, VPSDE, SubVPSDE, expand
from tests import gaussian, reference

SDES = {"ve": VESDE(), "vp": VPSDE(), "subvp": SubVPSDE()}
KEYS = jax.random.split(jax.random.key(0), 3)

RECORDED = [case for case in reference.notes("controllable") if case.startswith(("inpaint", "colorize"))]


def recorded_measurement(case, a):
    if case.startswith("inpaint"):
        mask = a["inpaint/mask"]  # Of each image another one.
        return Measurement(operators.mask(mask > 0), a["inpaint/data"] * mask)
    return Measurement(operators.channel_mean((8, 8, 3)), a["colorize/gray"].mean(-1, keepdims=True))


@pytest.mark.parametrize("denoise", [True, False])
@pytest.mark.parametrize("case", RECORDED)
def test_recorded_runs(monkeypatch, case, denoise):
    """With `official`, every recorded run; without, the mean of what is not measured is free of noise."""
    note, a = reference.notes("controllable")[case], reference.arrays("controllable")
    sde, measurement = dataclasses.replace(reference.sde(note["sde"]), t_end=note["eps"]), recorded_measurement(case, a)
    score = gaussian.score(sde, a["mu"], a["s"])
    noises = iter(a[f"{case}/noises"])
    draw = lambda keys, shape: jnp.asarray(next(noises))
    monkeypatch.setattr(sampling, "standard_normal", draw)
    # The official colorization draws its noise as coefficients in a basis of its own.
    basis = a["colorize/M"].T if case.startswith("colorize") else np.eye(3, dtype=np.float32)
    monkeypatch.setattr(inverse_problems, "standard_normal", lambda *args: draw(*args) @ basis)
    visited = []
    constraint = inverse_problems.projection(sde, measurement, official=True)

    def watch(keys, x, mean, step):
        x, projected = constraint(keys, x, mean, step)
        visited.append((x, projected, mean))
        return x, projected

    prior = sampling.prior_sample(KEYS, sde, (3, 8, 8, 3))
    start = inverse_problems.projection_start(measurement, prior, official=True)
    options = {"predictor": sampling.PREDICTORS[note["predictor"]], "corrector": sampling.CORRECTORS[note["corrector"]]}
    with jax.disable_jit():
        x, _ = sampling.predictor_corrector(
            KEYS, score, sde, start, sde.discretize(10), snr=note["snr"], denoise=denoise, constraint=watch, **options
        )
    assert next(noises, None) is None
    x = x if note["inverse_scaler"] == "x" else (x + 1) / 2
    assert reference.image_error(x, a[f"{case}/out_{'' if denoise else 'no_'}denoise"]) < 1e-4
    for (x, mean, _), x_there, mean_there in zip(visited[1::2], a[f"{case}/x_iter"], a[f"{case}/x_mean_iter"]):
        assert reference.image_error(x, x_there) < 1e-4
        assert reference.image_error(mean, mean_there) < 1e-4
