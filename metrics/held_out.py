"""The evaluation stages `loss` and `bpd`: what the network makes of images of the data set.

`loss` is the denoising score-matching loss. `bpd` are bits/dim of dequantized images, by the
probability-flow ODE (arXiv:2011.13456, Section 4.3 and Appendix D.2), and their variational bound;
`likelihood.py` has the mathematics, and `TrainedModel.bits` the random numbers.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

import datasets
import losses
import sampling
import sharding
from api.trained import Bits
from errors import InputError
from experiment import Experiment
from metrics.stage import (
    Context,
    Measure,
    Results,
    Stage,
    check_images,
    images_of,
    summarize,
    summary_measure,
)
from runs import Arrays, load_rounds


def run_loss(context: Context) -> Results:
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


def check_bits(experiment: Experiment) -> None:
    """Raise InputError unless eval.bpd_t_min is a time that the network is trained at."""
    config, sde = experiment.config, experiment.sde
    if not sde.t_min <= config.eval.bpd_t_min < sde.T:
        raise InputError(
            f"eval.bpd_t_min = {config.eval.bpd_t_min:g} must be at least {sde.t_min:g}, the "
            f"smallest time that training.sde = {config.training.sde!r} is trained at, and below "
            f"{sde.T:g}. Set --config.eval.bpd_t_min={sde.t_min:g}."
        )
    check_images(experiment, config.eval.bpd_dataset.lower())


def run_bits(context: Context) -> Results:
    """Compute bits/dim over config.eval.bpd_num_repeats passes of the data set.

    The entry holds the mean over images with its standard error; `probe_stderr`, the part of that
    error due to the trace estimator (0 with 'exact', None if a single probe leaves it unknown);
    `solver_error`, the mean of the solver's error estimates; `bound`, the variational bound;
    `gap`, by which it exceeds the value; and a `histogram` of the images. All are in bits/dim;
    `nfe` counts evaluations of the score.

    A class-conditional network is conditioned on "no class": the result is p(x), not p(x | class).
    One that takes vectors or images is conditioned on those of each image.
    """
    experiment = context.experiment
    config, kinds = experiment.config.eval, experiment.score_model.kinds
    images = images_of(experiment, config.bpd_dataset.lower())
    batches = datasets.rounds(images, config.batch_size)

    def compute(index: int) -> Arrays:
        repeat, batch = divmod(index, len(batches))
        indices, count = batches[batch]
        key = jax.random.fold_in(experiment.key("bpd"), repeat)
        known = images.batch(indices, labelled=kinds.paired)
        condition = kinds.select(known) if kinds.paired else None
        bits = context.model.given(condition).bits(
            jnp.asarray(known.pixels),
            sampling.image_keys(key, indices),
            trace=config.bpd_trace,
            probes=config.bpd_probes,
            tolerance=config.bpd_tolerance,
            steps=config.bpd_steps or None,
            t_min=config.bpd_t_min,
        )
        return {name: np.asarray(array)[:count] for name, array in bits._asdict().items()}

    passes = config.bpd_num_repeats
    paths = context.run_rounds("bpd", passes * len(batches), compute, data=images.digest)
    arrays = load_rounds(paths, **dict.fromkeys(Bits._fields, (passes * len(images),)))
    per_pass = {name: array.reshape(passes, len(images)) for name, array in arrays.items()}
    values, of_probes = per_pass["bpd"].mean(0), per_pass["probe_stderr"]
    probe_stderr = None
    if not np.isnan(of_probes).all():
        probe_stderr = float(np.sqrt(np.nansum(of_probes**2)) / of_probes.size)
    counts, edges = np.histogram(np.float64(values[np.isfinite(values)]), "sturges")
    return {
        **summarize(values),
        "passes": passes,
        "nfe": float(per_pass["nfe"].mean()),
        "data": config.bpd_dataset,
        "probe_stderr": probe_stderr,
        "solver_error": float(np.nanmean(per_pass["solver_error"])),
        "bound": summarize(per_pass["bound"].mean(0)),
        "gap": summarize((per_pass["bound"] - per_pass["bpd"]).mean(0)),
        "histogram": {"counts": counts.tolist(), "edges": edges.tolist()},
    }


def measures_of_bits(entry: Results) -> list[Measure]:
    """Bits/dim and their bound, with the reason if the bound is lower."""
    passes = "1 pass" if entry["passes"] == 1 else f"{entry['passes']} passes"
    note = f"probability-flow ODE, {passes}, {entry['nfe']:.0f} NFE"
    if math.isfinite(entry["solver_error"]):
        note += f"; estimated solver error {entry['solver_error']:.2g}"
    if entry["probe_stderr"] is not None:
        note += f"; part of the standard error due to the probes {entry['probe_stderr']:.2g}"
    name = f"bits/dim, {entry['data']} images"
    bound_note = "variational: an upper bound in the mean"
    gap, stderr = entry["gap"]["mean"], entry["gap"]["stderr"]
    if gap < 0:
        reason = "this is within 2 standard errors"
        if -gap > 2 * stderr:
            reason = "it bounds the density of the reverse SDE, and the score is not exact"
        bound_note += f"; it is {-gap:.4f} +- {stderr:.4f} bits/dim lower than the value: {reason}"
    return [
        summary_measure(name, entry, note),
        summary_measure(f"{name}, bound", entry["bound"], bound_note),
    ]


NOTE = "denoising score matching, without dropout"
LOSS = Stage(
    name="loss",
    key="loss",
    kind="loss",
    check=functools.partial(check_images, split="test"),
    run=run_loss,
    measures=lambda entry: [summary_measure("held-out loss", entry, NOTE)],
)
BITS = Stage(
    name="bpd", key="bpd", kind="bpd", check=check_bits, run=run_bits, measures=measures_of_bits
)
