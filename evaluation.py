"""Evaluation of checkpoints: loss, bits/dim, samples; in rounds that are files on disk, so that a restart goes on.

Results of checkpoint K lie in `WORKDIR/EVAL_FOLDER/checkpoint_K/`: a file for each finished round, the sample grid, and
results.json with averages over all rounds. The report of all checkpoints lies above them.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax import Array

import datasets
import likelihood
import report
import sampling
import sharding
from auxiliary import classification, dequantization
from auxiliary.dequantization import Dequantize
from checkpoints import Checkpoints
from configs.default import Config
from errors import InputError, check_name, choose
from experiment import Experiment
from metrics import sample_quality
from models.building import Params
from workdir import (
    Arrays,
    check_workdir,
    claim,
    load_rounds,
    run_rounds,
    write_atomically,
    write_picture,
)

Results = dict[str, Any]

GRID = 100  # images in the sample grid, at most
FOLLOWED = 8  # images in the picture of trajectories


def evaluate(config: Config, workdir: str, eval_folder: str = "eval") -> dict[int, Results]:
    """Evaluates the checkpoints begin_ckpt .. end_ckpt of `workdir` as config.eval says; returns results by number.

    Raises InputError for a bad config, a workdir or eval folder of another one, and if there is nothing to evaluate.
    """
    experiment = Experiment(config)
    config = experiment.config
    stages = [stage for name, stage in STAGES.items() if config.eval[f"enable_{name}"]]
    choose(BPD_IMAGES, config.eval.bpd_dataset.lower(), "eval.bpd_dataset")
    check_name(config.eval.bpd_trace, likelihood.PROBES, "eval.bpd_trace")
    if not 0 < config.eval.bpd_t_min < experiment.sde.T or config.eval.bpd_tolerance <= 0:
        raise InputError(
            f"eval.bpd_t_min = {config.eval.bpd_t_min} must lie between 0 and {experiment.sde.T}, and "
            f"eval.bpd_tolerance = {config.eval.bpd_tolerance} above 0."
        )
    if loss_stage in stages or bpd_stage in stages:
        _check_images(experiment)
    check_workdir(workdir, config)
    if sampling_stage in stages:
        classification.provide(experiment, workdir)
    checkpoints = Checkpoints(workdir)
    kept, begin, end = checkpoints.snapshots(), config.eval.begin_ckpt, config.eval.end_ckpt
    found = [kept[number] for number in sorted(kept) if begin <= number <= end]
    if not found:
        raise InputError(
            f"{workdir} has no checkpoint from eval.begin_ckpt = {begin} to eval.end_ckpt = {end}; "
            f"it has: {', '.join(map(str, sorted(kept))) or 'none'}."
        )
    if config.eval.enable_metrics and sampling_stage in stages:
        stages.append(sample_quality.make_stage(experiment, workdir))
    elif config.eval.enable_metrics:
        logging.warning(
            "eval.enable_metrics measures samples, which eval.enable_sampling = False leaves out: skipped."
        )
    folder = Path(workdir) / eval_folder
    claim(folder, config, "evaluation")
    report.note_environment(folder, experiment.mesh)
    results = {}
    for each in found:
        try:
            ema = checkpoints.restore(each, {"ema": experiment.abstract_params})["ema"]
        except InputError as error:
            logging.warning("%s It is not evaluated.", error)
            continue
        here = folder / f"checkpoint_{each.number}"
        here.mkdir(exist_ok=True)
        result = {"step": each.step}
        dequantize = (
            dequantization.make(experiment, workdir, each.number) if bpd_stage in stages else None
        )
        for stage in stages:
            result |= stage(experiment, ema, here, dequantize)
        write_atomically(
            here / "results.json",
            lambda file, r=result: file.write(json.dumps(r, indent=2).encode()),
        )
        results[each.number] = result
    if not results:
        raise InputError(f"None of the {len(found)} checkpoints asked for can be read.")
    print(_table(results, folder))
    return results


def _check_images(experiment: Experiment) -> None:
    try:
        len(experiment.test)
    except InputError as error:
        hint = (
            "eval.enable_loss and eval.enable_bpd need its images; eval.enable_sampling does not."
        )
        raise InputError(f"{error} {hint}") from error


# --- stages: (experiment, EMA parameters, folder, dequantize) -> results ----------------------------------------------


def loss_stage(
    experiment: Experiment, ema: Params, folder: Path, dequantize: Dequantize
) -> Results:
    """The denoising loss of the test images, as in training but without dropout and flips.

    A network that knows classes is told them all.
    """
    images = experiment.test
    jobs = datasets.rounds(images, experiment.config.eval.batch_size)

    def compute(index: int) -> Arrays:
        indices, count = jobs[index]
        key = jax.random.fold_in(experiment.key("loss"), index)
        batch = experiment.rows(images.batch(indices, labelled=experiment.labelled))
        loss, _ = sharding.fetch(experiment.held_out_loss(ema, batch, key))
        return {"loss": loss[:count]}

    return {
        "loss": _summary(load_rounds(run_rounds(folder, "loss", len(jobs), compute, {}))["loss"])
    }


def bpd_stage(experiment: Experiment, ema: Params, folder: Path, dequantize: Dequantize) -> Results:
    """bits/dim of dequantized images, over config.eval.bpd_num_repeats passes of the data set.

    Beside their mean: the part of its standard error that is due to the probes (none with 'exact', null if there is but
    one), the mean of the solver's estimates of its error, and the variational bound. All but nfe is in bits/dim. A
    network that knows classes is told "no class": what is evaluated is p(x), not p(x | class).
    """
    config = experiment.config.eval
    images = BPD_IMAGES[config.bpd_dataset.lower()](experiment)
    jobs = datasets.rounds(images, config.batch_size)
    bits_per_dim = compile_bits_per_dim(experiment, dequantize)

    def compute(index: int) -> Arrays:
        repeat, (indices, count) = index // len(jobs), jobs[index % len(jobs)]
        batch = experiment.rows(images.pixels[indices]), experiment.rows(indices), repeat
        return {
            name: array[:count] for name, array in sharding.fetch(bits_per_dim(ema, *batch)).items()
        }

    rounds = load_rounds(run_rounds(folder, "bpd", config.bpd_num_repeats * len(jobs), compute, {}))
    of_images = {name: array.reshape(-1, len(images)) for name, array in rounds.items()}
    probe_stderr = float(np.sqrt(np.nansum(of_images["probe_stderr"] ** 2)) / of_images["bpd"].size)
    return {
        "bpd": _summary(of_images["bpd"].mean(0))
        | {
            "passes": config.bpd_num_repeats,
            "nfe": float(of_images["nfe"].mean()),
            "data": config.bpd_dataset,
            "probe_stderr": None if np.isnan(of_images["probe_stderr"]).all() else probe_stderr,
            "solver_error": float(np.nanmean(of_images["solver_error"])),
            "bound": _summary(of_images["bound"].mean(0)),
        }
    }


def sampling_stage(
    experiment: Experiment, ema: Params, folder: Path, dequantize: Dequantize
) -> Results:
    """Images 0 .. num_samples - 1, uint8 (N, H, W, C) in the rounds, and a grid of the first ones.

    One round of images is in memory at a time. Rounds hold `classes` (N,), too, if config.guidance asks for them, the
    `seconds` (1,) that they took, and whether they were the `first` (1,) of a run, which compiles.
    """
    config = experiment.config.eval
    size, total, done = config.batch_size, config.num_samples, []

    def compute(index: int) -> Arrays:
        start = time.monotonic()
        samples, nfe, frames = experiment.sample_images(ema, index * size, size)
        times = {"seconds": np.array([time.monotonic() - start]), "first": np.array([not done])}
        done.append(index)
        if index == 0 and len(frames):
            grid = datasets.image_grid(
                np.concatenate(list(frames[:, :FOLLOWED].swapaxes(0, 1))), columns=len(frames)
            )
            write_picture(folder / "trajectory.png", grid)
        count = min(size, total - index * size)
        asked = experiment.classes(np.arange(index * size, index * size + count))
        labels = {} if asked is None else {"classes": np.asarray(asked)}
        return {"samples": samples[:count], "nfe": nfe[:count]} | labels | times

    paths = run_rounds(folder, "samples", -(-total // size), compute, {})
    nfe = load_rounds(paths, "nfe")["nfe"]
    head = load_rounds(paths[: -(-GRID // size)], "samples")["samples"][:GRID]
    picture = folder / "samples.png"
    write_picture(picture, datasets.image_grid(head))
    result = {"images": total, "nfe": float(nfe.mean()), "picture": str(picture)}
    if experiment.config.guidance.classes:
        kind = "classifier-free" if experiment.labelled else "classifier"
        asked = json.loads(json.dumps(experiment.config.guidance.to_dict()))
        result["guidance"] = {"kind": kind} | asked
    return {"samples": result}


STAGES = {"loss": loss_stage, "bpd": bpd_stage, "sampling": sampling_stage}
"""Each is turned on by `config.eval.enable_NAME`; `enable_metrics` adds the one of `image_quality`."""

BPD_IMAGES = {
    "test": lambda experiment: experiment.test,
    "train": lambda experiment: experiment.train,
}


def compile_bits_per_dim(
    experiment: Experiment, dequantize: Dequantize
) -> Callable[[Params, Array, Array, int], dict[str, Array]]:
    """(params, uint8 images (B, H, W, C), their numbers (B,), pass) -> arrays (B,), in bits/dim but for nfe.

    bpd, nfe: by the ODE; probe_stderr: the standard error that its probes leave, NaN if there is but one; solver_error:
    the solver's estimate of it; bound: `likelihood.elbo` of the same dequantized images.
    """
    split, whole = sharding.along_axis(experiment.mesh), sharding.replicated(experiment.mesh)
    scaler, config = experiment.scaler, experiment.config.eval
    sde = dataclasses.replace(experiment.sde, t_min=config.bpd_t_min)

    @functools.partial(jax.jit, in_shardings=(whole, split, split, whole), out_shardings=split)
    def bits_per_dim(
        params: Params, images: Array, indices: Array, repeat: Array
    ) -> dict[str, Array]:
        keys = sampling.image_keys(jax.random.fold_in(experiment.key("bpd"), repeat), indices)
        noise_keys, probe_keys, bound_keys = (
            sampling.fold_in(keys, purpose) for purpose in range(3)
        )
        x, log_q = dequantize(images, noise_keys)
        probes = likelihood.draw_probes(probe_keys, x.shape, config.bpd_trace, config.bpd_probes)
        score = experiment.score(params)
        ode = likelihood.log_likelihood(score, sde, x, probes, tolerance=config.bpd_tolerance)
        bound = likelihood.elbo(score, sde, x, bound_keys)
        dims = math.prod(x.shape[1:])
        bits = functools.partial(likelihood.bits_per_dim, dims=dims, log_scale=scaler.log_scale)
        spread = 0.0 * ode.logp if config.bpd_trace == "exact" else _stderr(bits(ode.per_probe))
        error = ode.error / (dims * math.log(2))
        return {
            "bpd": bits(ode.logp - log_q),
            "nfe": ode.nfe,
            "probe_stderr": spread,
            "solver_error": error,
            "bound": bits(-bound.nats - log_q),
        }

    return bits_per_dim


def _stderr(values: Array) -> Array:
    """Standard error of the mean over the last axis; NaN if that has one entry."""
    count = values.shape[-1]
    if count == 1:
        return jnp.full(values.shape[:-1], jnp.nan)
    return values.std(-1, ddof=1) / math.sqrt(count)


def _summary(values: np.ndarray) -> Results:
    """Mean over images with its standard error; images whose solve failed (NaN) are counted and left out."""
    good = values[np.isfinite(values)]
    if len(good) < 2:
        raise InputError(
            f"Only {len(good)} of {len(values)} images could be evaluated; there is no mean to give."
        )
    stderr = float(good.std(ddof=1) / math.sqrt(len(good)))
    return {
        "mean": float(good.mean()),
        "stderr": stderr,
        "images": len(good),
        "failed": len(values) - len(good),
    }


def _table(results: dict[int, Results], folder: Path) -> str:
    widths = (10, 8, 18, 18, 18, 14)
    lines = [("checkpoint", "step", "loss", "bits/dim", "bound", "samples")]
    for number, result in results.items():
        summaries = result.get("loss"), result.get("bpd"), result.get("bpd", {}).get("bound")
        cells = [
            f"{each['mean']:.4f} +- {each['stderr']:.4f}" if each else "-" for each in summaries
        ]
        samples = result.get("samples")
        cells.append(f"{samples['images']}, {samples['nfe']:.0f} NFE" if samples else "-")
        lines.append((str(number), str(result["step"]), *cells))
    table = ["  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths)) for line in lines]
    pictures = [result["samples"]["picture"] for result in results.values() if "samples" in result]
    measured = sample_quality.table(results)
    return "\n".join(
        [
            *table,
            *measured,
            *(f"picture: {picture}" for picture in pictures),
            f"results: {folder}/report.html",
        ]
    )
