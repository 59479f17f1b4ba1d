"""Training: the state, one step, and the loop around it."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tensorboardX
from jax import Array, lax
from tqdm import tqdm

import datasets
import losses
import sharding
from auxiliary import classification
from checkpoints import BACKUPS, SNAPSHOTS, Checkpoints
from configs.default import Config
from datasets import Batch
from errors import InputError
from experiment import Experiment
from models.building import Params
from models.layers import Rngs
from train_state import (
    TrainState,
    from_checkpoint,
    global_norm,
    init_state,
    make_optimizer,
    state_shardings,
    to_checkpoint,
)
from workdir import claim

Metrics = dict[str, Array]

GRID = 64  # images in the sample grid of a snapshot
FREQUENCIES = ("log_freq", "eval_freq", "snapshot_freq", "snapshot_freq_for_preemption")
MAY_CHANGE = (  # Fields that may differ when a run goes on in its workdir.
    "data.path",
    "data.tfrecords_path",
    "eval.",
    "sampling.",
    "guidance.",
    "classifier.",
    "training.n_iters",
    "training.log_freq",
    "training.eval_freq",
    "training.snapshot_freq_for_preemption",
    "training.snapshot_sampling",
    "training.shard_params",
    "training.remat",
    "training.accumulate",
)


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    experiment: Experiment,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, Metrics]:
    """One update on B images; its random numbers are functions of the seed and of state.step."""
    key = jax.random.fold_in(experiment.key("train"), state.step)
    data_key, noise_key, dropout_key = jax.random.split(key, 3)
    sde, config = experiment.sde, experiment.config
    x = experiment.prepare(data_key, batch.pixels, flip=config.data.random_flip)
    classes = experiment.hide_classes(
        jax.random.fold_in(key, 3), batch.labels
    )  # 0 .. 2 are the keys split off above.
    t, z = losses.draw(noise_key, sde, x, experiment.num_scales, **experiment.draw_options)

    def loss(params: Params, part: Part) -> tuple[Array, Array]:
        score = experiment.score(params, Rngs(part.key), part.classes)
        per_image = losses.denoising_score_matching(
            score, sde, part.x, part.t, part.z, **experiment.loss_options
        )
        return per_image.mean(), per_image

    whole = Part(dropout_key, x, t, z, classes)
    unroll = sharding.on_cpu(experiment.mesh)  # See `compile_steps`.
    (value, per_image), grads = value_and_grad(
        loss, state.params, whole, config.training.accumulate, unroll=unroll
    )
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = optax.incremental_update(params, state.ema, 1 - config.model.ema_rate)
    metrics = {"loss": value, "grad_norm": global_norm(grads)}
    metrics["levels"] = jnp.stack(losses.by_noise_level(per_image, t, sde))
    return TrainState(state.step + 1, params, ema, opt_state), metrics


class Part(NamedTuple):
    """Part of a batch, or the whole: a key for dropout, images x, times t and noise z of the loss, and classes told."""

    key: Array
    x: Array
    t: Array
    z: Array
    classes: Array | None


def value_and_grad(
    loss: Callable[[Params, Part], tuple[Array, Array]],
    params: Params,
    whole: Part,
    count: int,
    *,
    unroll: bool = False,
) -> tuple[tuple[Array, Array], Params]:
    """The loss of a batch, that of every image, and the gradient, from `count` parts, one after the other.

    The parts are interleaved, so that each has images of every device. But for dropout, they change rounding only. With
    `unroll` they are no loop.
    """
    of_part = jax.value_and_grad(loss, has_aux=True)
    if count == 1:
        return of_part(params, whole)
    key, *arrays = whole
    parts = jax.tree.map(lambda a: jnp.moveaxis(a.reshape(-1, count, *a.shape[1:]), 1, 0), arrays)

    def add(total: tuple[Array, Params], part: Part) -> tuple[tuple[Array, Params], Array]:
        (value, per_image), grads = of_part(params, part)
        return jax.tree.map(lambda a, b: a + b / count, total, (value, grads)), per_image

    zeros = jnp.float32(0.0), jax.tree.map(jnp.zeros_like, params)
    (value, grads), per_image = lax.scan(
        add, zeros, Part(jax.random.split(key, count), *parts), unroll=unroll
    )
    return (value, jnp.moveaxis(per_image, 0, 1).reshape(-1)), grads


def jit_step(
    experiment: Experiment, optimizer: optax.GradientTransformation
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """`train_step`, jitted over the mesh; the state that it is given is used up."""
    whole, split = sharding.replicated(experiment.mesh), sharding.along_axis(experiment.mesh)
    state = state_shardings(experiment, optimizer)
    step = functools.partial(train_step, experiment=experiment, optimizer=optimizer)
    return jax.jit(
        step, in_shardings=(state, split), out_shardings=(state, whole), donate_argnums=0
    )


def compile_steps(
    experiment: Experiment, optimizer: optax.GradientTransformation, *, scan: bool | None = None
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """`train_step` along the first axis of batches (steps, B, ...), jitted over the mesh.

    On accelerators the steps are one `lax.scan`. XLA's CPU backend runs weight gradients of convolutions twenty times
    slower inside a loop (jax issue 12868), so there, unless `scan` says otherwise, the loop is Python's.
    """
    one = jit_step(experiment, optimizer)
    if scan if scan is not None else not sharding.on_cpu(experiment.mesh):
        return jax.jit(functools.partial(lax.scan, one), donate_argnums=0)

    def steps(state: TrainState, batches: Batch) -> tuple[TrainState, Metrics]:
        metrics = []
        for i in range(len(batches.pixels)):
            batch = jax.tree.map(lambda leaf, i=i: leaf[i], batches)
            state, each = one(state, jax.device_put(batch, sharding.along_axis(experiment.mesh)))
            metrics.append(each)
        return state, jax.tree.map(lambda *leaves: jnp.stack(leaves), *metrics)

    return steps


def train(config: Config, workdir: str) -> TrainState:
    """Trains, or goes on training, the experiment `config` in `workdir`; returns the last state.

    On SIGTERM it saves the state and returns it early. Raises InputError for a bad config, a workdir of another
    experiment, and a loss that is not finite.
    """
    experiment = Experiment(config)
    config, optimizer = experiment.config, make_optimizer(experiment.config.optim)
    settings, per_call = config.training, config.training.n_jitted_steps
    train, _ = (
        experiment.train,
        experiment.test,
    )  # Read before anything is written, lest they cannot be.
    if settings.snapshot_sampling:
        classification.provide(experiment, workdir)
    claim(workdir, config, is_fixed)
    checkpoints = Checkpoints(workdir, create=True)
    state = init_state(experiment, optimizer)
    if restored := checkpoints.restore_latest(to_checkpoint(state)):
        state = from_checkpoint(restored[0])
    start = int(state.step)
    total = (
        start + (settings.n_iters - start) // per_call * per_call
    )  # Imported states may start at any step.
    steps = compile_steps(experiment, optimizer)
    batches = datasets.Batches(
        train, settings.batch_size, config.seed, per_call, experiment.labelled
    )
    batches = batches.iterate(start // per_call)
    reporter, stop = Reporter(workdir, start, total, settings.batch_size), False
    with (
        contextlib.closing(checkpoints),
        reporter as report,
        sharding.Preemption(experiment.mesh) as preemption,
    ):
        if restored:
            left = (
                ""
                if start < total
                else f": nothing left to do, training.n_iters = {settings.n_iters} is reached"
            )
            report.say(f"going on from {restored[1]}{left}")
        for step in range(start + per_call, total + 1, per_call):
            state, metrics = steps(state, sharding.shard(experiment.mesh, next(batches), axis=1))
            report.collect(step, metrics)
            stop = preemption.reached(metrics["loss"])
            due = {name: step == total or step % settings[name] < per_call for name in FREQUENCIES}
            snapshot, backup = due["snapshot_freq"], due["snapshot_freq_for_preemption"] or stop
            if due["log_freq"]:
                report.training()
            if snapshot or backup:
                report.check()  # Raises if a loss is not finite; nothing is saved then.
            if due["eval_freq"] and not stop:
                report.held_out(*held_out_batch(experiment, state.ema, step))
            kept = (
                step + settings.snapshot_freq - per_call
            ) // settings.snapshot_freq  # The last one may come early.
            for folder, number in [(BACKUPS, step)] * backup + [(SNAPSHOTS, kept)] * snapshot:
                checkpoints.save(
                    folder, number, to_checkpoint(state), step=step, config=config.to_dict()
                )
            if stop:
                break
            if snapshot and settings.snapshot_sampling:
                report.samples(experiment.sample_images(state.ema, 0, GRID).x)
    if stop and not jax.process_index():
        print(
            f"step {step}: stopped by SIGTERM; the state is saved, and the same command goes on from it.",
            flush=True,
        )
    return state


def is_fixed(field: str) -> bool:
    """Whether a config field must stay as it is in a workdir."""
    return not field.startswith(MAY_CHANGE)


def held_out_batch(experiment: Experiment, ema: Params, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Losses of one batch of test images, and their sums and counts by noise level; all follow from the step."""
    rounds = datasets.rounds(experiment.test, experiment.config.training.batch_size)
    indices, count = rounds[step % len(rounds)]
    batch = experiment.rows(experiment.test.batch(indices, labelled=experiment.labelled))
    per_image, t = sharding.fetch(
        experiment.held_out_loss(ema, batch, jax.random.fold_in(experiment.key("loss"), step))
    )
    return per_image[:count], np.stack(
        losses.by_noise_level(per_image[:count], t[:count], experiment.sde)
    )


