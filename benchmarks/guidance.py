"""How often digits that were asked for by class are taken for that class by an independent classifier.

python -m benchmarks.guidance WORKDIR/EVAL_FOLDER ...

Judges the samples that `--mode=eval` left in each folder, with a support vector machine that scikit-learn fits to the
training digits, and prints a row of docs/guidance.md for each checkpoint there. Spread is the mean distance of pairs of
samples of a class, relative to that of training digits: what guidance takes away.
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


def judge(classifier: SVC, spread: float, folder: Path) -> list[str]:
    """A row about the samples in a folder checkpoint_K. Raises InputError if no classes were asked of them."""
    rounds = [np.load(path) for path in sorted(folder.glob("samples_*.npz"))]
    if not rounds or "classes" not in rounds[0]:
        raise InputError(
            f"{folder} has no samples of classes; evaluate with --config.guidance.classes."
        )
    result = json.loads((folder / "results.json").read_text())["samples"]
    images, asked = (
        np.concatenate([each[name] for each in rounds]) for name in ("samples", "classes")
    )
    flat = images.reshape(len(images), -1) * (16 / 255)
    right = classifier.predict(flat) == asked
    worst = min((right[asked == c].mean(), c) for c in np.unique(asked))
    guidance = result["guidance"]
    share = f"{100 * right.mean():.1f} +- {100 * np.sqrt(right.mean() * (1 - right.mean()) / len(right)):.1f}"
    cells = [
        str(folder.parent.name),
        guidance["kind"],
        f"{guidance['scale']:g}",
        f"{result['nfe']:.0f}",
        share,
    ]
    return [*cells, f"{100 * worst[0]:.0f} ({worst[1]})", f"{within(flat, asked) / spread:.2f}"]


def within(flat: np.ndarray, labels: np.ndarray) -> float:
    """The mean distance of pairs of the same class; images as rows."""
    means = []
    for c in np.unique(labels):
        each = flat[labels == c]
        distances = np.linalg.norm(each[:, None] - each[None], axis=-1)
        means.append(distances.sum() / (len(each) * (len(each) - 1)))
    return float(np.mean(means))


def main(argv: Sequence[str]) -> None:
    """Prints the table."""
    train, test = (datasets.load(get_default_configs().data, split) for split in ("train", "test"))
    flat = lambda images: images.pixels.reshape(len(images), -1).astype(float)
    classifier = SVC(gamma=1e-3, C=10).fit(flat(train), train.labels)
    print(
        f"accuracy of the judge on {len(test)} test digits: {100 * classifier.score(flat(test), test.labels):.1f} %"
    )
    spread = within(flat(train), train.labels)
    print(f"machine: {machine()}\n")
    rows = [
        row(*judge(classifier, spread, path))
        for name in argv[1:]
        for path in sorted(Path(name).glob("checkpoint_*"))
    ]
    titles = header(
        "folder", "guidance", "scale", "NFE", "as asked, %", "worst class, % (which)", "spread"
    )
    print("\n".join([*titles, *rows]))


if __name__ == "__main__":
    app.run(main)
