"""`--mode=train_dequantizer`: variational dequantization for a trained score model (Song et al. 2021b, Section 5).

Noise v ~ q(v | u) in place of uniform noise makes -log p(u + v) + log q(v | u) a tighter bound of -log P(u). The flow q
learns by minimizing that bound, with the variational one of -log p (`likelihood.elbo`); the score model stays as it is.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors
import safetensors.numpy
from flax import nnx
from jax import Array
from tqdm import tqdm

import datasets
import likelihood
import sampling
import sharding
from checkpoints import Checkpoints
from errors import InputError, check_name
from experiment import Config, Experiment, Params, check_workdir, write_atomically
from models.dequantizer import Dequantizer
from models.layers import Rngs
from places import as_built

Dequantize = Callable[[Array, Array], tuple[Array, Array]]
"""(grey levels u (B, H, W, C), keys (B,)) -> u + v as the model sees it, log q(v | u) in nats (B,)."""

PAIRS = 2  # of times at which the bound is estimated, for each image and step
RATE, LOG_EVERY = 1e-3, 100


def train(config: Config, workdir: str, number: int | None = None) -> Params:
    """Trains q for a kept checkpoint, for config.training.dequantizer_iters steps; `load` reads the result.

    Raises InputError for a bad config, no such checkpoint, and a bound that is not finite.
    """
    experiment = Experiment(config)
    config, images = experiment.config, experiment.train
    check_workdir(workdir, config)
    checkpoints = Checkpoints(workdir)
    found = checkpoints.pick(number)
    ema = checkpoints.restore(found, {"ema": experiment.abstract_params})["ema"]
    total, batch_size = config.training.dequantizer_iters, config.training.batch_size
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(RATE, total)))
    split, whole = sharding.along_axis(experiment.mesh), sharding.replicated(experiment.mesh)

    @functools.partial(jax.jit, in_shardings=(whole, whole, whole, split, whole), out_shardings=whole)
    def step(params: Params, opt_state: optax.OptState, ema: Params, u: Array, step: Array) -> tuple:
        keys = sampling.image_keys(jax.random.fold_in(experiment.key("dequantize"), step), jnp.arange(batch_size))
        loss = lambda params: bound(experiment, ema, params, u, keys).mean()
        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    graph, params = nnx.split(network(experiment), nnx.Param)
    params = jax.device_put(nnx.to_pure_dict(params), whole)
    opt_state, values = optimizer.init(params), []
    batches = datasets.Batches(images, batch_size, config.seed).iterate(0)
    for i in tqdm(range(total), unit="step", disable=None):
        u = sharding.shard(experiment.mesh, next(batches).pixels[0])
        params, opt_state, value = step(params, opt_state, ema, u, i)
        values.append(value)
        if (i + 1) % LOG_EVERY == 0 or i + 1 == total:
            mean, values = float(np.mean(jax.device_get(values))), []
            if not math.isfinite(mean):
                raise InputError(f"Step {i + 1}: the bound is {mean}. Training stops; nothing is written.")
            print(f"step {i + 1}: bound {mean:.4f} bits/dim", flush=True)
    _write(path_of(workdir, found.number), params)
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
    return lambda u, keys: (scaler.dequantize(u, sampling.uniform(keys, u.shape)), jnp.zeros(u.shape[0]))


def bound(experiment: Experiment, ema: Params, params: Params, u: Array, keys: Array) -> Array:
    """Bounds of -log2 P(u) per dimension from above, for grey levels u (B, H, W, C) and keys (B,); (B,)."""
    x, log_q = dequantize(experiment, params, u, sampling.fold_in(keys, 0))
    nats = likelihood.elbo(experiment.score(ema), experiment.sde, x, sampling.fold_in(keys, 1), pairs=PAIRS).nats
    return likelihood.bits_per_dim(-nats - log_q, math.prod(u.shape[1:]), experiment.scaler.log_scale)


def dequantize(experiment: Experiment, params: Params, u: Array, keys: Array) -> tuple[Array, Array]:
    """Grey levels u (B, H, W, C) with noise v ~ q(v | u), as the model sees them, and log q(v | u) in nats (B,)."""
    graph = nnx.split(as_built(lambda: network(experiment)), nnx.Param)[0]
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
    path = path_of(workdir, number)
    if not path.exists():
        raise InputError(f"{path} does not exist; train it first, with --mode=train_dequantizer.")
    try:
        tensors = safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise InputError(f"{path} is damaged: {error}. Train it again, with --mode=train_dequantizer.") from error
    like = nnx.to_pure_dict(nnx.split(as_built(lambda: network(experiment)), nnx.Param)[1])
    names = [_name(path) for path, _ in jax.tree.leaves_with_path(like)]
    shapes = {name: leaf.shape for name, leaf in zip(names, jax.tree.leaves(like))}
    if {name: value.shape for name, value in tensors.items()} != shapes:
        raise InputError(f"{path} is the dequantizer of other images than data.num_channels says.")
    return jax.tree.unflatten(jax.tree.structure(like), [jnp.asarray(tensors[name]) for name in names])


def _write(path: Path, params: Params) -> None:
    tensors = {_name(key): np.asarray(leaf) for key, leaf in jax.tree.leaves_with_path(params)}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(safetensors.numpy.save(tensors)))


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
