"""The evaluation stage `loss`: the denoising score-matching loss of the test images."""

from __future__ import annotations

import functools

import jax
import numpy as np

import datasets
import losses
import sharding
from metrics.stage import Context, Results, Stage, check_images, summarize, summary_measure
from runs import Arrays, load_rounds


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

    paths = context.run_rounds("losses", len(batches), compute, data=images.digest)
    rounds = load_rounds(paths, loss=(len(images),), t=(len(images),))
    loss, t = rounds["loss"], rounds["t"]
    finite = np.isfinite(loss)
    return summarize(loss) | {"stderr": losses.mean_stderr(loss[finite], t[finite])}


NOTE = "denoising score matching, without dropout"
STAGE = Stage(
    name="loss",
    key="loss",
    kind="loss",
    check=functools.partial(check_images, split="test"),
    run=run,
    measures=lambda entry: [summary_measure("held-out loss", entry, NOTE)],
)
