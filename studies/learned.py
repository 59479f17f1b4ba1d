"""Conditional networks beside guided unconditional ones, for inverse problems of digits and emoji.

python -m studies.learned --folder=DIR [--font=FONT] [--write]

Trains a network for each task and one without a condition in DIR, with equal steps and sizes, and
prints the tables of docs/learned_or_guided.md; --write puts them into the page. Results are kept in
DIR, so that a run resumes. FONT is data.path of the emoji.
"""

from __future__ import annotations

import argparse
import functools
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

import datasets
from api import calibration
from benchmarks.records import Record, Records
from benchmarks.tables import header, row
from configs import default_digits_configs, default_emoji_configs
from controllable.operators import Operator
from score_sde import TrainedModel, operators
from studies import common
from studies.common import Estimate, mean
from studies.distances import RESAMPLINGS, classes, digits, directions, levels, sliced_distance
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
ROUNDS, EACH = 2, 4  # samples given each measurement: ROUNDS times EACH
DRAWN_STEPS = 20
ITERATIONS = 5  # at most, of conjugate gradients in a step


# --- data and networks ----------------------------------------------------------------------------


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
    pixels = digits if name == "digits" else lambda each: np.asarray(each.pixels[:])
    labels = [None if each.labels is None else np.asarray(each.labels) for each in splits]
    return Data(*map(pixels, splits), *labels)


def tasks(shape: tuple[int, ...]) -> dict[str, Operator]:
    """Return the operators by the names of the tasks."""
    found = {"super-resolution by 2": operators.block_mean(shape, 2)}
    if shape[-1] > 1:
        return found | {"colorization": operators.channel_mean(shape)}
    return found | {"inpainting, a box": operators.mask(operators.box(shape, 0.5))}


def scaled(images: np.ndarray) -> np.ndarray:
    """Return uint8 images in [-1, 1]."""
    return np.float32(images / 127.5 - 1)


def observe(images: np.ndarray, operator: Operator, seed: int) -> np.ndarray:
    """Return measurements, with noise, of uint8 images (N, H, W, C)."""
    z = np.random.default_rng(seed).normal(size=images.shape).astype(np.float32)
    return np.asarray(operator.observe(scaled(images), z, NOISE))


def as_image(operator: Operator, y: np.ndarray) -> np.ndarray:
    """Return measurements as images (N, H, W, C), the form of a condition."""
    return np.asarray(operator.pseudo_inverse(y), np.float32)


def network(
    folder: Path, images: np.ndarray, operator: Operator | None = None, **settings: Any
) -> tuple[TrainedModel, float]:
    """Return a network of images given measurements, or nothing, and CPU seconds of training."""
    images = np.tile(images, (COPIES, 1, 1, 1))
    known = {"image": as_image(operator, observe(images, operator, 0))} if operator else {}
    return common.fit(folder, images, known, **SETTINGS | settings)


