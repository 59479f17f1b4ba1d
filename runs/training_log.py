"""The log of a training run: console, TensorBoard, sample pictures and WORKDIR/metrics.jsonl.

Each line of metrics.jsonl is a JSON object, the training step and scalars measured there:
{"step": 100, "training/loss": 0.5, ...} or {"step": 100, "held_out/loss": 0.4}.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from PIL import Image
from tqdm import tqdm

from errors import NotFiniteError
from readers.files import MAX_STEP, NUMBER, mismatch, read_lines
from runs import write_picture, write_text, writing

FILE_NAME = "metrics.jsonl"


class TrainingLog:
    """Log the progress of training; a context manager. Only process 0 prints and writes files.

    `workdir` receives tensorboard/, samples/ and metrics.jsonl. The run starts at the step `start`
    and ends at `total`; entries of later steps, left by a run that was killed, are removed.
    `batch_size` is for the speed, and `rate`, the learning rate after a number of updates, for
    errors. Training skips up to `most_skipped` steps in a row with values that are not finite.
    """

    def __init__(
        self,
        workdir: str | Path,
        start: int,
        total: int,
        batch_size: int,
        rate: Callable[[int], Any] | None = None,
        most_skipped: int = 0,
    ) -> None:
        self.workdir, self.step, self.total = Path(workdir), start, total
        self.batch_size, self.rate, self.most_skipped = batch_size, rate, most_skipped
        self.is_writer = jax.process_index() == 0
        self.pending: list[dict[str, Array]] = []  # on the device
        self.fetched: list[dict[str, np.ndarray]] = []  # finite, not yet reported
        self.skipped = 0  # the latest steps, one after the other
        self.latest = ""  # loss and gradient norm of the last step
        self.timed_from: tuple[int, float] | None = None  # step and time, to measure the speed
        curve = read_curves(self.workdir / FILE_NAME).get("held_out/loss")
        self.losses = [] if curve is None else curve.values[curve.steps <= start].tolist()

    def __enter__(self) -> TrainingLog:
        # Imported here, since it imports PyTorch where that is installed, which takes seconds.
        import tensorboardX

        self.events = tensorboardX.SummaryWriter(
            str(self.workdir / "tensorboard"),
            purge_step=self.step + 1 if self.step else None,
            write_to_disk=self.is_writer,
        )
        path = self.workdir / FILE_NAME
        remove_later_steps(path, self.step)
        with writing(path):
            self.entries = open(path if self.is_writer else os.devnull, "a", encoding="utf-8")
        hidden = None if self.is_writer else True  # None: hidden unless on a terminal
        self.bar = tqdm(total=self.total, initial=self.step, unit="step", disable=hidden)
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.close()
        with writing(self.workdir / FILE_NAME):
            self.entries.close()
        with writing(self.workdir / "tensorboard"):
            self.events.close()

    def collect(self, step: int, metrics: dict[str, Array]) -> None:
        """Keep metrics of the steps up to `step`, without waiting for the device.

        They are `loss` and `grad_norm` (steps,), and `levels` (steps, 2, levels), sums and counts.
        """
        if self.timed_from is None:  # Compilation does not count towards the speed.
            jax.block_until_ready(metrics)
            self.timed_from = step, time.monotonic()
        self.pending.append(metrics)
        self.bar.update(step - self.step)
        self.step = step

    def check(self) -> None:
        """Wait for the collected steps; NotFiniteError for values that may not be skipped."""
        fetched = jax.device_get(self.pending)
        self.pending.clear()
        if not fetched:
            return
        metrics = {name: np.concatenate([each[name] for each in fetched]) for name in fetched[0]}
        loss, norm = metrics["loss"], metrics["grad_norm"]
        finite = np.isfinite(loss) & np.isfinite(norm)
        self.fetched.append({name: values[finite] for name, values in metrics.items()})
        steps = range(self.step - len(loss) + 1, self.step + 1)
        for step, *values, is_finite in zip(steps, loss, norm, finite, strict=True):
            self.latest = "the loss is {:.6g} and the gradient norm {:.6g}".format(*values)
            self.skipped = 0 if is_finite else self.skipped + 1
            if self.skipped > self.most_skipped:
                times = f", in {self.skipped} steps in a row" if self.most_skipped else ""
                raise self.not_finite(step, f"{self.latest}{times}")
        if not finite.all():
            skipped = [str(step) for step, is_finite in zip(steps, finite) if not is_finite]
            self.say(f"steps skipped, as not finite: {len(skipped)} ({', '.join(skipped)})")

    def not_finite(self, step: int, problem: str) -> NotFiniteError:
        """Return the error for a problem at a step."""
        rate = f" at learning rate {float(self.rate(step - 1)):.3g}" if self.rate else ""
        return NotFiniteError(
            f"Step {step}: {problem}{rate}; they must be finite.",
            "Nothing more is saved; the last good checkpoint is kept. Continue with another "
            "training.on_nonfinite (stop, skip or rollback), or, in another --workdir, lower "
            "optim.lr or optim.grad_clip.",
            step,
        )

    def training(self) -> None:
        """Call `check`, then report the means over the steps since the last report."""
        self.check()
        if self.timed_from is None:
            raise ValueError("There are no steps to report: call `collect` first.")
        loss = np.concatenate([metrics["loss"] for metrics in self.fetched])
        norm = np.concatenate([metrics["grad_norm"] for metrics in self.fetched])
        sums, counts = np.sum([metrics["levels"].sum(0) for metrics in self.fetched], 0)
        self.fetched.clear()
        then, now = self.timed_from, time.monotonic()
        self.timed_from = self.step, now
        if not len(loss):
            return  # All of them were skipped, which `check` has reported.
        rate = (self.step - then[0]) / (now - then[1])
        speed = rate * self.batch_size
        self._scalars("training", loss=loss.mean(), grad_norm=norm.mean(), images_per_second=speed)
        self._levels("training", sums, counts)
        left = tqdm.format_interval((self.total - self.step) / rate) if rate else "unknown"
        self.say(f"loss {loss.mean():.5f}, {speed:.0f} images/s, ETA {left}")

    def held_out(self, losses: np.ndarray, stderr: float, levels: np.ndarray) -> None:
        """Report what `training.held_out_losses` returns."""
        loss = losses.mean()
        self.losses.append(float(loss))
        self._scalars("held_out", loss=loss, loss_stderr=stderr)
        self._levels("held_out", *levels)
        error = f" +- {stderr:.5f}" if math.isfinite(stderr) else ""
        self.say(
            f"held-out loss {loss:.5f}{error} of the EMA parameters, without dropout, "
            f"on {len(losses)} images"
        )

    def stalled(self, patience: int) -> bool:
        """Return whether the last `patience` > 0 held-out losses were above an earlier one."""
        return 0 < patience < len(self.losses) - int(np.argmin(self.losses or [0]))

    def samples(self, picture: Image.Image) -> None:
        """Write a picture of samples to samples/step_N.png and to TensorBoard."""
        path = self.workdir / "samples" / f"step_{self.step}.png"
        if self.is_writer:
            path.parent.mkdir(exist_ok=True)
            write_picture(path, picture)
        pixels = np.asarray(picture.convert("RGB"))
        self.events.add_image("samples", pixels, self.step, dataformats="HWC")
        self.say(f"samples in {path}")

    def say(self, text: str) -> None:
        """Print a line above the progress bar."""
        if self.is_writer:
            self.bar.write(f"step {self.step}: {text}")

    def _scalars(self, group: str, **values: float) -> None:
        """Write scalars to TensorBoard, and as one line of metrics.jsonl."""
        entry: dict[str, float | None] = {"step": self.step}
        for name, value in values.items():
            self.events.add_scalar(f"{group}/{name}", value, self.step)
            entry[f"{group}/{name}"] = float(value) if math.isfinite(value) else None
        with writing(self.workdir / FILE_NAME):
            self.entries.write(json.dumps(entry) + "\n")
            self.entries.flush()

    def _levels(self, group: str, sums: np.ndarray, counts: np.ndarray) -> None:
        """Write the mean loss of each noise level that occurred, named after its middle."""
        for i in np.flatnonzero(counts).tolist():
            name = f"{group}_loss_by_t/{(i + 0.5) / len(sums):.2f}"
            self.events.add_scalar(name, sums[i] / counts[i], self.step)


class Curve(NamedTuple):
    """Values (N,) of a scalar at N increasing steps (N,)."""

    steps: np.ndarray
    values: np.ndarray


def read_curves(path: Path) -> dict[str, Curve]:
    """Return the curves of a metrics.jsonl by name, with the last of several values of a step."""
    points: dict[str, dict[int, float]] = {}
    for entry in _entries(path):
        step = entry.pop("step")
        for name, value in entry.items():
            if not mismatch(value, NUMBER) and math.isfinite(value):
                points.setdefault(name, {})[step] = value
    return {
        name: Curve(np.array(sorted(values)), np.array([values[s] for s in sorted(values)]))
        for name, values in points.items()
    }


def best_snapshot(workdir: str | Path, frequency: int) -> int | None:
    """Return the number of the snapshot, each `frequency` steps, of the lowest held-out loss."""
    losses = read_curves(Path(workdir) / FILE_NAME).get("held_out/loss")
    if losses is None:
        return None
    return -(-int(losses.steps[np.argmin(losses.values)]) // frequency)


def remove_later_steps(path: Path, step: int) -> None:
    """Keep only the lines of a metrics.jsonl with a step up to `step`; drop damaged lines."""
    if os.path.lexists(path):  # A link is replaced by a file.
        kept = [json.dumps(entry) + "\n" for entry in _entries(path) if entry["step"] <= step]
        write_text(path, "".join(kept))


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a metrics.jsonl; skips damaged ones, which a killed run may leave."""
    for entry in read_lines(path):
        if not mismatch(entry, {"step": int}) and 0 <= entry["step"] <= MAX_STEP:
            yield entry
