"""The training loop: checkpoints, the log, held-out losses, and stops by a signal.

A run can be stopped at any time; started again, it ends with the same parameters, bit for bit.
"""

from __future__ import annotations

import contextlib
import functools
import signal
from collections.abc import Iterator

import jax
import numpy as np

import datasets
import factory
import losses
import progress
import sharding
import train_state
from auxiliary import classification
from checkpoints import BACKUPS, SNAPSHOTS, Checkpoints
from configs.default import Config
from datasets import Batch
from errors import InputError, NotFiniteError
from experiment import Experiment
from models.building import Params
from report.training_log import TrainingLog
from runs import owned
from train_state import Rollbacks, TrainState
from training.step import Step, compile_steps, init_state

GRID = 64  # images in the sample grid of a snapshot
MOST_HELD_OUT = 1000  # images of a held-out loss
MOST_SKIPPED = 9  # steps in a row that training.on_nonfinite = "skip" accepts
FREQUENCIES = ("log_freq", "eval_freq", "snapshot_freq", "snapshot_freq_for_preemption")


def train(config: Config, workdir: str) -> TrainState:
    """Train the experiment `config` in `workdir`, or continue; return the last state.

    A signal saves the state: SIGTERM and SIGHUP return it early, SIGINT raises KeyboardInterrupt.
    Raises InputError for an invalid config, and for a workdir of another experiment or one that
    another process trains in. training.on_nonfinite states what follows if a loss, a gradient or
    the state is not finite: NotFiniteError, unless it is corrected. Such a state is never saved.
    """
    experiment = Experiment(config)
    config = experiment.config
    _ = experiment.train, experiment.test  # Missing images fail before anything is written.
    if config.training.snapshot_sampling:
        classification.provide(experiment, workdir)
    with (
        owned(workdir, config, "training"),
        sharding.Preemption(experiment.mesh) as preemption,
    ):
        state = _train_claimed(experiment, workdir, preemption)
    if preemption.signal == signal.SIGINT:
        raise KeyboardInterrupt
    return state


def _train_claimed(
    experiment: Experiment, workdir: str, preemption: sharding.Preemption
) -> TrainState:
    """Train, and go back to an earlier state where training.on_nonfinite asks for it."""
    rolls_back = experiment.config.training.on_nonfinite == "rollback"
    rollbacks = train_state.read_rollbacks(workdir)  # Their noise remains if the policy changes.
    checkpoints, reason = Checkpoints(workdir, create=True), ""
    with contextlib.closing(checkpoints):
        while True:
            try:
                return _continue(experiment, workdir, checkpoints, preemption, rollbacks, reason)
            except NotFiniteError as error:
                following = rollbacks.next(error.step) if rolls_back else None
                if following is None:
                    raise
                rollbacks, reason = following, f"rollback {following.number}: {error.summary}"
            # Another order would make a killed run go back to another checkpoint.
            checkpoints.wait()
            rollbacks.write(workdir)


def _continue(
    experiment: Experiment,
    workdir: str,
    checkpoints: Checkpoints,
    preemption: sharding.Preemption,
    rollbacks: Rollbacks,
    reason: str,
) -> TrainState:
    """Train from the newest checkpoint, or the initial state; return the last state.

    `reason` is the line that the log shows first, if any.
    """
    config = experiment.config
    optimizer = train_state.make_optimizer(config.optim)
    with progress.waiting("initializing the network, and reading its newest checkpoint, if any"):
        state = init_state(experiment, optimizer)
        restored = checkpoints.restore_latest(train_state.to_checkpoint(state))
    if restored:
        state = train_state.from_checkpoint(restored[0])
    start, total = int(state.step), last_step(int(state.step), config)
    log = TrainingLog(
        workdir,
        start,
        total,
        config.training.batch_size,
        rate=functools.partial(train_state.learning_rate, config.optim),
        skipped_in_a_row=MOST_SKIPPED if config.training.on_nonfinite == "skip" else 0,
    )
    with log:
        if reason:
            log.say(reason)
        if restored:
            log.say(f"continuing from {restored[1]}{_remark(start, total, config)}")
        steps = compile_steps(experiment, optimizer, rollbacks=rollbacks.number)
        return _run(experiment, steps, state, total, checkpoints, log, preemption)


def last_step(start: int, config: Config) -> int:
    """Return the step at which training ends; imported states may start at any step."""
    per_call = config.training.n_jitted_steps
    return start + (config.training.n_iters - start) // per_call * per_call


def _remark(start: int, total: int, config: Config) -> str:
    if start < total:
        return ""
    return f": nothing left to do, training.n_iters = {config.training.n_iters} is reached"


