"""`--mode=train_classifier`: the classifier of noised images that guides samples.

It learns log p_t(class | x_t) (arXiv:2011.13456, Appendix I) by the loop that trains scores. The
network is the paper's; the paper does not state how it was trained.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

import datasets
import losses
import runs
import sharding
from configs import folders
from configs.default import Config
from configs.parts import make_classifier
from datasets import Batch
from experiment import CLASSIFIER, Experiment
from losses import Part
from models.building import Params
from models.conditions import Condition
from models.layers import Rngs
from sde_lib import expand
from training import state
from training.loop import last_step, train_job
from training.step import Job

NUM_LEVELS = 10  # noise levels at which the accuracy is measured


def train(config: Config, workdir: str) -> Params:
    """Train the classifier of config.classifier, or continue; return its parameters.

    Writes checkpoints, the log and accuracy.json to WORKDIR/classifier, which needs no score model
    yet. Raises InputError, also for other data or another SDE; NotFiniteError for the loss.
    """
    experiment = Experiment(config, mode="train_classifier")
    classes, count = experiment.config.classifier.num_classes, len(experiment.test)
    for images in (experiment.train, experiment.test):
        datasets.check_labels(images, classes, "classifier.num_classes")
    folders.check_config(workdir, experiment.config, "noised images")
    folder, job = Path(workdir, CLASSIFIER), make_job(experiment)
    trained = train_job(job, folder, kind="classifier")
    if int(trained.step) >= last_step(0, job.settings.n_iters, 1):
        rows = accuracy(experiment, trained.params)
        result = {"images": count, "classes": classes, "levels": rows}
        runs.write_json(folder / "accuracy.json", result)
        print(f"{count} held-out images\n{'noise level':>12}{'accuracy':>20}{'nats':>10}")
        for row in rows:
            share = f"{100 * row['accuracy']:.1f} +- {100 * row['stderr']:.1f} %"
            print(f"{row['noise_level']:>12.4g}{share:>20}{row['nats']:>10.3f}")
        print(f"classifier: {folder}")
    return trained.params


def make_job(experiment: Experiment) -> Job:
    """Return the job that trains the classifier of an experiment."""
    config, options = experiment.config, experiment.config.classifier
    settings = config.training.copy_and_resolve_references().unlock()
    settings.update(batch_size=options.batch_size, n_iters=options.n_iters)
    settings.update(n_jitted_steps=1, accumulate=1)
    rate = optax.cosine_decay_schedule(options.lr, options.n_iters)

    def part(key: Array, batch: Batch, *, held_out: bool = False) -> Part:
        data_key, noise_key = jax.random.split(key)
        flip = config.data.random_flip and not held_out
        x = experiment.prepare(data_key, batch.pixels, flip=flip)
        t, z = losses.draw(noise_key, experiment.sde, x, even=held_out)
        return Part(key, x, t, z, Condition(jnp.asarray(batch.labels)))

    def loss(params: Params, part: Part) -> Array:
        return cross_entropy(_log_probs(experiment, params, part), part.condition.classes)

    @jax.jit
    def held_out(params: Params, batch: Batch, key: Array) -> tuple[Array, Array]:
        even = part(key, batch, held_out=True)
        return loss(params, even), even.t

    @jax.jit
    def init(key: Array) -> Params:
        network = make_classifier(config, Rngs(key))
        return nnx.to_pure_dict(nnx.split(network, nnx.Param)[1])

    return Job(
        experiment,
        settings,
        loss,
        part,
        held_out,
        functools.partial(init, experiment.key("init_classifier")),
        nnx.to_pure_dict(nnx.split(experiment.classifier_network, nnx.Param)[1]),
        optax.chain(optax.clip_by_global_norm(1.0), state.adamw(rate, options.weight_decay)),
        experiment.key("classify"),
        rate,
        labelled=True,
    )


def _log_probs(experiment: Experiment, params: Params, part: Part) -> Array:
    """Return log p_t(class | x_t) (B, classes) of images noised to their times."""
    alpha, std = experiment.sde.alpha(part.t), experiment.sde.std(part.t)
    noised = expand(alpha, part.x) * part.x + expand(std, part.x) * part.z
    return experiment.class_log_probs(params)(noised, part.t)


def cross_entropy(log_probs: Array, classes: Any) -> Array:
    """Return -log p(class) in nats (B,), from those of all classes (B, classes)."""
    return -jnp.take_along_axis(log_probs, classes[:, None], -1)[:, 0]


def accuracy(experiment: Experiment, params: Params) -> list[dict[str, float]]:
    """Return a row for each of NUM_LEVELS noise levels of test images.

    It has the level (std / alpha), the accuracy with its standard error, and the mean nats.
    """
    sde, images = experiment.sde, experiment.test
    evaluate = _compile_evaluation(experiment)
    low, high = np.asarray(sde.noise_to_signal(jnp.array([sde.t_end, sde.T])))
    levels, rows = np.geomspace(low, high, NUM_LEVELS), []
    batch_size = experiment.config.classifier.batch_size
    for i, t in enumerate(np.asarray(sde.time_at(jnp.asarray(levels)))):
        level_key, found = jax.random.fold_in(experiment.key("loss"), i), []
        for j, (indices, count) in enumerate(datasets.rounds(images, batch_size)):
            batch = experiment.rows(images.batch(indices, labelled=True))
            outputs = sharding.fetch(evaluate(params, batch, t, jax.random.fold_in(level_key, j)))
            found.append([leaf[:count] for leaf in outputs])
        correct, nats = (np.concatenate(leaf) for leaf in zip(*found))
        share = float(correct.mean())
        row = {"noise_level": float(levels[i]), "accuracy": share, "nats": float(nats.mean())}
        rows.append(row | {"stderr": math.sqrt(share * (1 - share) / len(correct))})
    return rows


def _compile_evaluation(experiment: Experiment) -> Callable[..., Any]:
    """Return (params, batch, t, key) -> whether each image is classified correctly, and nats."""
    split, whole = sharding.along_axis(experiment.mesh), sharding.replicated(experiment.mesh)

    # The parameters may be sharded as in training.
    @functools.partial(jax.jit, in_shardings=(None, split, whole, whole), out_shardings=split)
    def evaluate(params: Params, batch: Batch, t: Array, key: Array) -> tuple[Array, Array]:
        data_key, noise_key = jax.random.split(key)
        x = experiment.prepare(data_key, batch.pixels, flip=False)
        times, z = jnp.broadcast_to(t, x.shape[:1]), jax.random.normal(noise_key, x.shape)
        classes = jnp.asarray(batch.labels)
        log_probs = _log_probs(experiment, params, Part(key, x, times, z, None))
        return log_probs.argmax(-1) == classes, cross_entropy(log_probs, classes)

    return evaluate
