"""Conditional networks beside guided unconditional ones, for inverse problems of digits and emoji.

python -m studies.learned --folder=DIR [--font=FONT] [--write]

Trains a network for each task and one without a condition in DIR, with equal steps and sizes, and
prints the tables of docs/learned_or_guided.md; --write puts them into the page. Results are kept in
DIR, so that a run resumes. FONT is data.path of the emoji.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

import datasets
import score_sde
from api import calibration
from benchmarks.records import Record, Records
from benchmarks.tables import Columns, table
from configs import default_digits_configs, default_emoji_configs
from controllable.operators import Operator
from score_sde import TrainedModel, operators
from studies import common, distances
from studies.common import Estimate, mean
from studies.distances import digits, scale, sliced_distance
from studies.posterior_cases import CALLS
from studies.posterior_own import counted

OPTIONS = {"folder": "", "font": None, "write": False}
NOISE = 0.1  # standard deviation, for images in [-1, 1]
COPIES = 8  # of each training image, with noise of their own
SETTINGS: dict[str, Any] = {
    **{"steps": 2000, "batch_size": 32, "learning_rate": 2e-3, "ema_rate": 0.998},
    **{"nf": 16, "ch_mult": (1, 2), "attn_resolutions": (), "held_out": 0.01},
}
SETS = "digits", "emoji"
IMAGES = 40  # held-out ones that are restored
EACH = 4  # samples given each measurement and seed
DRAWN_STEPS = 20
ITERATIONS = 5  # at most, of conjugate gradients in a step


class Data(NamedTuple):
    """Images, uint8 (N, H, W, C), and their classes, if any."""

    train: np.ndarray
    test: np.ndarray
    train_labels: np.ndarray | None
    test_labels: np.ndarray | None


@functools.cache
def load(name: str, font: str | None) -> Data:
    """Return the "digits", or the "emoji" of 8x8 pixels."""
    if name == "digits":
        config = default_digits_configs.get_default_configs().data
    else:
        config = default_emoji_configs.get_default_configs().data
        config.update(image_size=8, path=font or "")
    splits = [datasets.load(config, split) for split in ("train", "test")]
    pixels = [np.asarray(each.pixels[:]) for each in splits]
    labels = [None if each.labels is None else np.asarray(each.labels) for each in splits]
    return Data(*(map(digits, pixels) if name == "digits" else pixels), *labels)


def tasks(shape: tuple[int, ...]) -> dict[str, Operator]:
    found = {"super-resolution by 2": operators.block_mean(shape, 2)}
    if shape[-1] > 1:
        return found | {"colorization": operators.channel_mean(shape)}
    return found | {"inpainting, a box": operators.mask(operators.box(shape, 0.5))}


def observe(images: np.ndarray, operator: Operator, seed: int) -> np.ndarray:
    """Return measurements, with noise, of uint8 images (N, H, W, C)."""
    z: Any = np.random.default_rng(seed).normal(size=images.shape).astype(np.float32)
    return np.asarray(operator.observe(np.asarray(scale(images), np.float32), z, NOISE))


def as_image(operator: Operator, y: Any) -> np.ndarray:
    """Return measurements as images (N, H, W, C), the form of a condition."""
    return np.asarray(operator.pseudo_inverse(y), np.float32)


def network(
    folder: Path, data: Data, operator: Operator | None = None, **settings: Any
) -> tuple[TrainedModel, float]:
    """Train on images given measurements or, with class_dropout, classes, unless it is done.

    Returns the network and the CPU seconds of training, of the last part if it was stopped.
    `settings` are those of `score_sde.train` that differ from SETTINGS.
    """
    settings = SETTINGS | settings
    images, known = np.tile(data.train, (COPIES, 1, 1, 1)), {}
    if operator:
        known["image"] = as_image(operator, observe(images, operator, 0))
    elif "class_dropout" in settings:
        known["classes"] = np.tile(np.asarray(data.train_labels), COPIES)
    content = hashlib.sha256(b"".join(each.tobytes() for each in (images, *known.values())))
    key, start = common.key([content.hexdigest(), settings], "training.arrays"), time.process_time()
    workdir, records = folder / "networks" / key, Records(folder / "seconds.jsonl")
    model = score_sde.train(images, condition=known or None, workdir=workdir, **settings)
    spent = records.cached(key, lambda: {"seconds": time.process_time() - start})
    return model, spent["seconds"]


def psnr(x: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return the PSNR (N,) in dB, at most 99, of images x (N, H, W, C), clipped to [-1, 1]."""
    squares = np.square((np.clip(x, -1, 1) - truth) / 2).mean(axis=(1, 2, 3))
    return -10 * np.log10(np.maximum(squares, 10**-9.9))