def _run(
    experiment: Experiment,
    steps: Step,
    state: TrainState,
    total: int,
    checkpoints: Checkpoints,
    log: TrainingLog,
    preemption: sharding.Preemption,
) -> TrainState:
    """Train until step `total` or a signal; return the last state, which is then saved."""
    settings, start = experiment.config.training, int(state.step)
    per_call = settings.n_jitted_steps
    batches = _batches(experiment, start // per_call)
    note = factory.attention_note(experiment.config)
    if note:
        log.say(f"note: {note}")
    for step in range(start + per_call, total + 1, per_call):
        compiling = progress.waiting("compiling the training step")
        with compiling if step == start + per_call else contextlib.nullcontext():
            state, metrics = steps(state, sharding.shard(experiment.mesh, next(batches), axis=1))
            log.collect(step, metrics)
        stopped = preemption.reached(metrics["loss"])
        due = {name: _is_due(step, settings[name], per_call, total) for name in FREQUENCIES}
        if stopped or any(due.values()):
            log.check()
            _check_state(state, log)
        if due["log_freq"]:
            log.training()
        note = train_state.initial_share_note(experiment.config.model, step)
        if note and due["eval_freq"]:
            log.say(f"note: {note}")
        if due["eval_freq"] and not stopped:
            with progress.waiting("computing the held-out loss"):
                held_out = held_out_losses(experiment, state.ema)
            log.held_out(*held_out)
        _save(checkpoints, state, step, due, stopped, experiment.config)
        if stopped:
            if not jax.process_index():
                reason = preemption.signal.name if preemption.signal else "another process's signal"
                print(
                    f"step {step}: stopped by {reason}; the state is saved, and the same command "
                    "continues from it.",
                    flush=True,
                )
            break
        if due["snapshot_freq"] and settings.snapshot_sampling:
            _show_samples(experiment, state.ema, log)
    return state


def _check_state(state: TrainState, log: TrainingLog) -> None:
    """Raise NotFiniteError if a part of the state is not finite."""
    parts = {
        "parameters": state.params,
        "moving average": (state.ema, state.averages),
        "optimizer state": state.opt_state,
    }
    bad = [name for name, part in parts.items() if not train_state.all_finite(part)]
    if bad:
        raise log.not_finite(log.step, f"{' and '.join(bad)} are not finite, and {log.latest}")


def _show_samples(experiment: Experiment, ema: Params, log: TrainingLog) -> None:
    """Log a picture of samples; a warning if they are not finite or the sampler is unstable."""
    try:
        images = experiment.sample_images(ema, 0, GRID).x
    except InputError as error:
        log.say(f"warning: no picture of samples: {error}")
    else:
        log.samples(datasets.image_grid(np.asarray(images)))


def _batches(experiment: Experiment, first: int) -> Iterator[Batch]:
    """Return the batches of the calls from number `first` on."""
    settings = experiment.config.training
    return experiment.batches(
        experiment.train,
        settings.batch_size,
        steps=settings.n_jitted_steps,
        labelled=experiment.labelled,
    ).iterate(first)


def _is_due(step: int, frequency: int, per_call: int, total: int) -> bool:
    """Return whether a multiple of `frequency` was reached in the last call, or the end."""
    return step == total or step % frequency < per_call


def _save(
    checkpoints: Checkpoints,
    state: TrainState,
    step: int,
    due: dict[str, bool],
    stopped: bool,
    config: Config,
) -> None:
    """Save the backup and the snapshot that are due."""
    frequency, per_call = config.training.snapshot_freq, config.training.n_jitted_steps
    targets = []
    if due["snapshot_freq_for_preemption"] or stopped:
        targets.append((BACKUPS, step))
    if due["snapshot_freq"]:
        # The last snapshot may come early.
        targets.append((SNAPSHOTS, (step + frequency - per_call) // frequency))
    for folder, number in targets:
        trees = train_state.to_checkpoint(state)
        checkpoints.save(folder, number, trees, step=step, config=config.to_dict())


def held_out_losses(experiment: Experiment, ema: Params) -> tuple[np.ndarray, float, np.ndarray]:
    """Return the losses of test images, the standard error of their mean, and sums by noise level.

    The images, all or MOST_HELD_OUT of them, and their noise are the same in every call, so that
    successive values can be compared. The last array holds sums and counts (2, levels).
    """
    size, images = experiment.config.training.batch_size, experiment.test
    count = min(len(images), MOST_HELD_OUT)
    chosen = np.linspace(0, len(images) - 1, count).round().astype(int)
    parts = []
    for first in range(0, count, size):
        indices = chosen[np.arange(first, first + size) % count]
        batch = experiment.rows(images.batch(indices, labelled=experiment.labelled))
        key = jax.random.fold_in(experiment.key("loss"), first)
        found = sharding.fetch(experiment.held_out_loss(ema, batch, key))
        parts.append([each[: count - first] for each in found])  # The rest fills up the batch.
    per_image, t = (np.concatenate(each) for each in zip(*parts))
    levels = losses.by_noise_level(per_image, t, experiment.sde)
    return per_image, losses.mean_stderr(per_image, t), np.stack(levels)
