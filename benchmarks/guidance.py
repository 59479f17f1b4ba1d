"""How often an independent classifier assigns guided samples of digits to the requested class.

python -m benchmarks.guidance WORKDIR/EVAL_FOLDER ...

Classifies the samples that `--mode=eval` wrote to each folder with a support vector machine, fitted
by scikit-learn to the training digits. Prints a row of docs/guidance.md for each checkpoint. Spread
is the mean distance between samples of a class, relative to that of training digits: guidance
reduces it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import app
from sklearn.svm import SVC

import datasets
from benchmarks.markdown import header, machine, row
from configs.default_digits_configs import get_default_configs
from errors import InputError


def measure(classifier: SVC, training_distance: float, folder: Path) -> list[str]:
    """Return the cells of a row about the samples in a folder checkpoint_K.

    Raises InputError if there are no samples of requested classes.
    """
    rounds = [np.load(path) for path in sorted(folder.glob("samples_*.npz"))]
    if not rounds or "classes" not in rounds[0]:
        raise InputError(
            f"{folder} has no samples of classes; evaluate with --config.guidance.classes."
        )
    result = json.loads((folder / "results.json").read_text())["samples"]
    images = np.concatenate([each["samples"] for each in rounds])
    classes = np.concatenate([each["classes"] for each in rounds])
    x = images.reshape(len(images), -1) * (16 / 255)
    correct = classifier.predict(x) == classes
    accuracy = correct.mean()
    stderr = np.sqrt(accuracy * (1 - accuracy) / len(correct))
    worst_accuracy, worst_class = min((correct[classes == c].mean(), c) for c in np.unique(classes))
    guidance = result["guidance"]
    return [
        str(folder.parent.name),
        guidance["kind"],
        f"{guidance['scale']:g}",
        f"{result['nfe']:.0f}",
        f"{100 * accuracy:.1f} +- {100 * stderr:.1f}",
        f"{100 * worst_accuracy:.0f} ({worst_class})",
        f"{distance_within_classes(x, classes) / training_distance:.2f}",
    ]


def distance_within_classes(x: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean distance of rows of x (N, D) in the same class, averaged over classes."""
    means = []
    for c in np.unique(labels):
        members = x[labels == c]
        distances = np.linalg.norm(members[:, None] - members[None], axis=-1)
        means.append(distances.sum() / (len(members) * (len(members) - 1)))
    return float(np.mean(means))


def _flatten(images: datasets.Images) -> np.ndarray:
    return np.asarray(images.pixels).reshape(len(images), -1).astype(float)


def main(argv: Sequence[str]) -> None:
    """Print the table."""
    data = get_default_configs().data
    train, test = datasets.load(data, "train"), datasets.load(data, "test")
    if train.labels is None:
        raise InputError("The images of the config have no labels; choose another data set.")
    x = _flatten(train)
    # scikit-learn has no annotations; a type is inferred from the default, a string.
    classifier = SVC(gamma=1e-3, C=10)  # pyright: ignore[reportArgumentType]
    classifier.fit(x, train.labels)
    accuracy = classifier.score(_flatten(test), test.labels)
    print(f"accuracy of the classifier on {len(test)} test digits: {100 * accuracy:.1f} %")
    training_distance = distance_within_classes(x, train.labels)
    print(f"machine: {machine()}\n")
    lines = header(
        "folder", "guidance", "scale", "NFE", "correct class, %", "worst class, % (which)", "spread"
    )
    for folder in argv[1:]:
        for checkpoint in sorted(Path(folder).glob("checkpoint_*")):
            lines.append(row(*measure(classifier, training_distance, checkpoint)))
    print("\n".join(lines))


if __name__ == "__main__":
    app.run(main)
