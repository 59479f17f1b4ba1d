"""`--mode=train_classifier`: the classifier of noised images that guides samples.

It learns log p_t(class | x_t) for the SDE of the config (arXiv:2011.13456, Appendix I), at times
drawn as in the training of scores. The network is the paper's; the paper does not state how it was
trained. Results are in `WORKDIR/classifier/`.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

import datasets
import losses
import runs as files
import sharding
import train_state
from auxiliary import fitting
from configs.default import Config
from datasets import Batch
from experiment import Experiment
from factory import make_classifier
from models.building import Params
from models.layers import Rngs
from sde_lib import expand

NUM_LEVELS = 10  # noise levels at which the accuracy is measured


def train(config: Config, workdir: str) -> Params:
    """Train the classifier of config.classifier, or continue; `provide` reads the result.

    Writes classifier.safetensors and accuracy.json, and prints the latter. The workdir need not
    have a score model yet.

    Raises InputError for an invalid config, images without fitting labels, a workdir of other data
    or another SDE, a classifier with other settings, and a loss that is not finite.
    """
    experiment = Experiment(config, mode="train_classifier")
    config, options = experiment.config, experiment.config.classifier
    for images in (experiment.train, experiment.test):
        datasets.check_labels(images, options.num_classes, "classifier.num_classes")
    files.check_config(workdir, config, "noised images")
    rate = optax.cosine_decay_schedule(options.lr, options.n_iters)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), train_state.adamw(rate, options.weight_decay)
    )
    settings = {
        "classifier": options.to_dict(),
        "data": {
            name: value
            for name, value in config.data.to_dict().items()
            if f"data.{name}" not in fitting.LOCATIONS
        },
        "images": experiment.train.digest,
        "sde": repr(experiment.sde),
        "seed": config.seed,
    }
    path = path_of(workdir)
    params = fitting.fit(
        experiment,
        path,
        init_params(experiment),
        functools.partial(loss, experiment),
        experiment.batches(experiment.train, options.batch_size, labelled=True),
        optimizer,
        options.n_iters,
        key=experiment.key("classify"),
        settings=settings,
        unit="cross-entropy in nats",
    )
    report(experiment, params, path.with_name("accuracy.json"))
    return params


def loss(experiment: Experiment, params: Params, batch: Batch, key: Array) -> Array:
    """Return the mean cross-entropy, in nats, of labelled images noised to random times."""
    data_key, noise_key = jax.random.split(key)
    x = experiment.prepare(data_key, batch.pixels, flip=experiment.config.data.random_flip)
    t, z = losses.draw(noise_key, experiment.sde, x)
    log_probs = experiment.class_log_probs(params)(_add_noise(experiment, x, t, z), t)
    return -jnp.take_along_axis(log_probs, _labels(batch)[:, None], -1).mean()


def accuracy(experiment: Experiment, params: Params) -> list[dict[str, float]]:
    """Evaluate the test images at NUM_LEVELS noise levels.

    Each row has the noise level (std / alpha), the accuracy with its standard error, and the mean
    cross-entropy in nats.
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


def _compile_evaluation(experiment: Experiment):
    """Return (params, batch, t, key) -> whether each image is classified correctly, and nats."""
    split, whole = sharding.along_axis(experiment.mesh), sharding.replicated(experiment.mesh)

    @functools.partial(jax.jit, in_shardings=(whole, split, whole, whole), out_shardings=split)
    def evaluate(params: Params, batch: Batch, t: Array, key: Array) -> tuple[Array, Array]:
        data_key, noise_key = jax.random.split(key)
        x = experiment.prepare(data_key, batch.pixels, flip=False)
        times = jnp.broadcast_to(t, x.shape[:1])
        noised = _add_noise(experiment, x, times, jax.random.normal(noise_key, x.shape))
        log_probs = experiment.class_log_probs(params)(noised, times)
        labels = _labels(batch)
        of_label = jnp.take_along_axis(log_probs, labels[:, None], -1)[:, 0]
        return log_probs.argmax(-1) == labels, -of_label

    return evaluate


def report(experiment: Experiment, params: Params, path: Path) -> None:
    """Print the accuracy against the noise level, and write it to `path`."""
    rows, count = accuracy(experiment, params), len(experiment.test)
    classes = experiment.config.classifier.num_classes
    files.write_json(path, {"images": count, "classes": classes, "levels": rows})
    print(f"{count} held-out images\n{'noise level':>12}{'accuracy':>20}{'nats':>10}")
    for row in rows:
        share = f"{100 * row['accuracy']:.1f} +- {100 * row['stderr']:.1f} %"
        print(f"{row['noise_level']:>12.4g}{share:>20}{row['nats']:>10.3f}")
    print(f"classifier: {path.parent}")


def provide(experiment: Experiment, workdir: str | Path) -> None:
    """Set experiment.classifier to the classifier of `workdir`, if config.guidance needs one.

    Raises InputError if it was not trained, has another architecture than config.classifier, or was
    trained on other images, another scale of them, or another SDE.
    """
    if experiment.config.guidance.classes and not experiment.labelled:
        like = nnx.to_pure_dict(nnx.split(experiment.classifier_network, nnx.Param)[1])
        noised = files.dependencies("noised images", experiment.config)
        expected = {name: value for name, value in noised.items() if name.startswith("data.")}
        expected["sde"] = repr(experiment.sde)
        experiment.classifier = fitting.load(path_of(workdir), like, "train_classifier", expected)


def path_of(workdir: str | Path) -> Path:
    """Return the file of the classifier of a workdir."""
    return Path(workdir) / "classifier" / "classifier.safetensors"


def init_params(experiment: Experiment) -> Params:
    """Return initial parameters."""

    def make(key: Array) -> Params:
        network = make_classifier(experiment.config, Rngs(key))
        return nnx.to_pure_dict(nnx.split(network, nnx.Param)[1])

    return jax.jit(make)(experiment.key("init_classifier"))


def _labels(batch: Batch) -> Array:
    """Return the labels (B,) of a labelled batch."""
    if batch.labels is None:
        raise ValueError("the batch has no labels; load it with labelled=True")
    return jnp.asarray(batch.labels)


def _add_noise(experiment: Experiment, x: Array, t: Array, z: Array) -> Array:
    """Return x_t = alpha x + std z for x, z (B, ...) and t (B,)."""
    alpha, std = (expand(c, x) for c in (experiment.sde.alpha(t), experiment.sde.std(t)))
    return alpha * x + std * z
