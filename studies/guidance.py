"""Guided samples: an independent classifier of digits, and distances of digits and emoji.

python -m studies.guidance WORKDIR/EVAL_FOLDER ...
python -m studies.guidance --networks=DIR [--font=FONT] [--write]

Classifies the samples that `--mode=eval` wrote to each folder with a support vector machine, fitted
by scikit-learn to the training digits. Prints a row of docs/guidance.md for each checkpoint. Spread
is the mean distance between samples of a class, relative to that of training digits: guidance
reduces it. Outliers are farther from the nearest training digit than 99 % of the test digits.

The second command trains networks in DIR, or continues, and compares guided samples with held-out
images: digits of their classes, and emoji without a condition. FONT is data.path of the emoji.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from scipy.spatial.distance import cdist, pdist
from sklearn.svm import SVC

from benchmarks.records import Record, Records
from benchmarks.tables import Columns, header, machine, row, table
from errors import InputError
from score_sde import TrainedModel
from studies import common, learned
from studies.common import Estimate, mean
from studies.distances import classes as digit_classes
from studies.distances import directions, scale, sliced_distance

OPTIONS = {"folders": [], "networks": None, "font": None, "write": False}
SEEDS = 3  # of samples
EARLIER = 4  # The guide of autoguidance has this fraction of the steps.
SCALES = ((1.5, None), (2.0, None), (2.0, (0.2, 5.0)))  # and intervals
COLUMNS: Columns = {
    "guidance, scale": ("title", "", 1),
    "NFE": ("evaluations", ".0f", 1),
    "distance": ("distance", "", 1),
    "beyond the floor": ("beyond", "", 1),
    "correct class, %": ("correct", "", 1),
}


def spread(x: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean distance of rows of x (N, D) in the same class, averaged over classes."""
    return float(np.mean([pdist(x[labels == c]).mean() for c in np.unique(labels)]))


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


def distances(folder: Path, font: str | None) -> list[str]:
    """Return the table of each data set; measure what is not recorded in a folder."""
    records, lines = Records(folder / "guidance.jsonl"), []
    for name in learned.SETS:
        data, rows = learned.load(name, font), []
        ways = {"floor: training images": functools.partial(training_images, data)}
        for title, model in networks(data, folder).items():
            ways[title] = functools.partial(samples, model, data)
        for title, draw in ways.items():
            key = common.key([name, title], "studies.guidance")
            found = records.cached(key, functools.partial(measure, data, draw))
            rows.append(found | {"title": title, "distance": Estimate(*found["distance"])})
            if len(rows) > 1:
                rows[-1]["beyond"] = common.excess(rows[-1]["distance"], rows[0]["distance"])
        lines += [f"{name}, {len(data.test)} images:".capitalize(), "", *table(rows, COLUMNS), ""]
    return lines


def classify(folders: list[str]) -> None:
    """Print the rows of the checkpoints of evaluation folders.

    Raises InputError for samples without requested classes.
    """
    data = learned.load("digits", None)
    x, held_out = (each.reshape(len(each), -1) * (16 / 255) for each in (data.train, data.test))
    # scikit-learn has no annotations; a type is inferred from the default, a string.
    classifier = SVC(gamma=1e-3, C=10)  # pyright: ignore[reportArgumentType]
    accuracy = classifier.fit(x, data.train_labels).score(held_out, data.test_labels)
    print(f"accuracy of the classifier on {len(held_out)} test digits: {100 * accuracy:.1f} %")
    print(f"machine: {machine()}\n")
    far = np.quantile(cdist(held_out, x).min(1), 0.99)
    columns = "folder", "guidance", "scale", "NFE", "correct class, %"
    print("\n".join(header(*columns, "spread", "outliers, %")))
    for folder in (path for name in folders for path in sorted(Path(name).glob("checkpoint_*"))):
        rounds = [np.load(path) for path in sorted(folder.glob("samples_*.npz"))]
        if not rounds or "classes" not in rounds[0]:
            raise InputError(
                f"{folder} has no samples of classes; evaluate with --config.guidance.classes."
            )
        images, classes = (
            np.concatenate([r[key] for r in rounds]) for key in ("samples", "classes")
        )
        result = json.loads((folder / "results.json").read_text())["samples"]
        drawn, guidance = images.reshape(len(images), -1) * (16 / 255), result["guidance"]
        share, error = mean(100.0 * (classifier.predict(drawn) == classes))[:2]
        relative = spread(drawn, classes) / spread(x, np.asarray(data.train_labels))
        cells = folder.parent.name, guidance["kind"], f"{guidance['scale']:g}"
        cells += f"{result['nfe']:.0f}", f"{share:.1f} +- {error:.1f}", f"{relative:.2f}"
        print(row(*cells, f"{100 * (cdist(drawn, x).min(1) > far).mean():.1f}"))


def main(options: argparse.Namespace) -> dict[str, list[str]]:
    """Train networks and compare distances; without a folder for them, classify samples."""
    if options.networks:
        return {"distances": distances(Path(options.networks), options.font)}
    classify(options.folders)
    return {}


if __name__ == "__main__":
    common.run(main, OPTIONS, "guidance.md")
