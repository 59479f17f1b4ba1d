"""The interface of an evaluation stage.

A stage computes one entry of a checkpoint's results.json, in rounds that are files, so that an
interrupted evaluation resumes. Its file also states what kind of files the rounds are, and
how the entry appears in the printed table and in the report. `stages.STAGES` registers all stages.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import runs
from configs.default import Config
from datasets import Dequantize
from errors import InputError
from experiment import Experiment
from models.building import Params
from runs import Arrays

Results = dict[str, Any]
"""JSON-able results."""


@dataclasses.dataclass(frozen=True)
class Context:
    """The input of a stage for one checkpoint.

    Attributes:
      experiment: the objects that the config describes.
      ema: the EMA parameters of the checkpoint.
      folder: the folder of the checkpoint's results.
      dequantize: the dequantizer, or None if no enabled stage needs it.
      prepared: the return value of `Stage.prepare`, shared by all checkpoints.
      depends: a JSON-able description of what the rounds are computed from.
    """

    experiment: Experiment
    ema: Params
    folder: Path
    dequantize: Dequantize | None = None
    prepared: Any = None
    depends: runs.Depends = dataclasses.field(default_factory=dict)

    def run_rounds(self, name: str, count: int, compute: Callable[[int], Arrays]) -> list[Path]:
        """Compute the missing rounds of this checkpoint; return the paths of all `count` rounds."""
        return runs.run_rounds(self.folder, name, count, compute, self.depends)


class Measure(NamedTuple):
    """One row of the report; `stderr` is None if unknown, `images` is the sample size."""

    name: str
    value: float
    stderr: float | None
    images: int
    note: str = ""


class Cell(NamedTuple):
    """One cell of the printed table, with the title and the width of its column."""

    title: str
    text: str
    width: int = 18


def _accept(experiment: Experiment) -> None:
    """Accept every config."""


def _prepare_nothing(experiment: Experiment, workdir: Path) -> None:
    """Require nothing beyond the experiment."""


def _no_notes(entries: Sequence[Results]) -> list[str]:
    """Add no lines below the table."""
    return []


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """An evaluation stage.

    Attributes:
      name: the stage is enabled by config.eval.enable_NAME.
      key: the key of its entry in results.json.
      kind: the entry of `runs.DEPENDENCIES` for its rounds.
      run: compute the entry of one checkpoint.
      measures: the rows of the report, given the entry.
      cells: the cells of the printed table, given the entry, or None if the checkpoint has none.
      notes: lines below the table, given the entries of all checkpoints that have one.
      check: raise InputError for invalid config values.
      prepare: load what all checkpoints share, before the first one; the result is
        `Context.prepared`. Raise InputError if something is missing.
      requires: names of stages that must be enabled too.
      separate_table: whether its cells form a separate table.
      needs_dequantizer: whether `run` uses `Context.dequantize`.
      needs_classifier: whether `run` samples with config.guidance, which may need the classifier.
      split: the split of the data set that `run` reads, given the config; None if it reads none.
    """

    name: str
    key: str
    kind: str
    run: Callable[[Context], Results]
    measures: Callable[[Results], list[Measure]]
    cells: Callable[[Results | None], list[Cell]]
    notes: Callable[[Sequence[Results]], list[str]] = _no_notes
    check: Callable[[Experiment], None] = _accept
    prepare: Callable[[Experiment, Path], Any] = _prepare_nothing
    requires: tuple[str, ...] = ()
    separate_table: bool = False
    needs_dequantizer: bool = False
    needs_classifier: bool = False
    split: Callable[[Config], str] | None = None


def estimate_text(value: float, stderr: float) -> str:
    """An estimate with its standard error, as the printed tables show it."""
    return f"{value:.4f} +- {stderr:.4f}"


# --- means over images ---


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
    """The row of the report that shows a result of `summarize`."""
    if summary["failed"]:
        note += f"; {summary['failed']} images failed and are left out"
    return Measure(name, summary["mean"], summary["stderr"], summary["images"], note)


def summary_cell(title: str, summary: Results | None) -> Cell:
    """The table cell that shows a result of `summarize`, or "-" without one."""
    if summary is None:
        return Cell(title, "-")
    return Cell(title, estimate_text(summary["mean"], summary["stderr"]))
