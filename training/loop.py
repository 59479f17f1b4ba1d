"""The training loop: checkpoints, the log, held-out losses, and stops by a signal.

A run can be stopped at any time; started again, it ends with the same parameters, bit for bit.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from PIL import Image

import losses
import sharding
from configs.folders import owned
from datasets import Batch
from errors import InputError, NotFiniteError
from models.building import Params
from runs import progress
from runs.checkpoints import BACKUPS, SNAPSHOTS, Checkpoints
from runs.training_log import TrainingLog
from training import state as states
from training.state import Rollbacks, TrainState
from training.step import FREQUENCIES, Job, Step, compile_steps

MOST_HELD_OUT = 1000  # images of a held-out loss
MOST_SKIPPED = 9  # steps in a row that training.on_nonfinite = "skip" accepts


def train_job(job: Job, workdir: str | Path, kind: str = "training") -> TrainState:
    """Train in `workdir`, or continue; return the last state.

    `kind` is in `configs.folders`. A signal saves the state: SIGTERM and SIGHUP return it early,
    SIGINT raises KeyboardInterrupt. Raises InputError for a workdir of another
    experiment or one that another process trains in. settings.on_nonfinite states what follows if a
    loss, a gradient or the state is not finite: NotFiniteError, unless it is corrected. Such a
    state is never saved.
    """
    experiment = job.experiment
    _ = experiment.train, experiment.test  # Missing images fail before anything is written.
    with (
        owned(workdir, experiment.config, kind),
        sharding.Preemption(experiment.mesh) as preemption,
    ):
        state = _train_owned(job, workdir, preemption)
    if preemption.signal == signal.SIGINT:
        raise KeyboardInterrupt
    return state


def _train_owned(job: Job, workdir: str | Path, preemption: sharding.Preemption) -> TrainState:
    """Train, and go back to an earlier state where on_nonfinite asks for it."""
    rolls_back = job.settings.on_nonfinite == "rollback"
    rollbacks = states.read_rollbacks(workdir)  # Their noise remains if the policy changes.
    checkpoints, reason = Checkpoints(workdir, create=True), ""
    with contextlib.closing(checkpoints):
        while True:
            try:
                return _continue(job, workdir, checkpoints, preemption, rollbacks, reason)
            except NotFiniteError as error:
                following = rollbacks.next(error.step) if rolls_back else None
                if following is None:
                    raise
                rollbacks, reason = following, f"rollback {following.number}: {error.summary}"
            # Another order would make a killed run go back to another checkpoint.
            checkpoints.wait()
            rollbacks.write(workdir)


def _continue(
    job: Job,
    workdir: str | Path,
    checkpoints: Checkpoints,
    preemption: sharding.Preemption,
    rollbacks: Rollbacks,
    reason: str,
) -> TrainState:
    """Train from the newest checkpoint, or the initial state; return the last state.

    `reason` is the line that the log shows first, if any.
    """
    with progress.waiting("initializing the network, and reading its newest checkpoint, if any"):
        state = job.initial_state()
        restored = checkpoints.restore_latest(states.to_checkpoint(state))
    if restored:
        state = states.from_checkpoint(restored[0])
    start = int(state.step)
    total = last_step(start, job.settings.n_iters, job.settings.n_jitted_steps)
    log = TrainingLog(
        workdir,
        start,
        total,
        job.settings.batch_size,
        rate=job.rate,
        skipped_in_a_row=MOST_SKIPPED if job.settings.on_nonfinite == "skip" else 0,
    )
    if log.stalled(job.settings.patience):
        total = start
    with log:
        if reason:
            log.say(reason)
        if restored:
            limit = "n_iters" if start >= log.total else "patience"
            done = f": nothing left to do, {limit} = {job.settings[limit]} is reached"
            log.say(f"continuing from {restored[1]}{'' if start < total else done}")
        steps = compile_steps(job, rollbacks=rollbacks.number)
        return _run(job, steps, state, total, checkpoints, log, preemption)


def last_step(start: int, n_iters: int, per_call: int) -> int:
    """Return the step at which training ends; imported states may start at any step."""
    return start + (n_iters - start) // per_call * per_call


def _run(
    job: Job,
    steps: Step,
    state: TrainState,
    total: int,
    checkpoints: Checkpoints,
    log: TrainingLog,
    preemption: sharding.Preemption,
) -> TrainState:
    """Train until step `total` or a signal; return the last state, which is then saved."""
    start, per_call = int(state.step), job.settings.n_jitted_steps
    batches = _batches(job, start // per_call)
    for step in range(start + per_call, total + 1, per_call):
        compiling = progress.waiting("compiling the training step")
        with compiling if step == start + per_call else contextlib.nullcontext():
            batch = sharding.shard(job.experiment.mesh, next(batches), axis=1)
            state, metrics = steps(state, batch)
            log.collect(step, metrics)
        stopped = preemption.reached(metrics["loss"])
        due = {name: _is_due(step, job.settings[name], per_call, total) for name in FREQUENCIES}
        if stopped or any(due.values()):
            log.check()
            _check_state(state, log)
        if due["log_freq"]:
            log.training()
        if due["eval_freq"]:
            _evaluate(job, state, log, stopped=stopped)
        if due["eval_freq"] and log.stalled(job.settings.patience):
            due, total = dict.fromkeys(due, True), step
        _save(job, checkpoints, state, step, due, stopped=stopped)
        if stopped:
            _say_stopped(step, preemption)
            break
        if due["snapshot_freq"] and job.samples:
            _show_samples(job.samples, state.ema, log)
        if step == total:
            break
    return state


def _evaluate(job: Job, state: TrainState, log: TrainingLog, *, stopped: bool) -> None:
    note = job.note(log.step)
    if note:
        log.say(f"note: {note}")
    if not stopped or job.settings.patience:  # A continued run must stop at the same step.
        with progress.waiting("computing the held-out loss"):
            held_out = held_out_losses(job, state.ema)
        log.held_out(*held_out)


def _say_stopped(step: int, preemption: sharding.Preemption) -> None:
    if not jax.process_index():
        reason = preemption.signal.name if preemption.signal else "another process's signal"
        print(
            f"step {step}: stopped by {reason}; the state is saved, and the same command continues "
            "from it.",
            flush=True,
        )


def _check_state(state: TrainState, log: TrainingLog) -> None:
    """Raise NotFiniteError if a part of the state is not finite."""
    parts = {
        "parameters": state.params,
        "moving average": (state.ema, state.averages),
        "optimizer state": state.opt_state,
    }
    bad = [name for name, part in parts.items() if not states.all_finite(part)]
    if bad:
        raise log.not_finite(log.step, f"{' and '.join(bad)} are not finite, and {log.latest}")


def _show_samples(samples: Callable[[Params], Image.Image], ema: Params, log: TrainingLog) -> None:
    """Log a picture of samples; a warning if they are not finite or the sampler is unstable."""
    try:
        picture = samples(ema)
    except InputError as error:
        log.say(f"warning: no picture of samples: {error}")
    else:
        log.samples(picture)


def _batches(job: Job, first: int) -> Iterator[Batch]:
    """Return the batches of the calls from number `first` on."""
    return job.experiment.batches(
        job.experiment.train,
        job.settings.batch_size,
        steps=job.settings.n_jitted_steps,
        labelled=job.labelled,
    ).iterate(first)


def _is_due(step: int, frequency: int, per_call: int, total: int) -> bool:
    """Return whether a multiple of `frequency` was reached in the last call, or the end."""
    return step == total or step % frequency < per_call


def _save(
    job: Job,
    checkpoints: Checkpoints,
    state: TrainState,
    step: int,
    due: dict[str, bool],
    *,
    stopped: bool,
) -> None:
    """Save the backup and the snapshot that are due."""
    frequency, per_call = job.settings.snapshot_freq, job.settings.n_jitted_steps
    targets = []
    if due["snapshot_freq_for_preemption"] or stopped:
        targets.append((BACKUPS, step))
    if due["snapshot_freq"]:
        # The last snapshot may come early.
        targets.append((SNAPSHOTS, (step + frequency - per_call) // frequency))
    for folder, number in targets:
        trees, config = states.to_checkpoint(state), job.experiment.config.to_dict()
        checkpoints.save(folder, number, trees, step=step, config=config)


def held_out_losses(job: Job, ema: Params) -> tuple[np.ndarray, float, np.ndarray]:
    """Return the losses of test images, the standard error of their mean, and sums by noise level.

    The images, all or MOST_HELD_OUT of them, and their noise are the same in every call, so that
    successive values can be compared. The last array holds sums and counts (2, levels).
    """
    experiment, images = job.experiment, job.experiment.test
    size, count = job.settings.batch_size, min(len(images), MOST_HELD_OUT)
    chosen = np.linspace(0, len(images) - 1, count).round().astype(int)
    parts = []
    for first in range(0, count, size):
        indices = chosen[np.arange(first, first + size) % count]
        batch = experiment.rows(images.batch(indices, labelled=job.labelled))
        key = jax.random.fold_in(experiment.key("loss"), first)
        found = sharding.fetch(job.held_out(ema, batch, key))
        parts.append([each[: count - first] for each in found])  # The rest fills up the batch.
    per_image, t = (np.concatenate(each) for each in zip(*parts))
    levels = losses.by_noise_level(per_image, t, experiment.sde)
    return per_image, losses.mean_stderr(per_image, t), np.stack(levels)