def distance_beyond(x: np.ndarray, truth: np.ndarray, train: np.ndarray) -> Estimate:
    """Return the distance of samples x (S, N, ...) to training images, less that of the truth.

    Samples of the exact posteriors are distributed as the truth (N, ...) is, so that they have 0 on
    average. The error is that of resampling the N images.
    """
    rows, flat = len(truth), np.asarray(train, np.float64).reshape(len(train), -1)
    known = np.quantile(flat @ distances.directions(flat.shape[1]), distances.levels(rows), axis=0)

    def difference(chosen: np.ndarray) -> float:
        found = [sliced_distance(known, each[chosen]) for each in x]
        return float(np.mean(found)) - sliced_distance(known, truth[chosen])

    rng = np.random.default_rng(0)
    resampled = [difference(rng.integers(0, rows, rows)) for _ in range(distances.RESAMPLINGS)]
    return Estimate(difference(np.arange(rows)), float(np.std(resampled, ddof=1)))


def draw(sample: Callable[[int], Array]) -> tuple[np.ndarray, Record]:
    """Return samples (S, N, ...) of two seeds, and the cost of one of the second seed."""
    first = np.asarray(sample(0))  # Compiles.
    jax.effects_barrier()
    CALLS.clear()
    start = time.process_time()
    second = np.asarray(sample(1))
    jax.effects_barrier()
    seconds = time.process_time() - start
    cost: Record = {name: CALLS[name] for name in ("evaluations", "gradients")}
    cost["milliseconds"] = 1000 * seconds / math.prod(second.shape[:2])
    return np.concatenate([first, second]), cost


class Problem:
    """A task with held-out images of a data set, evenly spaced in their order."""

    def __init__(self, data: Data, operator: Operator) -> None:
        chosen = np.linspace(0, len(data.test) - 1, IMAGES).round().astype(int)
        images, labels = data.test[chosen], data.test_labels
        self.data, self.train, self.truth = data, scale(data.train), scale(images)
        self.operator, self.y = operator, observe(images, operator, 1)
        self.labels = None if labels is None else labels[chosen]

    def judge(self, x: np.ndarray) -> Record:
        """Return the errors of samples (S, N, ...); those of the spread for more than one each."""
        found: Record = {"psnr": mean(psnr(x.mean(0), self.truth))}
        images = np.clip(x, -1, 1)
        found["beyond"] = distance_beyond(images, self.truth, self.train)
        if self.labels is not None:
            levels = np.round((images + 1) * 127.5).astype(np.uint8)
            correct = np.mean([distances.classes(each) == self.labels for each in levels], 0)
            found["correct"] = mean(100 * correct)
        if len(x) > 1:
            drawn, uniform = x.swapaxes(0, 1), np.random.default_rng(0).random
            verdict = calibration.judge_samples(self.truth, drawn, self.y, uniform)
            share, error = verdict.coverage(0.9)
            found["coverage"] = Estimate(100 * share, 100 * error)
            found["kind"] = verdict.kind
        return {name: str(each) for name, each in found.items()}

    def restore(self, folder: Path, given: Operator | None) -> Record:
        """Return errors and costs of a network given measurements, or of a guided one."""
        (model, seconds), rows = network(folder, self.data, given), len(self.y)
        model, options = counted(model), {"steps": DRAWN_STEPS, "batch_size": EACH * rows}
        if given:
            title, shape = "conditional network", (EACH, rows)
            drawn = model.given(as_image(given, self.y))
        else:
            drawn = model.posterior(self.y, self.operator, noise=NOISE, iterations=ITERATIONS)
            title, shape = f"`{drawn.method}`", EACH
        x, cost = draw(functools.partial(drawn.sample, shape, **options))
        return {"title": title, "training": seconds} | cost | self.judge(x)

    def floors(self) -> list[Record]:
        """Return the errors of images without a network."""
        found = {
            "pseudo-inverse": as_image(self.operator, self.y),
            "nearest training image": distances.nearest(self.train, self.operator, self.y),
        }
        return [{"title": title} | self.judge(x[None]) for title, x in found.items()]


COLUMNS: Columns = {
    "task": ("task", "", 1),
    "images": ("title", "", 1),
    "PSNR of their mean, dB": ("psnr", "", 1),
    "distance beyond that of held-out images": ("beyond", "", 1),
    "correct class, %": ("correct", "", 1),
    "truth in 90 % intervals, %": ("coverage", "", 1),
    "verdict": ("kind", "", 1),
    "CPU ms of a sample": ("milliseconds", ".0f", 1),
    "training, CPU s": ("training", ".0f", 1),
}


def main(options: argparse.Namespace) -> dict[str, list[str]]:
    jax.config.update("jax_cpu_enable_async_dispatch", False)  # Callbacks of scores may block it.
    warnings.simplefilter("ignore")  # The default method may be biased, which is measured here.
    folder = Path(options.folder)
    records, rows = Records(folder / "learned.jsonl"), []
    for name in SETS:
        data = load(name, options.font)
        for title, operator in tasks(data.train.shape[1:]).items():
            task, found = Problem(data, operator), []
            for given in (operator, None):
                key = common.key([name, title, given is None], "studies.learned")
                found.append(records.cached(key, functools.partial(task.restore, folder, given)))
            rows += [{"task": f"{name}, {title}"} | each for each in (*found, *task.floors())]
    return {"tasks": table(rows, COLUMNS)}


if __name__ == "__main__":
    common.run(main, OPTIONS, "learned_or_guided.md")