class Reporter:
    """Tells how training goes: console lines, a progress bar on terminals, TensorBoard events and sample pictures."""

    def __init__(self, workdir: str, start: int, total: int, batch_size: int) -> None:
        self.step, self.total, self.batch_size, self.workdir = (
            start,
            total,
            batch_size,
            Path(workdir),
        )
        self.leads = jax.process_index() == 0
        self.pending: list[Metrics] = []  # on the device
        self.fetched: list[dict[str, np.ndarray]] = []  # checked, but not reported yet
        self.since: tuple[int, float] | None = None  # step and time from which the speed is counted

    def __enter__(self) -> Reporter:
        options = {"purge_step": self.step + 1} if self.step else {}
        self.events = tensorboardX.SummaryWriter(
            str(self.workdir / "tensorboard"), write_to_disk=self.leads, **options
        )
        self.bar = tqdm(
            total=self.total, initial=self.step, unit="step", disable=None if self.leads else True
        )
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.close()
        self.events.close()

    def collect(self, step: int, metrics: Metrics) -> None:
        """Notes the metrics of the steps up to `step`, without waiting for them."""
        if self.since is None:  # The clock starts when compilation is over.
            jax.block_until_ready(metrics)
            self.since = step, time.monotonic()
        self.pending.append(metrics)
        self.bar.update(step - self.step)
        self.step = step

    def check(self) -> None:
        """Waits for the steps so far. Raises InputError, with the number of the step, if a loss is not finite."""
        fetched = jax.device_get(self.pending)
        self.pending.clear()
        self.fetched.extend(fetched)
        loss, norm = (
            np.concatenate([m[name] for m in fetched] or [[]]) for name in ("loss", "grad_norm")
        )
        finite = np.isfinite(loss) & np.isfinite(norm)
        if not finite.all():
            bad = int(np.argmin(finite))
            raise InputError(
                f"Step {self.step - len(loss) + bad + 1}: the loss is {loss[bad]} and the gradient norm {norm[bad]}. "
                f"Training stops; the last good checkpoint is kept. A lower optim.lr or optim.grad_clip may help."
            )

    def training(self) -> None:
        """Reports the mean over the steps since the last report, after `check`."""
        self.check()
        loss, norm = (
            np.concatenate([m[name] for m in self.fetched]).mean() for name in ("loss", "grad_norm")
        )
        levels = np.sum([m["levels"].sum(0) for m in self.fetched], 0)
        self.fetched.clear()
        then, now = self.since, time.monotonic()
        self.since = self.step, now
        rate = (self.step - then[0]) / (now - then[1])
        self._scalars(
            "training", loss=loss, grad_norm=norm, images_per_second=rate * self.batch_size
        )
        self._levels("training", *levels)
        eta = (
            time.strftime("%H:%M:%S", time.gmtime((self.total - self.step) / rate))
            if rate
            else "unknown"
        )
        self.say(f"loss {loss:.5f}, {rate * self.batch_size:.0f} images/s, ETA {eta}")

    def held_out(self, losses: np.ndarray, levels: np.ndarray) -> None:
        """Reports the loss of held-out images under the EMA parameters."""
        self._scalars("held_out", loss=losses.mean())
        self._levels("held_out", *levels)
        self.say(f"held-out loss {losses.mean():.5f} on {len(losses)} images")

    def samples(self, images: np.ndarray) -> None:
        """Writes a grid of sampled images (N, H, W, C) uint8 to samples/step_N.png and to TensorBoard."""
        grid = datasets.image_grid(images)
        path = self.workdir / "samples" / f"step_{self.step}.png"
        if self.leads:
            path.parent.mkdir(exist_ok=True)
            grid.save(path)
        self.events.add_image(
            "samples", np.asarray(grid.convert("RGB")), self.step, dataformats="HWC"
        )
        self.say(f"samples in {path}")

    def _scalars(self, group: str, **values: float) -> None:
        for name, value in values.items():
            self.events.add_scalar(f"{group}/{name}", value, self.step)

    def _levels(self, group: str, sums: np.ndarray, counts: np.ndarray) -> None:
        for i in np.flatnonzero(counts):
            self.events.add_scalar(
                f"{group}_loss_by_t/{(i + 0.5) / len(sums):.2f}", sums[i] / counts[i], self.step
            )

    def say(self, text: str) -> None:
        """Writes a line to the console, beside the progress bar."""
        if self.leads:
            self.bar.write(f"step {self.step}: {text}")
