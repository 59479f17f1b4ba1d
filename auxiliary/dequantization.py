"""`--mode=train_dequantizer`: variational dequantization for a trained score model (Song et al. 2021b, Section 5).

Noise v ~ q(v | u) in place of uniform noise makes -log p(u + v) + log q(v | u) a tighter bound of -log P(u). The flow q
learns by minimizing that bound, with the variational one of -log p (`likelihood.elbo`); the score model stays as it is.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array

import likelihood
import sampling
from auxiliary import fitting
from configs.default import Config
from datasets import Batch, Batches
from errors import check_name
from experiment import Experiment
from models.building import Params, abstract_network
from models.dequantizer import Dequantizer
from models.layers import Rngs

Dequantize = Callable[[Array, Array], tuple[Array, Array]]
"""(grey levels u (B, H, W, C), keys (B,)) -> u + v as the model sees it, log q(v | u) in nats (B,)."""

PAIRS = 2  # of times at which the bound is estimated, for each image and step
RATE = 1e-3


def train(config: Config, workdir: str, number: int | None = None) -> Params:
    """Trains q for a kept checkpoint, or goes on; config.training.dequantizer_iters steps, and `load` reads the result.

    Raises InputError for a bad config, no such checkpoint, and a bound that is not finite.
    """
    experiment = Experiment(config)
    config, images = experiment.config, experiment.train
    found, ema = experiment.trained(workdir, number)
    total, batch_size = config.training.dequantizer_iters, config.training.batch_size

    def loss(params: Params, batch: Batch, key: Array, ema: Params) -> Array:
        keys = sampling.image_keys(key, jnp.arange(batch_size))
        return bound(experiment, ema, params, batch.pixels, keys).mean()

    params = fitting.fit(
        experiment,
        path_of(workdir, found.number),
        nnx.to_pure_dict(nnx.split(network(experiment), nnx.Param)[1]),
        loss,
        Batches(images, batch_size, config.seed),
        optax.chain(
            optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(RATE, total))
        ),
        total,
        key=experiment.key("dequantize"),
        settings={
            "step": found.step,
            "iters": total,
            "batch_size": batch_size,
            "seed": config.seed,
        },
        constants=[ema],
        unit="bound in bits/dim",
    )
    print(f"dequantizer: {path_of(workdir, found.number)}")
    return params


def make(experiment: Experiment, workdir: str | Path, number: int) -> Dequantize:
    """What config.eval.dequantization names, 'uniform' or 'variational', for a checkpoint of `workdir`.

    Raises InputError for another name, and for a flow that was not trained.
    """
    kind = experiment.config.eval.dequantization.lower()
    check_name(kind, ("uniform", "variational"), "eval.dequantization")
    if kind == "variational":
        return functools.partial(dequantize, experiment, load(experiment, workdir, number))
    scaler = experiment.scaler
    return lambda u, keys: (
        scaler.dequantize(u, sampling.uniform(keys, u.shape)),
        jnp.zeros(u.shape[0]),
    )


def bound(experiment: Experiment, ema: Params, params: Params, u: Array, keys: Array) -> Array:
    """Bounds of -log2 P(u) per dimension from above, for grey levels u (B, H, W, C) and keys (B,); (B,)."""
    x, log_q = dequantize(experiment, params, u, sampling.fold_in(keys, 0))
    nats = likelihood.elbo(
        experiment.score(ema), experiment.sde, x, sampling.fold_in(keys, 1), pairs=PAIRS
    ).nats
    return likelihood.bits_per_dim(
        -nats - log_q, math.prod(u.shape[1:]), experiment.scaler.log_scale
    )


def dequantize(
    experiment: Experiment, params: Params, u: Array, keys: Array
) -> tuple[Array, Array]:
    """Grey levels u (B, H, W, C) with noise v ~ q(v | u), as the model sees them, and log q(v | u) in nats (B,)."""
    graph = nnx.split(abstract_network(lambda: network(experiment)), nnx.Param)[0]
    v, log_q = nnx.merge(graph, params)(u, sampling.uniform(keys, u.shape))
    return experiment.scaler.dequantize(u, v), log_q


def network(experiment: Experiment) -> Dequantizer:
    """The flow, untrained."""
    rngs = Rngs(experiment.key("dequantize"))
    return Dequantizer(experiment.image_shape[-1], experiment.scaler.levels, rngs=rngs)


def path_of(workdir: str | Path, number: int) -> Path:
    """The file of the dequantizer that goes with a checkpoint."""
    return Path(workdir) / "dequantizers" / f"checkpoint_{number}.safetensors"


def load(experiment: Experiment, workdir: str | Path, number: int) -> Params:
    """The parameters that `train` wrote. Raises InputError if there are none, or of another network."""
    like = nnx.to_pure_dict(nnx.split(abstract_network(lambda: network(experiment)), nnx.Param)[1])
    return fitting.load(path_of(workdir, number), like, "train_dequantizer")
