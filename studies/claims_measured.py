"""What is measured of networks for the claims.

Each function takes a model or two, a seed and arguments that JSON can store, and returns named
estimates.
"""

from __future__ import annotations

import tempfile
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import sampling
from commands.latents import slerp
from configs.default import Config
from controllable.operators import Operator
from experiment import Experiment
from score_sde import TrainedModel, operators
from sde_lib import SDE, Score
from studies import distances
from studies.common import Estimate, mean
from studies.distances import distance, held_out, is_digits
from training import classifier

Found = dict[str, Estimate]
FRAMES = 10  # of an interpolation, with both ends
ROWS = 16  # pairs of images, of which all frames are decoded
SHARE = 0.5  # of the sides of an image: the box that is unknown
STEPS = 100  # of the predictor that draws solutions


def rms(x: np.ndarray) -> np.ndarray:
    """Return the root mean square (n,) of the entries of each image (n, ...)."""
    return np.sqrt(np.mean(np.square(x.reshape(len(x), -1)), 1))


def classes(model: TrainedModel, x: np.ndarray) -> np.ndarray:
    """Return the most probable classes (n,) of samples x (n, ...) of a model of the digits."""
    return distances.classes(model.to_images(jnp.asarray(x)))


def draws(model: TrainedModel, *, seed: int, count: int, sampler: str, **options: Any) -> Found:
    """Return the `distance` of `count` samples; the options are those of `Prior.sample`."""
    x = model.sample(count, seed=seed, sampler=sampler, batch_size=count, **options)
    return {"distance": distance(model, x)}


def tuning(model: TrainedModel, *, seed: int, count: int, **options: Any) -> Found:
    """Return the `distance` of `count` samples to training images, by which options are chosen."""
    x = distances.scale(model.to_images(model.sample(count, seed=seed, **options)))
    return {"distance": distances.estimated_distance(distances.quantiles(model, "train"), x)}


def flow(model: TrainedModel, *, seed: int, count: int, tolerance: float) -> Found:
    """Return the `distance` by the adaptive ODE, its `evaluations`, and 1,000 / these, `saving`."""
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


def gain(*models: TrainedModel, seed: int, count: int) -> Found:
    """Return bits/dim `before` (the first model) and `after` (the second), and the `gain`.

    The same of the variational `bound`. Images and their dequantizing noise are the same for both.
    """
    found: Found = {}
    pairs = zip(*(_bits(model, seed, count) for model in models))
    for start, of, (before, after) in zip(("", "bound "), ("", " of the bound"), pairs):
        found |= {f"{start}before": mean(before), f"{start}after": mean(after)}
        found[f"gain{of}"] = mean(before - after)
    return found


