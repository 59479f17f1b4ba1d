"""The interface of an evaluation stage, and what stages share: images of a split, and means.

A stage computes one entry of a checkpoint's results.json, in rounds that are files, so that an
interrupted evaluation resumes. Its measures are the lines that are printed, and the rows of the
report. `evaluation.STAGES` registers all stages.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import runs
from api.trained import TrainedModel
from datasets import Images
from errors import InputError, advice
from experiment import Experiment
from models.building import Params
from runs import Arrays

Results = dict[str, Any]
"""JSON-able results."""


@dataclasses.dataclass(frozen=True, eq=False)
class Context:
    """The input of a stage for one checkpoint."""

    experiment: Experiment
    ema: Params  # The moving average in the checkpoint.
    folder: Path  # That of the checkpoint's results.
    prepared: Any = None  # What `Stage.prepare` returned.
    depends: runs.Depends = dataclasses.field(default_factory=dict)  # What rounds are made from.

    @functools.cached_property
    def model(self) -> TrainedModel:
        """The prior of the network with the EMA parameters."""
        return self.experiment.trained_model(self.ema)

    def run_rounds(
        self, name: str, count: int, compute: Callable[[int], Arrays], **depends: str
    ) -> list[Path]:
        """Compute the missing rounds, which depend on these checksums too; return all paths."""
        return runs.run_rounds(self.folder, name, count, compute, {**self.depends, **depends})


class Measure(NamedTuple):
    """A measured quantity of `images`: None stands for what cannot be computed, or is unknown."""

    name: str
    value: float | None
    stderr: float | None
    images: int
    note: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """An evaluation stage, which raises InputError in `check` and `prepare`."""

    name: str  # It is enabled by config.eval.enable_NAME.
    key: str  # That of its entry in results.json.
    kind: str  # The entry of `folders.DEPENDENCIES` for its rounds.
    run: Callable[[Context], Results]  # Returns the entry of one checkpoint.
    measures: Callable[[Results], list[Measure]]  # What is printed and reported of an entry.
    check: Callable[[Experiment], None] = lambda experiment: None  # Config and images.
    # Returns what all checkpoints share; called before the first one.
    prepare: Callable[[Experiment, Path], Any] = lambda experiment, workdir: None


# --- images ---------------------------------------------------------------------------------------


def images_of(experiment: Experiment, split: str) -> Images:
    """The images of a split. Raise InputError if they cannot be read."""
    return experiment.train if split == "train" else experiment.test


def check_images(experiment: Experiment, split: str) -> None:
    """Raise InputError if the images of a split cannot be read; name the stages that need them."""
    with advice(
        "eval.enable_loss and eval.enable_bpd need the images of the data set; "
        "eval.enable_sampling does not."
    ):
        len(images_of(experiment, split))


def rows_of_classes(images: Images, classes: Sequence[int]) -> np.ndarray:
    """Return the numbers of as many images as possible such that image i has class classes[i % k].

    Those of a class are evenly spaced in the split. All images, in order, if `classes` is empty.
    Raises InputError if the images have no labels, or none have one of the classes.
    """
    if not classes:
        return np.arange(len(images))
    if images.labels is None:
        raise InputError(
            "guidance.classes needs images with labels; those of data.dataset have none."
        )
    shares = Counter(classes)
    of_class = {each: np.flatnonzero(images.labels == each) for each in shares}
    cycles = {each: len(of_class[each]) // share for each, share in shares.items()}
    rarest = min(cycles, key=cycles.__getitem__)
    if not cycles[rarest]:
        raise InputError(
            f"guidance.classes requests class {rarest}, of which data.dataset has too few images."
        )
    rows = np.empty((cycles[rarest], len(classes)), int)
    for each, share in shares.items():
        found, count = of_class[each], share * len(rows)
        spaced = np.linspace(0, len(found) - 1, count).round().astype(int)
        rows[:, np.equal(classes, each)] = found[spaced].reshape(-1, share)
    return rows.ravel()


# --- means over images ----------------------------------------------------------------------------


def summarize(values: np.ndarray) -> Results:
    """Mean over images (N,) with its standard error.

    Values that are not finite, from images whose solve failed, are counted and left out. Raise
    InputError if fewer than two values are finite.
    """
    finite = values[np.isfinite(values)]
    if len(finite) < 2:
        raise InputError(
            f"Only {len(finite)} of {len(values)} images have a finite value, but a mean with a "
            "standard error requires at least 2. Evaluate more images or another checkpoint."
        )
    return {
        "mean": float(finite.mean()),
        "stderr": float(finite.std(ddof=1) / math.sqrt(len(finite))),
        "images": len(finite),
        "failed": len(values) - len(finite),
    }


def summary_measure(name: str, summary: Results, note: str) -> Measure:
    """The measure of a result of `summarize`."""
    if summary["failed"]:
        note += f"; {summary['failed']} images failed and are left out"
    return Measure(name, summary["mean"], summary["stderr"], summary["images"], note)
