"""Recorded outputs of the official code, in tests/data and in the maintainers' shared folder."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

import pretrained
import sampling
from experiment import Experiment
from sde_lib import SDE, VESDE, VPSDE, Score, SubVPSDE
from solvers import loop, predictor_corrector

DATA = Path(__file__).parent / "data"
SHARED = Path(
    os.environ.get("SCORE_SDE_REFERENCE", Path(__file__).parents[2] / "shared" / "reference")
)


def find(name: str) -> Path:
    """Return the recorded file or folder `name`; skip the test if it is missing."""
    for root in (DATA, SHARED):
        if (root / name).exists():
            return root / name
    pytest.skip(
        f"{name} is neither in tests/data nor in the maintainers' folder of recordings, {SHARED}"
    )


def folders() -> list[str]:
    """Return the names of all recorded networks that are available."""
    return sorted(
        {path.parent.name for root in (DATA, SHARED) for path in root.glob("*/overrides.json")}
    )


def cases(names: Iterable[str], slow: Collection[str]) -> list:
    """Return the names as parameters of a test, of which those in `slow` are slow tests."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in slow else name for name in names]


@functools.cache
def arrays(name: str) -> dict[str, np.ndarray]:
    """Return the arrays of NAME.npz."""
    return dict(np.load(find(f"{name}.npz")))


@functools.cache
def notes(name: str) -> dict:
    """Return the description of the arrays, NAME.json."""
    return json.loads(find(f"{name}.json").read_text())


def config(folder: str) -> ml_collections.ConfigDict:
    """Return the config of a recorded network, on the data set 'noise' of tests/tiny.py."""
    fields = json.loads((find(folder) / "overrides.json").read_text())["config"]
    optim = fields["optim"]
    optim["weight_decay"] = float(optim["weight_decay"])  # An int in the official configs.
    return ml_collections.ConfigDict(fields, convert_dict=True)


def sde(fields: dict) -> SDE:
    """Return the SDE that a recording describes in the official code's terms."""
    kinds = {"VESDE": VESDE, "VPSDE": VPSDE, "subVPSDE": SubVPSDE}
    values = {
        name: float(value)
        for name, value in fields.items()
        if name not in ("cls", "N", "T", "sampling_eps")
    }
    return kinds[fields["cls"]](**values)


@functools.cache
def experiment(folder: str) -> Experiment:
    """Return a recorded experiment, on one device."""
    return Experiment(config(folder), jax.devices()[:1])


@functools.cache
def trained(folder: str, kind: str = "flax") -> pretrained.Trained:
    """Return a recorded checkpoint as the importer reads it; skip the test if there is none."""
    if kind == "flax":
        source = find(f"{folder}/checkpoint_flax")
    else:
        note = json.loads((find(folder) / "overrides.json").read_text()).get("torch")
        if not note:
            pytest.skip("the official PyTorch code does not support this experiment")
        source = find(f"{folder}/{note['checkpoint']}")
    return pretrained.read(source, experiment(folder).network, experiment(folder).config)


KEYS = jax.random.split(jax.random.key(0), 3)


def replay(monkeypatch: pytest.MonkeyPatch, noises: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Replace the noise of predictor-corrector samplers by recorded noise, in order."""
    noises = iter(noises)
    for module in (loop, predictor_corrector):
        monkeypatch.setattr(
            module, "standard_normal", lambda keys, shape: jnp.asarray(next(noises))
        )
    return noises


def trajectory(
    note: dict, score: Score, sde: SDE, noises: Iterator, x: jax.Array | None = None, **options: Any
) -> list[jax.Array]:
    """Follow a recorded trajectory with its noise, all of which is used.

    Returns the samples without and with the noise of the last step, in the range of the recording.
    """

    def predictor(*arguments: Any) -> tuple[jax.Array, jax.Array]:
        predict = sampling.PREDICTORS[note["predictor"]]
        if not note.get("probability_flow"):
            return predict(*arguments)
        next(noises)  # The official code draws noise here and multiplies it by 0.
        return predict(*arguments, probability_flow=True)

    options |= {"predictor": predictor, "snr": note["snr"], "shown": [9]}
    options["corrector"] = sampling.CORRECTORS[note["corrector"]]
    options["n_steps_each"] = note.get("n_steps_each", 1)
    with jax.disable_jit():
        x = sampling.prior_sample(KEYS, sde, (3, 8, 8, 3)) if x is None else x
        mean, (last,), _ = sampling.predictor_corrector(
            KEYS, score, sde, x, sde.discretize(10), **options
        )
    assert next(noises, None) is None
    return [each if note["inverse_scaler"] == "x" else (each + 1) / 2 for each in (mean, last)]


def image_error(images: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest relative error of an image, max |a - b| / max |b|."""
    a, b = (np.asarray(x, np.float64).reshape(len(x), -1) for x in (images, expected))
    return float((np.abs(a - b).max(1) / np.abs(b).max(1)).max())
