"""`--mode=train_dequantizer`: variational dequantization for a trained score model.

Noise v ~ q(v | u) in place of uniform noise makes -log p(u + v) + log q(v | u) a tighter bound of
-log P(u) (Song et al. 2021b, arXiv:2101.09258, Section 5). The flow q minimizes that bound, with
the variational bound of -log p (`likelihood.elbo`); the score model does not change.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path

import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array

import likelihood
import sampling
from auxiliary import fitting
from checkpoints import Checkpoints, tree_checksum
from configs.default import Config
from datasets import Batch, Dequantize
from experiment import Experiment
from models.building import Params, abstract_network
from models.dequantizer import Dequantizer
from models.layers import Rngs

NUM_PAIRS = 2  # pairs of times at which the bound is estimated, for each image and step
LEARNING_RATE = 1e-3


def train(config: Config, workdir: str, number: int | None = None) -> Params:
    """Train q for a snapshot, for config.training.dequantizer_iters steps, or continue.

    `load` reads the result. Raises InputError for an invalid config, no such checkpoint, a
    dequantizer with other settings, and a bound that is not finite.
    """
    experiment = Experiment(config)
    config = experiment.config
    images = experiment.train
    found, ema = experiment.trained(workdir, number)
    total, batch_size = config.training.dequantizer_iters, config.training.batch_size
    rate = optax.cosine_decay_schedule(LEARNING_RATE, total)

    def loss(params: Params, batch: Batch, key: Array, ema: Params) -> Array:
        keys = sampling.image_keys(key, jnp.arange(batch_size))
        return bound(experiment, ema, params, jnp.asarray(batch.pixels), keys).mean()

    path = path_of(workdir, found.number)
    params = fitting.fit(
        experiment,
        path,
        nnx.to_pure_dict(nnx.split(network(experiment), nnx.Param)[1]),
        loss,
        experiment.batches(images, batch_size),
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate)),
        total,
        key=experiment.key("dequantize"),
        settings={
            **experiment.identity(workdir, found),
            "images": images.digest,
            "iters": total,
            "batch_size": batch_size,
            "seed": config.seed,
        },
        constants=[ema],
        unit="bound in bits/dim",
    )
    print(f"dequantizer: {path}")
    return params


def make(experiment: Experiment, workdir: str | Path, number: int) -> Dequantize:
    """Return the dequantization that config.eval.dequantization names, for a checkpoint.

    Raises InputError if it is variational and the flow was not trained.
    """
    if experiment.config.eval.dequantization.lower() == "variational":
        return functools.partial(dequantize, experiment, load(experiment, workdir, number))
    scaler = experiment.scaler

    def uniform(u: Array, keys: Array) -> tuple[Array, Array]:
        return scaler.dequantize(u, sampling.uniform(keys, u.shape)), jnp.zeros(u.shape[0])

    return uniform


def identity(experiment: Experiment, workdir: str | Path, number: int) -> int | str:
    """Return what identifies the dequantization of a checkpoint: its name, or a checksum."""
    kind = experiment.config.eval.dequantization.lower()
    if kind == "uniform":
        return kind
    return tree_checksum(load(experiment, workdir, number))


def bound(experiment: Experiment, ema: Params, params: Params, u: Array, keys: Array) -> Array:
    """Return an upper bound of -log2 P(u) per dimension (B,).

    Args:
      ema, params: the parameters of the score network and of the flow.
      u: grey levels (B, H, W, C).
      keys: one random key per image (B,).
    """
    x, log_q = dequantize(experiment, params, u, sampling.fold_in(keys, 0))
    score, bound_keys = experiment.score(ema), sampling.fold_in(keys, 1)
    nats = likelihood.elbo(score, experiment.sde, x, bound_keys, pairs=NUM_PAIRS).nats
    dims = math.prod(u.shape[1:])
    return likelihood.bits_per_dim(-nats - log_q, dims, experiment.scaler.log_scale)


def dequantize(
    experiment: Experiment, params: Params, u: Array, keys: Array
) -> tuple[Array, Array]:
    """Add noise v ~ q(v | u) to grey levels u (B, H, W, C).

    Returns u + v in the range of the model, and log q(v | u) in nats (B,).
    """
    graph = nnx.split(abstract_network(lambda: network(experiment)), nnx.Param)[0]
    v, log_q = nnx.merge(graph, params)(u, sampling.uniform(keys, u.shape))
    return experiment.scaler.dequantize(u, v), log_q


def network(experiment: Experiment) -> Dequantizer:
    """Return the flow with initial parameters."""
    rngs = Rngs(experiment.key("init_dequantizer"))
    return Dequantizer(experiment.image_shape[-1], experiment.scaler.levels, rngs=rngs)


def path_of(workdir: str | Path, number: int) -> Path:
    """Return the file of the dequantizer that belongs to a checkpoint."""
    return Path(workdir) / "dequantizers" / f"checkpoint_{number}.safetensors"


def load(experiment: Experiment, workdir: str | Path, number: int) -> Params:
    """Return the parameters that `train` wrote.

    Raises InputError if they do not exist, or belong to another network or to other parameters of
    the score model.
    """
    found = Checkpoints(workdir).pick(number)
    like = nnx.to_pure_dict(nnx.split(abstract_network(lambda: network(experiment)), nnx.Param)[1])
    expected = experiment.identity(str(workdir), found)
    return fitting.load(path_of(workdir, number), like, "train_dequantizer", expected)
