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
from configs.default import Config
from configs.folders import owned
from datasets import Batch
from errors import InputError, NotFiniteError
from models.building import Params
from runs import progress
from runs.checkpoints import BACKUPS, SNAPSHOTS, Checkpoints
from runs.training_log import TrainingLog
from training import state as states
from training.state import TrainState
from training.step import FREQUENCIES, Job, compile_steps

MOST_HELD_OUT = 1000  # images of a held-out loss
MOST_SKIPPED = 9  # steps in a row that training.on_nonfinite = "skip" accepts


def train_job(job: Job, workdir: str | Path, kind: str = "training") -> TrainState:
    """Train in `workdir`, or continue; return the last state. `kind` is in `configs.folders`.

    SIGTERM and SIGHUP save the state and return it early, SIGINT raises KeyboardInterrupt. What is
    not finite is never saved; settings.on_nonfinite states what follows it. Raises NotFiniteError,
    and InputError for a workdir of another experiment or one that another process trains in.
    """
    experiment = job.experiment
    _ = experiment.train, experiment.test  # Missing images fail before anything is written.
    with (
        owned(workdir, experiment.config, kind),
        sharding.Preemption(experiment.mesh) as preemption,
    ):
        rollbacks = states.read_rollbacks(workdir)  # Their noise remains if the policy changes.
        checkpoints, reason, state = Checkpoints(workdir, create=True), "", None
        with contextlib.closing(checkpoints):
            while state is None:
                try:
                    state = _continue(job, workdir, checkpoints, preemption, rollbacks, reason)
                except NotFiniteError as error:
                    following = rollbacks.next(error.step)
                    if job.settings.on_nonfinite != "rollback" or following is None:
                        raise
                    rollbacks, reason = following, f"rollback {following.number}: {error.summary}"
                    # Another order would make a killed run go back to another checkpoint.
                    checkpoints.wait()
                    rollbacks.write(workdir)
    if preemption.signal == signal.SIGINT:
        raise KeyboardInterrupt
    return state


def _continue(
    job: Job,
    workdir: str | Path,
    checkpoints: Checkpoints,
    preemption: sharding.Preemption,
    rollbacks: states.Rollbacks,
    reason: str,
) -> TrainState:
    """Train from the newest checkpoint, or from the start; log the `reason` of a rollback."""
    with progress.waiting("initializing the network, or reading a checkpoint"):
        state = job.initial_state()
        restored = checkpoints.restore_latest(states.to_checkpoint(state))
    if restored:
        state = states.from_checkpoint(restored[0])
    with _start_log(job, workdir, int(state.step)) as log:
        if reason:
            log.say(reason)
        if restored:
            log.say(f"continuing from {restored[1]}")
        return _run(job, state, checkpoints, log, preemption, rollbacks.number)


def _start_log(job: Job, workdir: str | Path, start: int) -> TrainingLog:
    settings = job.settings
    total = last_step(start, settings.n_iters, settings.n_jitted_steps)
    most_skipped = MOST_SKIPPED if settings.on_nonfinite == "skip" else 0
    return TrainingLog(workdir, start, total, settings.batch_size, job.rate, most_skipped)


def last_step(start: int, n_iters: int, per_call: int) -> int:
    """Return the step at which training ends; imported states may start at any step."""
    return start + (n_iters - start) // per_call * per_call


def _run(
    job: Job,
    state: TrainState,
    checkpoints: Checkpoints,
    log: TrainingLog,
    preemption: sharding.Preemption,
    rollbacks: int,
) -> TrainState:
    """Train until the last step or a signal; return the last state, which is then saved."""
    start, settings, per_call = log.step, job.settings, job.settings.n_jitted_steps
    total = start if log.stalled(settings.patience) else log.total
    if start >= total > 0:
        log.say(f"nothing left to do: n_iters = {settings.n_iters} or patience is reached")
    steps, batches = compile_steps(job, rollbacks), _batches(job, start // per_call)
    for step in range(start + per_call, total + 1, per_call):
        compiling = progress.waiting("compiling the training step")
        with compiling if step == start + per_call else contextlib.nullcontext():
            batch = sharding.shard(job.experiment.mesh, next(batches), axis=1)
            state, metrics = steps(state, batch)
            log.collect(step, metrics)
        stopped = preemption.reached(metrics["loss"])
        due = due_after(step, total, settings)
        if stopped or due:
            log.check()
            check_state(state, log)
        if "log_freq" in due:
            log.training()
        if "eval_freq" in due:
            _evaluate(job, state, log, stopped=stopped)
            if log.stalled(settings.patience):
                due.update(FREQUENCIES)
                total = step
        if stopped:
            due.add("snapshot_freq_for_preemption")
        _save(job, checkpoints, state, step, due)
        if stopped:
            if not jax.process_index():
                by = preemption.signal.name if preemption.signal else "another process's signal"
                saved = "the state is saved, and the same command continues from it."
                print(f"step {step}: stopped by {by}; {saved}", flush=True)
            break
        if "snapshot_freq" in due and job.samples:
            show_samples(job.samples, state.ema, log)
        if step == total:  # Patience may end training early.
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


def due_after(step: int, total: int, settings: Config) -> set[str]:
    """Return the FREQUENCIES of which a multiple was reached in the last call; all at the end."""
    steps = settings.n_jitted_steps
    return {name for name in FREQUENCIES if step == total or step % settings[name] < steps}


def check_state(state: TrainState, log: TrainingLog) -> None:
    """Raise NotFiniteError if a part of the state is not finite."""
    parts = {
        "parameters": state.params,
        "moving average": (state.ema, state.averages),
        "optimizer state": state.opt_state,
    }
    bad = [name for name, part in parts.items() if not states.all_finite(part)]
    if bad:
        raise log.not_finite(log.step, f"{' and '.join(bad)} are not finite, and {log.latest}")


def show_samples(samples: Callable[[Params], Image.Image], ema: Params, log: TrainingLog) -> None:
    """Log a picture of samples; a warning if they are not finite or the sampler is unstable."""
    try:
        picture = samples(ema)
    except InputError as error:
        log.say(f"warning: no picture of samples: {error}")
    else:
        log.samples(picture)


def _batches(job: Job, first: int) -> Iterator[Batch]:
    """Return the batches of the calls from number `first` on."""
    steps, size = job.settings.n_jitted_steps, job.settings.batch_size
    data = job.experiment.train
    return job.experiment.batches(data, size, steps=steps, labelled=job.labelled).iterate(first)


def _save(job: Job, checkpoints: Checkpoints, state: TrainState, step: int, due: set[str]) -> None:
    """Save the backup and the snapshot that are due."""
    frequency, per_call = job.settings.snapshot_freq, job.settings.n_jitted_steps
    targets = []
    if "snapshot_freq_for_preemption" in due:
        targets.append((BACKUPS, step))
    if "snapshot_freq" in due:  # The last snapshot may come early.
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
