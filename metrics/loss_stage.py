"""The evaluation stage `loss`: the denoising score-matching loss of the test images."""

from __future__ import annotations

import jax
import numpy as np

import datasets
import losses
import sharding
from configs.default import Config
from metrics.stage import (
    Cell,
    Context,
    Measure,
    Results,
    Stage,
    summarize,
    summary_cell,
    summary_measure,
)
from runs import Arrays, load_rounds


def split(config: Config) -> str:
    """The split whose loss is computed."""
    return "test"


def run(context: Context) -> Results:
    """Compute the loss as in training but without dropout and random flips, at even times.

    A class-conditional network is conditioned on the true class of each image.
    """
    experiment = context.experiment
    images = experiment.test
    batches = datasets.rounds(images, experiment.config.eval.batch_size)

    def compute(index: int) -> Arrays:
        indices, count = batches[index]
        key = jax.random.fold_in(experiment.key("loss"), index)
        batch = experiment.rows(images.batch(indices, labelled=experiment.labelled))
        loss, t = sharding.fetch(experiment.held_out_loss(context.ema, batch, key))
        return {"loss": loss[:count], "t": t[:count]}

    paths = context.run_rounds("losses", len(batches), compute)
    rounds = load_rounds(paths)
    loss, t = rounds["loss"], rounds["t"]
    finite = np.isfinite(loss)
    return summarize(loss) | {"stderr": losses.mean_stderr(loss[finite], t[finite])}


def measures(entry: Results) -> list[Measure]:
    """The rows of the report."""
    note = "denoising score matching, without dropout"
    return [summary_measure("held-out loss", entry, note)]


def cells(entry: Results | None) -> list[Cell]:
    """The cells of the printed table."""
    return [summary_cell("loss", entry)]


STAGE = Stage(
    name="loss",
    key="loss",
    kind="loss",
    split=split,
    run=run,
    measures=measures,
    cells=cells,
)
