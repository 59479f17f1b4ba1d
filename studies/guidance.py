"""How often an independent classifier assigns guided samples of digits to the requested class.

python -m studies.guidance WORKDIR/EVAL_FOLDER ...

Classifies the samples that `--mode=eval` wrote to each folder with a support vector machine, fitted
by scikit-learn to the training digits. Prints a row of docs/guidance.md for each checkpoint. Spread
is the mean distance between samples of a class, relative to that of training digits: guidance
reduces it. Outliers are farther from the nearest training digit than 99 % of the test digits.
With --picture=FILE it writes the first ten samples of each class in the first folder.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from scipy.spatial.distance import cdist, pdist
from sklearn.svm import SVC

import datasets
from benchmarks.tables import header, machine, row
from configs.default_digits_configs import get_default_configs
from errors import InputError
from runs import write_picture
from studies import common
from studies.common import mean

OPTIONS = {"folders": [], "picture": None}
ROWS = 10  # of the picture


def load(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the samples (N, H, W, C) in a folder checkpoint_K and their requested classes (N,).

    Raises InputError if there are no samples of requested classes.
    """
    rounds = [np.load(path) for path in sorted(folder.glob("samples_*.npz"))]
    if not rounds or "classes" not in rounds[0]:
        raise InputError(
            f"{folder} has no samples of classes; evaluate with --config.guidance.classes."
        )
    images = np.concatenate([each["samples"] for each in rounds])
    return images, np.concatenate([each["classes"] for each in rounds])


def draw(path: Path, folder: Path) -> None:
    """Write a picture of the first ROWS samples of each class, one column for each class."""
    images, classes = load(folder)
    names = np.unique(classes)
    columns = [images[classes == c][:ROWS] for c in names]
    grid = np.stack([column[: min(map(len, columns))] for column in columns], axis=1)
    titles = [str(c) for c in names]
    write_picture(path, datasets.image_grid(grid.reshape(-1, *images.shape[1:]), titles=titles))


def spread(x: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean distance of rows of x (N, D) in the same class, averaged over classes."""
    return float(np.mean([pdist(x[labels == c]).mean() for c in np.unique(labels)]))


def distance_to_nearest(x: np.ndarray, training: np.ndarray) -> np.ndarray:
    """Return the distance (N,) of each row of x (N, D) to the nearest row of training (M, D)."""
    return cdist(x, training).min(1)


def main(options: argparse.Namespace) -> None:
    """Print the table, and write the picture."""
    data = get_default_configs().data
    train, test = (datasets.load(data, split) for split in ("train", "test"))
    x, held_out = (
        np.asarray(each.pixels).reshape(len(each), -1).astype(float) for each in (train, test)
    )
    # scikit-learn has no annotations; a type is inferred from the default, a string.
    classifier = SVC(gamma=1e-3, C=10)  # pyright: ignore[reportArgumentType]
    classifier.fit(x, train.labels)
    accuracy = classifier.score(held_out, test.labels)
    print(f"accuracy of the classifier on {len(test)} test digits: {100 * accuracy:.1f} %")
    print(f"machine: {machine()}\n")
    far = np.quantile(distance_to_nearest(held_out, x), 0.99)
    folders = [each for name in options.folders for each in sorted(Path(name).glob("checkpoint_*"))]
    if options.picture and folders:
        draw(Path(options.picture), folders[0])
    columns = "folder", "guidance", "scale", "NFE", "correct class, %", "worst class, % (which)"
    print("\n".join(header(*columns, "spread", "outliers, %")))
    for folder in folders:
        images, classes = load(folder)
        result = json.loads((folder / "results.json").read_text())["samples"]
        samples, guidance = images.reshape(len(images), -1) * (16 / 255), result["guidance"]
        correct = classifier.predict(samples) == classes
        share, error = (100 * value for value in mean(correct))
        worst, which = min((correct[classes == c].mean(), c) for c in np.unique(classes))
        relative = spread(samples, classes) / spread(x, np.asarray(train.labels))
        outliers = (distance_to_nearest(samples, x) > far).mean()
        cells = folder.parent.name, guidance["kind"], f"{guidance['scale']:g}"
        cells += f"{result['nfe']:.0f}", f"{share:.1f} +- {error:.1f}"
        cells += f"{100 * worst:.0f} ({which})", f"{relative:.2f}", f"{100 * outliers:.1f}"
        print(row(*cells))


if __name__ == "__main__":
    common.run(main, OPTIONS)
