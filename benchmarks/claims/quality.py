"""Quality of samples: the sliced Wasserstein distance to held-out images, and evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import sampling
from api.trained import TrainedModel
from benchmarks.claims.verdicts import Estimate
from benchmarks.digits_reference import DigitsReference, HeldOut, scale
from sde_lib import SDE, Score

Record = dict[str, Estimate]
"""The named results of a measurement."""

HELD_OUT = 1000  # images of larger data sets that samples are compared with


def draws(
    models: Sequence[TrainedModel], seed: int, *, count: int, sampler: str, **options: Any
) -> Record:
    """Return the `distance` of `count` samples; the options are those of `Prior.sample`."""
    (model,) = models
    x = model.sample(count, seed=seed, sampler=sampler, batch_size=count, **options)
    return {"distance": distance(model, x)}


def flow(models: Sequence[TrainedModel], seed: int, *, count: int, tolerance: float) -> Record:
    """Return the `distance` and the `evaluations` of the probability flow with adaptive steps.

    `saving` is 1,000 divided by the mean number of evaluations.
    """
    (model,) = models
    keys = sampling.image_keys(jax.random.key(seed), jnp.arange(count))
    x, evaluations = _solve_flow(model.score, model.sde, model.event_shape, keys, tolerance)
    found = mean(np.asarray(evaluations))
    saving = Estimate(1000 / found.value, 1000 / found.value**2 * found.stderr)
    return {"distance": distance(model, x), "evaluations": found, "saving": saving}


@eqx.filter_jit
def _solve_flow(
    score: Score, sde: SDE, shape: tuple[int, ...], keys: Array, tolerance: float
) -> tuple[Array, Array]:
    """Return samples and their evaluations, with a last step to noise-free images."""
    prior = sampling.prior_sample(keys, sde, (len(keys), *shape))
    return sampling.probability_flow_ode(
        lambda x, t: score(x, t), sde, prior, rtol=tolerance, atol=tolerance
    )


def distance(model: TrainedModel, x: Array | np.ndarray) -> Estimate:
    """Return the distance of samples x (n, H, W, C) to held-out images, in [-1, 1]."""
    return Estimate(*reference(model).distance(scale(images(model, x))))


def images(model: TrainedModel, x: Array | np.ndarray) -> np.ndarray:
    """Return samples x (n, H, W, C) as images, uint8 from 0 to 255."""
    return model.to_images(jnp.asarray(x))


def reference(model: TrainedModel) -> HeldOut:
    """Return the held-out images of the model's data set as a reference."""
    name = model.config.data.dataset
    if name not in _references:
        _references[name] = _make_reference(model)
    return _references[name]


_references: dict[str, HeldOut] = {}


def _make_reference(model: TrainedModel) -> HeldOut:
    if is_digits(model):
        return DigitsReference(model.experiment)
    return HeldOut(scale(held_out(model, HELD_OUT)))


def is_digits(model: TrainedModel) -> bool:
    """Return whether a model draws digits, whose reference has a classifier: see `digits`."""
    return model.config.data.dataset == "digits"


def digits(model: TrainedModel) -> DigitsReference:
    """Return the digits as a reference. Raises TypeError for a model of other images."""
    found = reference(model)
    if not isinstance(found, DigitsReference):
        raise TypeError(f"{model.config.data.dataset} has no classifier")
    return found


def held_out(model: TrainedModel, count: int) -> np.ndarray:
    """Return at most `count` held-out images, evenly spaced in their order; grey levels."""
    test = model.experiment.test
    chosen = np.linspace(0, len(test) - 1, min(count, len(test))).round().astype(int)
    return np.asarray(test.batch(chosen).pixels)


def mean(values: np.ndarray) -> Estimate:
    """Return the mean of independent values (n,), and its standard error."""
    values = np.asarray(values, np.float64)
    return Estimate(float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))))