def psnr(x: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return the PSNR (N,) in dB, at most 99, of images x (N, H, W, C), clipped to [-1, 1]."""
    squares = np.square((np.clip(x, -1, 1) - truth) / 2).mean((1, 2, 3))
    return -10 * np.log10(np.maximum(squares, 10**-9.9))


def distance_beyond(x: np.ndarray, truth: np.ndarray, train: np.ndarray) -> Estimate:
    """Return the distance of samples x (S, N, ...) to training images, less that of the truth.

    Samples of the exact posteriors are distributed as the truth (N, ...) is, so that they have 0 on
    average. The distance is `sliced_distance`; the error is that of resampling the N images.
    """
    rows, flat = len(truth), np.float64(train.reshape(len(train), -1))
    known = np.quantile(flat @ directions(flat.shape[1]), levels(rows), axis=0)

    def difference(chosen: np.ndarray) -> float:
        found = [sliced_distance(known, each[chosen]) for each in x]
        return float(np.mean(found)) - sliced_distance(known, truth[chosen])

    rng = np.random.default_rng(0)
    resampled = [difference(rng.integers(0, rows, rows)) for _ in range(RESAMPLINGS)]
    return Estimate(difference(np.arange(rows)), float(np.std(resampled, ddof=1)))


# --- measurements ---------------------------------------------------------------------------------


def draw(sample: Callable[[int], Array]) -> tuple[np.ndarray, Record]:
    """Return samples (S, N, ...) of ROUNDS seeds, and the cost of one after the first round."""
    parts, seconds = [], []
    for seed in range(ROUNDS):
        CALLS.clear()
        start = time.process_time()
        parts.append(np.asarray(sample(seed)))
        jax.effects_barrier()
        seconds.append(time.process_time() - start)
    cost = float(np.mean(seconds[1:]) / np.prod(parts[0].shape[:2]))
    calls = {name: CALLS[name] for name in ("evaluations", "gradients")}
    return np.concatenate(parts), calls | {"milliseconds": 1000 * cost}


class Problem:
    """A task with held-out images of a data set, evenly spaced in their order."""

    def __init__(self, data: Data, operator: Operator) -> None:
        chosen = np.linspace(0, len(data.test) - 1, IMAGES).round().astype(int)
        images, labels = data.test[chosen], data.test_labels
        self.images, self.train, self.truth = data.train, scaled(data.train), scaled(images)
        self.operator, self.y = operator, observe(images, operator, 1)
        self.labels = None if labels is None else labels[chosen]

    def judge(self, x: np.ndarray) -> Record:
        """Return the errors of samples (S, N, ...); those of the spread for more than one each."""
        found: Record = {"psnr": mean(psnr(x.mean(0), self.truth))}
        found["beyond"] = distance_beyond(np.clip(x, -1, 1), self.truth, self.train)
        if self.labels is not None:
            shown = np.round((np.clip(x, -1, 1) + 1) * 127.5).astype(np.uint8)
            correct = np.mean([classes(each) == self.labels for each in shown], 0)
            found["correct"] = mean(100 * correct)
        if len(x) > 1:
            drawn, uniform = x.swapaxes(0, 1), np.random.default_rng(0).random
            verdict = calibration.judge_samples(self.truth, drawn, self.y, uniform)
            coverage = Estimate(*(100 * each for each in verdict.coverage(0.9)))
            found |= {"coverage": coverage, "kind": verdict.kind}
        return found

    def restore(self, folder: Path, given: Operator | None) -> Record:
        """Return errors and costs of a network given measurements, or of a guided one."""
        (model, seconds), rows = network(folder, self.images, given), len(self.y)
        model, options = counted(model), {"steps": DRAWN_STEPS, "batch_size": EACH * rows}
        if given:
            title, drawn = "conditional network", model.given(as_image(given, self.y))
        else:
            drawn = model.posterior(self.y, self.operator, noise=NOISE, iterations=ITERATIONS)
            title = f"`{drawn.method}`"
        shape = (EACH, rows) if given else EACH
        x, cost = draw(functools.partial(drawn.sample, shape, **options))
        return {"title": title, "training": seconds} | cost | self.judge(x)

    def floors(self) -> list[Record]:
        """Return the errors of images without a network, and those of the truth."""
        measured = np.asarray(self.operator.forward(self.train)).reshape(len(self.train), -1)
        gaps = np.square(self.y.reshape(len(self.y), 1, -1) - measured).sum(-1)
        found = {
            "pseudo-inverse": as_image(self.operator, self.y),
            "nearest training image": self.train[gaps.argmin(1)],
            "held-out images": self.truth,
        }
        return [{"title": title} | self.judge(x[None]) for title, x in found.items()]


COLUMNS = {
    "images": "title",
    "PSNR of their mean, dB": "psnr",
    "distance beyond that of held-out images": "beyond",
    "correct class, %": "correct",
    "truth in 90 % intervals, %": "coverage",
    "verdict": "kind",
    "evaluations": "evaluations",
    "gradients": "gradients",
    "CPU ms of a sample": "milliseconds",
    "training, CPU s": "training",
}


def table(found: Sequence[Record]) -> list[str]:
    """Return the table of a task, without columns that are empty."""
    columns = {k: name for k, name in COLUMNS.items() if any(name in each for each in found)}
    rows = (row(*(_cell(each.get(name, "")) for name in columns.values())) for each in found)
    return [*header(*columns), *rows, ""]


def _cell(value: Any) -> str:
    if isinstance(value, list | tuple):
        return str(Estimate(*value))
    return f"{value:.0f}" if isinstance(value, float) else str(value)


def main(options: argparse.Namespace) -> None:
    """Train and measure what DIR lacks, and print or write the tables."""
    jax.config.update("jax_cpu_enable_async_dispatch", False)  # Callbacks of scores may block it.
    warnings.simplefilter("ignore")  # The default method may be biased, which is measured here.
    folder = Path(options.folder)
    records = Records(folder / "learned.jsonl")
    lines = [common.provenance("python -m studies.learned --folder=DIR --write"), ""]
    for name in SETS:
        data = load(name, options.font)
        for title, operator in tasks(data.train.shape[1:]).items():
            task, found = Problem(data, operator), []
            for given in (operator, None):
                key = common.key([name, title, given is None], "studies.learned")
                measure = functools.partial(task.restore, folder, given)
                found.append(records.cached(key, measure))
            lines += [f"{name}, {title}:".capitalize(), "", *table([*found, *task.floors()])]
    print("\n".join(lines))
    if options.write:
        common.write_blocks(common.ROOT / "docs" / "learned_or_guided.md", {"tasks": lines})


if __name__ == "__main__":
    common.run(main, OPTIONS)
