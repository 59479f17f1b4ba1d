"""Conditional generation from unconditional networks: classes, inpainting and colorization."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence

import jax
import numpy as np
from auxiliary import classification

from api.trained import TrainedModel
from benchmarks.claims.latents import rms
from benchmarks.claims.quality import Record, digits, held_out, images, is_digits, mean
from configs.default import Config
from controllable import operators
from controllable.operators import Operator
from experiment import Experiment

SHARE = 0.5  # of the sides of an image: the box that is unknown
STEPS = 100  # of the predictor that draws solutions


def guided(
    models: Sequence[TrainedModel], seed: int, *, count: int, iterations: int, strength: float
) -> Record:
    """Return the share of guided samples that are of the requested class, `correct`.

    A noise-conditional classifier is trained first. A classifier of clean digits judges.
    """
    (model,) = models
    config = Config(model.config.to_dict())
    config.guidance.classes, config.guidance.scale = tuple(range(10)), strength
    config.classifier.n_iters = iterations
    config.sampling.update({"method": "solver", "solver": "dpm++_2m_sde", "num_steps": 20})
    experiment = Experiment(config, jax.devices()[:1])
    with tempfile.TemporaryDirectory() as folder:
        experiment.classifier = classification.train(config, folder)
    numbers = np.arange(seed * count, (seed + 1) * count)
    x = np.asarray(experiment.sample(model.params, numbers).x)
    requested = np.asarray(experiment.classes(numbers))
    return {"correct": mean(digits(model).classes(x) == requested)}


def inpainting(models: Sequence[TrainedModel], seed: int, *, count: int) -> Record:
    """Return root mean square errors in the unknown center of held-out images.

    They are those of `solutions` given the pixels around the center, and of `samples` without. For
    digits also the shares whose class is that of the original digit according to a classifier:
    `kept` of the solutions, and `grey` of images whose center is grey.
    """
    (model,) = models
    known = operators.box(model.event_shape, SHARE)
    truth, solutions, samples = _solve(model, operators.mask(known), seed, count)
    unknown = ~np.broadcast_to(known, model.event_shape)
    found = {
        "solutions": mean(rms((solutions - truth)[:, unknown])),
        "samples": mean(rms((samples - truth)[:, unknown])),
    }
    if is_digits(model):
        classes = digits(model).classes(images(model, truth))
        grey = np.where(known, truth, 0)
        found["kept"] = mean(digits(model).classes(images(model, solutions)) == classes)
        found["grey"] = mean(digits(model).classes(images(model, grey)) == classes)
    return found


def colorization(models: Sequence[TrainedModel], seed: int, *, count: int) -> Record:
    """Return root mean square errors of the colours of held-out images without colour.

    A colour is the difference from the mean of the channels. `solutions` have the given means, and
    `others` are the colours of another image. `colour` and `true colour` are the root mean squares
    of the colours of solutions and of the original images.
    """
    (model,) = models
    operator = operators.channel_mean(model.event_shape)
    truth, solutions, _ = _solve(model, operator, seed, count)
    true, found = (x - x.mean(-1, keepdims=True) for x in (truth, solutions))
    return {
        "solutions": mean(rms(found - true)),
        "others": mean(rms(np.roll(true, 1, axis=0) - true)),
        "colour": mean(rms(found)),
        "true colour": mean(rms(true)),
    }


def _solve(
    model: TrainedModel, operator: Operator, seed: int, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return held-out images, a solution for each by the paper's method, and samples; (n, ...)."""
    truth = np.asarray(model.from_images(held_out(model, count)))
    options = {
        "steps": STEPS,
        "predictor": "reverse_diffusion",
        "corrector": "none",
        "batch_size": count,
    }
    posterior = model.posterior(operator.forward(truth), operator, noise=0.0, method="projection")
    solutions = posterior.sample(seed=seed, **options)
    samples = model.sample(len(truth), seed=seed + 1, sampler="pc", **options)
    return truth, np.asarray(solutions), np.asarray(samples)