def _bits(model: TrainedModel, seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return bits/dim (count,) by the flow with one Rademacher probe, and the bound (count,)."""
    images = jnp.asarray(held_out(model, count))
    keys = sampling.image_keys(jax.random.key(seed), jnp.arange(len(images)))
    found = model.bits(images, keys, trace="Rademacher", probes=1)
    return np.asarray(found.bpd), np.asarray(found.bound)


def codes(*models: TrainedModel, seed: int, count: int) -> Found:
    """Return the distance of codes of two models, of the `same` images and of `other` images.

    Distances are Euclidean, in units of the prior's standard deviation and relative to the square
    root of the dimension: those of independent codes are about sqrt(2). `size` and `other size`
    are the root mean squares of the codes of either model, which are 1 for exact ones.
    """
    first, second = (_encode(model, seed, count) for model in models)
    others = np.roll(second, 1, axis=0)
    found = {"same": mean(rms(first - second)), "other": mean(rms(first - others))}
    return found | {"size": mean(rms(first)), "other size": mean(rms(second))}


def interpolation(model: TrainedModel, *, seed: int, count: int) -> Found:
    """Return how images change between pairs of held-out images.

    `codes` and `pixels` are distances to held-out images: of images halfway between two codes, and
    of means of two images. `ends` is the difference of the two decoded images, and `step` that of
    the two adjacent frames which differ most.
    """
    x, z = np.asarray(_images(model, seed, count)), _encode(model, seed, count)
    half = len(x) // 2
    rows = min(half, ROWS)
    first, second = z[:rows], z[half : half + rows]
    frames = [_decode(model, slerp(first, second, weight)) for weight in np.linspace(0, 1, FRAMES)]
    middle = _decode(model, slerp(z[:half], z[half:], 0.5))
    steps = np.stack([rms(a - b) for a, b in zip(frames, frames[1:])])
    return {
        "codes": distance(model, middle),
        "pixels": distance(model, (x[:half] + x[half:]) / 2),
        "ends": mean(rms(frames[0] - frames[-1])),
        "step": mean(steps.max(0)),
    }


def temperature(model: TrainedModel, *, seed: int, count: int, low: float) -> Found:
    """Return what scaling the codes of held-out images by `low` does.

    `spread` and `spread at low` are the root mean square deviations of images from their mean. For
    digits, `kept` is the share of images that stay in their class, according to a classifier.
    """
    z = _encode(model, seed, count)
    plain, scaled = _decode(model, z), _decode(model, low * z)
    found = {"spread": mean(rms(plain - plain.mean(0)))}
    found["spread at low"] = mean(rms(scaled - scaled.mean(0)))
    if is_digits(model):
        found["kept"] = mean(classes(model, plain) == classes(model, scaled))
    return found


def _images(model: TrainedModel, seed: int, count: int) -> Array:
    """Return held-out images, dequantized, in the range of the model and in random order."""
    pixels = held_out(model, count)
    order = np.random.default_rng(seed).permutation(len(pixels))
    return model.from_images(pixels[order], seed)


def _encode(model: TrainedModel, seed: int, count: int) -> np.ndarray:
    """Return the codes of the images of `_images`, in units of the prior's standard deviation."""
    return np.asarray(model.encode(_images(model, seed, count))) / model.sde.prior_std


def _decode(model: TrainedModel, z: np.ndarray) -> np.ndarray:
    return np.asarray(model.decode(jnp.asarray(z * model.sde.prior_std)))


def with_classifier(
    model: TrainedModel, folder: str, classes: tuple[int, ...], scale: float, **options: Any
) -> tuple[Experiment, TrainedModel]:
    """Return a model guided by a classifier, which is trained in a folder, and its experiment.

    Image i is of class classes[i % n]. The options are those of config.classifier.
    """
    config = Config(model.config.to_dict())
    config.guidance.update(classes=classes, scale=scale)
    config.classifier.update(options)
    config.sampling.update(method="solver", solver="dpm++_2m_sde", num_steps=20)
    device = jax.devices()[0]
    experiment = Experiment(config, [device])
    experiment.classifier = jax.device_put(classifier.train(config, folder), device)
    return experiment, experiment.trained_model(model.params)


def guided(
    model: TrainedModel, *, seed: int, count: int, iterations: int, strength: float
) -> Found:
    """Train a classifier; return the share of guided samples of the requested class, `correct`."""
    given = tuple(range(10)), strength
    with tempfile.TemporaryDirectory() as folder:
        experiment, trained = with_classifier(model, folder, *given, n_iters=iterations)
    images = np.asarray(experiment.draw_images(trained, seed * count, count).x)
    requested = np.arange(seed * count, (seed + 1) * count) % 10
    return {"correct": mean(distances.classes(images) == requested)}


def inpainting(model: TrainedModel, *, seed: int, count: int) -> Found:
    """Return errors in the unknown center of held-out images: of `solutions`, and of `samples`.

    For digits also the shares whose class is that of the original digit according to a classifier:
    `kept` of the solutions, and `grey` of images whose center is grey.
    """
    known = operators.box(model.event_shape, SHARE)
    truth, solutions, samples = _solve(model, operators.mask(known), seed, count)
    unknown = ~np.broadcast_to(known, model.event_shape)
    found = {
        "solutions": mean(rms((solutions - truth)[:, unknown])),
        "samples": mean(rms((samples - truth)[:, unknown])),
    }
    if is_digits(model):
        right, grey = classes(model, truth), np.where(known, truth, 0)
        found["kept"] = mean(classes(model, solutions) == right)
        found["grey"] = mean(classes(model, grey) == right)
    return found


def colorization(model: TrainedModel, *, seed: int, count: int) -> Found:
    """Return errors of the colors, differences from the mean of the channels, of given means.

    They are those of `solutions`, and of the colors of another image, `others`. `color` and `true
    color` are the root mean squares of the colors of solutions and of the original images.
    """
    operator = operators.channel_mean(model.event_shape)
    truth, solutions, _ = _solve(model, operator, seed, count)
    true, found = (x - x.mean(-1, keepdims=True) for x in (truth, solutions))
    return {
        "solutions": mean(rms(found - true)),
        "others": mean(rms(np.roll(true, 1, axis=0) - true)),
        "color": mean(rms(found)),
        "true color": mean(rms(true)),
    }


def _solve(
    model: TrainedModel, operator: Operator, seed: int, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return held-out images, a solution for each by the paper's method, and samples; (n, ...)."""
    truth = np.asarray(model.from_images(held_out(model, count)))
    options: dict[str, Any] = {"predictor": "reverse_diffusion", "corrector": "none"}
    options |= {"steps": STEPS, "batch_size": count}
    posterior = model.posterior(operator.forward(truth), operator, noise=0.0, method="projection")
    solutions = posterior.sample(seed=seed, **options)
    samples = model.sample(len(truth), seed=seed + 1, sampler="pc", **options)
    return truth, np.asarray(solutions), np.asarray(samples)
