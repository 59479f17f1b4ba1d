"""`--mode=import` and `--mode=export`: between checkpoints of other code bases and those of a workdir."""

from __future__ import annotations

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import pretrained
import sharding
from checkpoints import SNAPSHOTS, Checkpoints, Found
from configs.default import Config
from errors import InputError
from experiment import Experiment
from pretrained import Trained
from train_state import TrainState, from_checkpoint, make_optimizer, to_checkpoint
from workdir import check_config, claim, write_atomically


def import_checkpoint(config: Config, workdir: str, source: str) -> int:
    """Makes a checkpoint of `workdir` of another code base's file or folder; returns its number.

    `checkpoint_8.pth` becomes number 8; without a number in its name, a file gets that of its training step. Training
    and evaluation go on from there.

    Raises InputError if the config is bad, the source does not fit it, or the workdir has the checkpoint already.
    """
    experiment = Experiment(config)
    config = experiment.config
    trained = pretrained.read(source, experiment.network, config)
    named = re.search(r"checkpoint_(\d+)", Path(source).name)
    number = int(named[1]) if named else max(1, trained.step // config.training.snapshot_freq)
    if number in Checkpoints(workdir).snapshots():
        raise InputError(
            f"{workdir} has a checkpoint_{number} already; nothing is overwritten. Use another --workdir."
        )
    claim(workdir, config, "training")
    checkpoints = Checkpoints(workdir, create=True)
    trees = to_checkpoint(to_state(trained, experiment))
    checkpoints.save(SNAPSHOTS, number, trees, step=trained.step, config=config.to_dict())
    checkpoints.close()
    print(
        f"{source} is now {Found(trained.step, SNAPSHOTS, number)} of {workdir}\n{_remarks(trained, config)}"
    )
    return number


def export_checkpoint(config: Config, workdir: str, target: str, number: int | None = None) -> None:
    """Writes checkpoint `number` of `workdir`, by default the newest, to `target`: `import_checkpoint` inverts it.

    `target` ending in .pth becomes a checkpoint of the official PyTorch code, .safetensors one of named tensors, and
    anything else, like checkpoint_8, one of the official Flax code.

    Raises InputError for a bad config, no such checkpoint, and a target that exists.
    """
    experiment = Experiment(config)
    config, path = experiment.config, Path(target)
    if path.exists():
        raise InputError(f"--target={target} exists; nothing is overwritten.")
    check_config(workdir, config, "training")
    checkpoints = Checkpoints(workdir)
    found = checkpoints.pick(number)
    trees = checkpoints.restore(found, to_checkpoint(_abstract_state(experiment)))
    write = pretrained.writer(path)
    trained, network = from_state(sharding.fetch(from_checkpoint(trees))), experiment.network
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: write(file, trained, network, config))
    print(f"{found} of {workdir} is now {target}")


# --- between a training state and what files hold ---------------------------------------------------------------------


def to_state(trained: Trained, experiment: Experiment) -> TrainState:
    """The state from which training goes on; without Adam's averages in `trained`, these start anew."""
    optimizer = make_optimizer(experiment.config.optim)
    counts = {optax.ScaleByAdamState: trained.updates, optax.ScaleByScheduleState: trained.step}

    def fill(node: optax.OptState) -> optax.OptState:
        if isinstance(node, optax.ScaleByAdamState) and trained.mu is not None:
            node = node._replace(mu=trained.mu, nu=trained.nu)
        return node._replace(count=jnp.int32(counts[type(node)])) if type(node) in counts else node

    fresh = optimizer.init(trained.params)
    opt_state = jax.tree.map(fill, fresh, is_leaf=lambda node: type(node) in counts)
    state = TrainState(jnp.int32(trained.step), trained.params, trained.ema, opt_state)
    return jax.device_put(state, sharding.replicated(experiment.mesh))


def from_state(state: TrainState) -> Trained:
    """Inverts `to_state`, for a state on the host."""
    is_adam = lambda node: isinstance(node, optax.ScaleByAdamState)
    (adam,) = filter(is_adam, jax.tree.leaves(state.opt_state, is_leaf=is_adam))
    return Trained(int(state.step), state.params, state.ema, adam.mu, adam.nu, int(adam.count))


def _abstract_state(experiment: Experiment) -> TrainState:
    params, whole = experiment.abstract_params, sharding.replicated(experiment.mesh)
    opt_state = jax.eval_shape(make_optimizer(experiment.config.optim).init, params)
    state = TrainState(jax.ShapeDtypeStruct((), jnp.int32), params, params, opt_state)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), state
    )


def _remarks(trained: Trained, config: Config) -> str:
    """What a user should know of an imported checkpoint."""
    count = sum(np.size(leaf) for leaf in jax.tree.leaves(trained.params))
    averages = (
        f"Adam's averages of {trained.updates} updates" if trained.updates else "nothing of Adam's"
    )
    lines = [f"{count:,} parameters, their moving average, and {averages}"]
    if trained.ema_rate is not None and not np.isclose(
        trained.ema_rate, config.model.ema_rate, rtol=1e-6
    ):
        lines.append(
            f"NOTE: the file says ema_rate = {trained.ema_rate:.6g}, the config {config.model.ema_rate:.6g}: is it the "
            f"right config? Networks of different SDEs can have the same shapes."
        )
    if trained.step >= config.training.n_iters:
        lines.append(
            f"To train on, raise training.n_iters = {config.training.n_iters} above {trained.step}."
        )
    return "\n".join(lines)
