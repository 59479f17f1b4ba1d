"""`--mode=import` and `--mode=export`: checkpoints of other code bases, by `pretrained`."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import pretrained
import sharding
from configs.default import Config
from configs.folders import check_config, owned
from errors import InputError, advice
from experiment import Experiment
from pretrained import Trained, Writer
from readers.files import MAX_STEP
from runs import write_atomically
from runs.checkpoints import EMA, SNAPSHOTS, Checkpoints, Found
from training.scores import score_job
from training.state import TrainState, from_checkpoint, to_checkpoint


def import_checkpoint(config: Config, workdir: str, source: str) -> int:
    """Import the file or folder `source` as a checkpoint of `workdir`; return its number.

    A file named checkpoint_8.pth becomes checkpoint 8; without a number, it follows from the step.
    Raises InputError if the source does not match the config, or the number is taken.
    """
    experiment = Experiment(config)
    config = experiment.config
    trained = pretrained.read(source, experiment.network, config)
    match = re.search(r"checkpoint_(\d+)", Path(source).name)
    number = int(match[1]) if match else max(1, trained.step // config.training.snapshot_freq)
    if number > MAX_STEP:
        raise InputError(
            f"--source={source} names checkpoint {number}; the largest number is {MAX_STEP:,}. "
            "Rename the file."
        )
    _check_free(workdir, number)
    check_config(workdir, config, "training")
    trees = to_checkpoint(to_state(trained, experiment))
    with owned(workdir, config, "training"):
        _check_free(workdir, number)  # Another process may have written it before this lock.
        checkpoints = Checkpoints(workdir, create=True)
        checkpoints.save(SNAPSHOTS, number, trees, step=trained.step, config=config.to_dict())
        checkpoints.close()
    print(f"{source} was imported as {Found(trained.step, SNAPSHOTS, number)} of {workdir}")
    _print_remarks(trained, config)
    return number


def _check_free(workdir: str, number: int) -> None:
    """Raise InputError if `workdir` has a checkpoint of this number, which may be damaged."""
    exists = os.path.lexists(Path(workdir, SNAPSHOTS, f"checkpoint_{number}"))
    if exists or number in Checkpoints(workdir).snapshots():
        raise InputError(
            f"{workdir} has a checkpoint_{number} already; nothing is overwritten. Use another "
            "--workdir."
        )


def _print_remarks(trained: Trained, config: Config) -> None:
    """Describe an imported checkpoint and name likely mistakes, one line each."""
    count = sum(np.size(leaf) for leaf in jax.tree.leaves(trained.params))
    moments = f"Adam's moments after {trained.updates} updates"
    moments = moments if trained.updates else "no Adam moments"
    print(f"It holds {count:,} parameters, their moving average, and {moments}.")
    rate, limit = trained.ema_rate, config.training.n_iters
    if rate is not None and not np.isclose(rate, config.model.ema_rate, rtol=1e-6):
        print(
            f"NOTE: ema_rate is {rate:.6g} in the file and {config.model.ema_rate:.6g} in the "
            "config. Check that this is the right config: networks of different SDEs can have the "
            "same shapes."
        )
    if trained.step >= limit:
        print(f"To continue training, raise training.n_iters = {limit} above {trained.step}.")


def export_checkpoint(
    config: Config,
    workdir: str,
    target: str,
    number: int | None = None,
    *,
    average_only: bool = False,
) -> None:
    """Export checkpoint `number` of `workdir`, by default the newest, to the file `target`.

    Its suffix selects the format: .pth, .safetensors, or otherwise that of the official Flax code.
    With `average_only`, a .safetensors file holds the moving average in half precision only. Raises
    InputError for a target that exists.
    """
    experiment = Experiment(config)
    config, path = experiment.config, Path(target)
    write = new_writer(path, average_only=average_only)
    check_config(workdir, config, "training")
    checkpoints = Checkpoints(workdir)
    found = checkpoints.pick(number)
    with advice("Choose another one with --checkpoint."):
        if average_only:
            like = {EMA: experiment.abstract_params}
            ema = sharding.fetch(checkpoints.restore(found, like)[EMA])
            trained = Trained(found.step, ema, ema)
        else:
            state = score_job(experiment).abstract_state(averages=False)
            trees = checkpoints.restore(found, to_checkpoint(state))
            trained = from_state(sharding.fetch(from_checkpoint(trees)))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: write(file, trained, experiment.network, config))
    print(f"{found} of {workdir} was exported to {target}")


def new_writer(path: Path, *, average_only: bool) -> Writer:
    """Return `pretrained.writer` of a path. Raises InputError if it exists."""
    if path.exists():
        raise InputError(f"--target={path} exists; nothing is overwritten. Use another --target.")
    return pretrained.writer(path, average_only=average_only)


def to_state(trained: Trained, experiment: Experiment) -> TrainState:
    """Return the training state of an imported checkpoint, replicated over the devices.

    Missing moments of Adam are zero, and averages of model.ema_stds start from the parameters.
    """
    counts = {optax.ScaleByAdamState: trained.updates, optax.ScaleByScheduleState: trained.step}

    def fill(node: Any) -> Any:
        if type(node) not in counts:
            return node
        if isinstance(node, optax.ScaleByAdamState) and trained.mu is not None:
            node = node._replace(mu=trained.mu, nu=trained.nu)
        return node._replace(count=jnp.int32(counts[type(node)]))

    # One program, not one for each shape.
    initial = jax.jit(score_job(experiment).optimizer.init)(trained.params)
    opt_state = jax.tree.map(fill, initial, is_leaf=lambda node: type(node) in counts)
    averages = (trained.params,) * len(experiment.config.model.ema_stds)
    state = TrainState(jnp.int32(trained.step), trained.params, trained.ema, opt_state, averages)
    return jax.device_put(state, sharding.replicated(experiment.mesh))


def from_state(state: TrainState) -> Trained:
    """Return the content of an exported checkpoint: the inverse of `to_state`, for host arrays."""
    adam = optax.tree.get(state.opt_state, optax.ScaleByAdamState.__name__)
    return Trained(int(state.step), state.params, state.ema, adam.mu, adam.nu, int(adam.count))
