"""Guided samples of digits and emoji: their classes, and their distances to held-out images.

python -m studies.guidance --folder=DIR [--font=FONT] [--write]

Prints a table of docs/guidance.md, and with --write puts it into the page. Trains networks in DIR,
or continues, and compares guided samples with held-out images: digits of their classes, and emoji
without a condition. FONT is data.path of the emoji.
"""

from __future__ import annotations

import argparse
import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.records import Record, Records
from benchmarks.tables import Columns, table
from score_sde import TrainedModel
from studies import common, learned
from studies.claims_measured import with_classifier
from studies.common import Estimate, mean
from studies.distances import classes as digit_classes
from studies.distances import directions, scale, sliced_distance
from studies.sampling import CONFIGS

OPTIONS = {"folder": "", "font": None, "write": False}
SEEDS = 3  # of samples
EARLIER = 4  # The guide of autoguidance has this fraction of the steps.
SCALES = ((1.5, None), (2.0, None), (2.0, (0.2, 5.0)))  # and intervals
CLASSIFIED_SDES = "VP", "VE"
CLASSIFIED = (0.0, 1.0, 2.0, 4.0)  # scales of guidance by a classifier
COLUMNS: Columns = {
    "guidance, scale": ("title", "", 1),
    "NFE": ("evaluations", ".0f", 1),
    "distance": ("distance", "", 1),
    "beyond the floor": ("beyond", "", 1),
    "correct class, %": ("correct", "", 1),
}


def measure(data: learned.Data, draw: Callable[[int], tuple[np.ndarray, float]]) -> Record:
    """Return the distance of images to held-out ones, and correct classes, over SEEDS seeds.

    `draw` maps a seed to uint8 images (N, H, W, C), and to evaluations for each of them.
    """
    flat = scale(data.test).reshape(len(data.test), -1)
    known = np.sort(flat @ directions(flat.shape[1]), 0)
    drawn = [draw(seed) for seed in range(SEEDS)]
    gaps = [sliced_distance(known, scale(images)) for images, _ in drawn]
    found: Record = {"distance": mean(np.array(gaps)), "evaluations": drawn[0][1]}
    if data.test_labels is not None:
        shares = [100 * np.mean(digit_classes(x) == data.test_labels) for x, _ in drawn]
        found["correct"] = str(mean(np.array(shares)))
    return found


def training_images(data: learned.Data, seed: int) -> tuple[np.ndarray, float]:
    """Return as many training images as there are held-out ones, of the same classes."""
    rng, labels = np.random.default_rng(seed), data.test_labels
    if labels is None:
        return data.train[rng.permutation(len(data.train))[: len(data.test)]], 0.0
    groups = [np.flatnonzero(data.train_labels == c) for c in range(10)]
    return data.train[[rng.choice(groups[c]) for c in labels]], 0.0


def samples(model: TrainedModel, data: learned.Data, seed: int) -> tuple[np.ndarray, float]:
    """Return as many samples as there are held-out images, of the same classes."""
    chosen = model.given(classes=None if data.test_labels is None else data.test_labels.tolist())
    sampler = chosen.make_sampler(None, learned.DRAWN_STEPS)
    found = chosen.draw(sampler, len(data.test), jax.random.key(seed))
    return chosen.to_images(found.x), float(np.mean(found.nfe))


def networks(data: learned.Data, folder: Path) -> dict[str, TrainedModel]:
    """Train a network, and an earlier one of the same training; return them, also guided."""
    settings: dict[str, Any] = {} if data.train_labels is None else {"class_dropout": 0.1}
    model, earlier = (
        learned.network(folder, data, **settings, steps=learned.SETTINGS["steps"] // part)[0]
        for part in (1, EARLIER)
    )
    found = {"none": model, "none, earlier network": earlier}
    guides: dict[str, TrainedModel | None] = {"classifier-free": None} if settings else {}
    guides["autoguidance"] = earlier
    for (kind, guide), (factor, interval) in itertools.product(guides.items(), SCALES):
        title = f"{kind}, {factor:g}" + (f" in {interval}" if interval else "")
        options = {"guidance_scale": factor, "guidance_interval": interval, "guide": guide}
        found[title] = model.given(**options)
    return found


def classified(
    model: TrainedModel, folder: str, scale: float, data: learned.Data, seed: int
) -> tuple[np.ndarray, float]:
    """Return `samples` guided by a classifier of noised images, which is trained in a folder."""
    labels = np.asarray(data.test_labels).tolist()
    experiment, trained = with_classifier(model, folder, tuple(labels), scale)
    found = experiment.draw_images(trained, seed * len(labels), len(labels))
    return np.asarray(found.x), float(np.mean(found.nfe))


def distances(folder: Path, font: str | None) -> list[str]:
    """Return the table of each data set; measure what is not recorded in a folder."""
    records, lines = Records(folder / "guidance.jsonl"), []
    for name in learned.SETS:
        data, rows = learned.load(name, font), []
        ways = {"floor: training images": functools.partial(training_images, data)}
        for title, model in networks(data, folder).items():
            ways[title] = functools.partial(samples, model, data)
        for sde in CLASSIFIED_SDES if name == "digits" else ():
            model, path = common.digits_network(CONFIGS[sde], folder), f"{folder}/{sde}"
            for factor in CLASSIFIED:
                title = f"{sde}, classifier, {factor:g}"
                ways[title] = functools.partial(classified, model, path, factor, data)
        for title, draw in ways.items():
            key = common.key([name, title], "studies.guidance")
            found = records.cached(key, functools.partial(measure, data, draw))
            rows.append(found | {"title": title, "distance": Estimate(*found["distance"])})
            if len(rows) > 1:
                rows[-1]["beyond"] = common.excess(rows[-1]["distance"], rows[0]["distance"])
        lines += [f"{name}, {len(data.test)} images:".capitalize(), "", *table(rows, COLUMNS), ""]
    return lines


def main(options: argparse.Namespace) -> dict[str, list[str]]:
    return {"distances": distances(Path(options.folder), options.font)}


if __name__ == "__main__":
    common.run(main, OPTIONS, "guidance.md")
