"""`--mode=train_classifier`: the classifier of noised images that guides samples (arXiv:2011.13456, Appendix I).

It learns log p_t(class | x_t) for the SDE of the config, at times drawn as in the training of scores. The network is
the paper's; how it is trained, the paper does not tell. Results lie in `WORKDIR/classifier/`.
"""

from __future__ import annotations

import functools
import json
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
import sharding
from auxiliary import fitting
from configs.default import Config
from datasets import Batch, Batches
from errors import InputError
from experiment import Experiment
from factory import make_classifier
from models.building import Params
from models.layers import Rngs
from sde_lib import expand
from workdir import check_config, write_atomically

LEVELS = 10  # at which the accuracy is measured


def train(config: Config, workdir: str) -> Params:
    """Trains the classifier of config.classifier, or goes on training it; `provide` reads the result.

    Writes classifier.safetensors and accuracy.json, which is printed, too. The workdir need not have a score model yet.

    Raises InputError for a bad config, images without fitting labels, a workdir of other data or another SDE, and a
    loss that is not finite.
    """
    experiment = Experiment(config)
    config, options = experiment.config, experiment.config.classifier
    _check(experiment)
    images = experiment.train
    for each in (images, experiment.test):
        datasets.check_labels(each, options.num_classes, "classifier.num_classes")
    of_the_sde = tuple(f"model.{name}" for name in vars(experiment.sde))
    fixed = ("data.", "training.sde", *of_the_sde)
    check_config(
        workdir, config, lambda field: field.startswith(fixed) and field != "data.num_classes"
    )
    settings = {
        "classifier": options.to_dict(),
        "data": config.data.to_dict(),
        "sde": repr(experiment.sde),
    }
    rate = optax.cosine_decay_schedule(options.lr, options.n_iters)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=options.weight_decay)
    )
    params = fitting.fit(
        experiment,
        path_of(workdir),
        init_params(experiment),
        functools.partial(loss, experiment),
        Batches(images, options.batch_size, config.seed, labelled=True),
        optimizer,
        options.n_iters,
        key=experiment.key("classify"),
        settings=settings | {"seed": config.seed},
        unit="cross-entropy in nats",
    )
    report(experiment, params, path_of(workdir).with_name("accuracy.json"))
    return params


def loss(experiment: Experiment, params: Params, batch: Batch, key: Array) -> Array:
    """The mean cross-entropy, in nats, of a batch of labelled images noised to random times."""
    data_key, noise_key = jax.random.split(key)
    x = experiment.prepare(data_key, batch.pixels, flip=experiment.config.data.random_flip)
    t, z = losses.draw(noise_key, experiment.sde, x)
    log_probs = experiment.class_log_probs(params)(_noised(experiment, x, t, z), t)
    return -jnp.take_along_axis(log_probs, batch.labels[:, None], -1).mean()


def accuracy(experiment: Experiment, params: Params) -> list[dict[str, float]]:
    """Of the test images at each of LEVELS noise levels: accuracy, its standard error, and cross-entropy in nats."""
    sde, images = experiment.sde, experiment.test
    split, whole = sharding.along_axis(experiment.mesh), sharding.replicated(experiment.mesh)

    @functools.partial(jax.jit, in_shardings=(whole, split, whole, whole), out_shardings=split)
    def judge(params: Params, batch: Batch, t: Array, key: Array) -> tuple[Array, Array]:
        data_key, noise_key = jax.random.split(key)
        x = experiment.prepare(data_key, batch.pixels, flip=False)
        times = jnp.broadcast_to(t, x.shape[:1])
        x = _noised(experiment, x, times, jax.random.normal(noise_key, x.shape))
        log_probs = experiment.class_log_probs(params)(x, times)
        right = jnp.take_along_axis(log_probs, batch.labels[:, None], -1)[:, 0]
        return log_probs.argmax(-1) == batch.labels, -right

    ends = np.asarray(sde.noise_to_signal(jnp.array([sde.t_end, sde.T])))
    levels, rows = np.geomspace(*ends, LEVELS), []
    for i, t in enumerate(np.asarray(sde.time_at(levels))):
        found = []
        for j, (indices, count) in enumerate(
            datasets.rounds(images, experiment.config.classifier.batch_size)
        ):
            batch = experiment.rows(images.batch(indices, labelled=True))
            key = jax.random.fold_in(jax.random.fold_in(experiment.key("loss"), i), j)
            found.append([leaf[:count] for leaf in sharding.fetch(judge(params, batch, t, key))])
        correct, nats = (np.concatenate(leaf) for leaf in zip(*found))
        share = float(correct.mean())
        row = {"noise_level": float(levels[i]), "accuracy": share, "nats": float(nats.mean())}
        rows.append(row | {"stderr": math.sqrt(share * (1 - share) / len(correct))})
    return rows


def report(experiment: Experiment, params: Params, path: Path) -> None:
    """Prints the accuracy against the noise level, and writes it to `path`."""
    rows, count = accuracy(experiment, params), len(experiment.test)
    result = {"images": count, "classes": experiment.config.classifier.num_classes, "levels": rows}
    write_atomically(path, lambda file: file.write(json.dumps(result, indent=2).encode()))
    print(f"{count} held-out images\n{'noise level':>12}{'accuracy':>20}{'nats':>10}")
    for row in rows:
        share = f"{100 * row['accuracy']:.1f} +- {100 * row['stderr']:.1f} %"
        print(f"{row['noise_level']:>12.4g}{share:>20}{row['nats']:>10.3f}")
    print(f"classifier: {path.parent}")


def provide(experiment: Experiment, workdir: str | Path) -> None:
    """Gives the experiment the classifier of its workdir, if config.guidance needs one.

    Raises InputError if it was not trained, or is another than config.classifier says.
    """
    if experiment.config.guidance.classes and not experiment.labelled:
        like = nnx.to_pure_dict(nnx.split(experiment.classifier_network, nnx.Param)[1])
        experiment.classifier = fitting.load(path_of(workdir), like, "train_classifier")


def path_of(workdir: str | Path) -> Path:
    """The file of the classifier of a workdir."""
    return Path(workdir) / "classifier" / "classifier.safetensors"


def init_params(experiment: Experiment) -> Params:
    """Fresh parameters."""
    make = lambda key: nnx.to_pure_dict(
        nnx.split(make_classifier(experiment.config, Rngs(key)), nnx.Param)[1]
    )
    return jax.jit(make)(experiment.key("classify"))


def _noised(experiment: Experiment, x: Array, t: Array, z: Array) -> Array:
    alpha, std = (expand(c, x) for c in (experiment.sde.alpha(t), experiment.sde.std(t)))
    return alpha * x + std * z


def _check(experiment: Experiment) -> None:
    options = experiment.config.classifier
    sharding.check_batch_size(experiment.mesh, options.batch_size, "classifier.batch_size")
    for field in ("num_classes", "blocks_per_group", "channel_multiplier", "n_iters", "lr"):
        if not options[field] > 0:
            raise InputError(f"classifier.{field} = {options[field]} must be above 0.")
