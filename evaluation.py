"""Evaluation of checkpoints: loss, bits/dim, samples; in rounds that are files on disk, so that a restart goes on.

Results of checkpoint K lie in `WORKDIR/EVAL_FOLDER/checkpoint_K/`: a file for each finished round, the sample grid, and
results.json with averages over all rounds. Measures of sample quality (FID, IS, KID) will read the rounds of samples.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jax import Array
from tqdm import tqdm

import datasets
import likelihood
import sampling
import sharding
from checkpoints import Checkpoints
from errors import InputError, choose
from experiment import Config, Experiment, Params, check_config, claim, write_atomically

Arrays = dict[str, np.ndarray]
Results = dict[str, Any]

GRID = 100  # images in the sample grid, at most
OF_THE_NETWORK = ("data.", "model.", "training.sde", "training.continuous")
OF_THE_ROUNDS = (*OF_THE_NETWORK, "seed", "eval.", "sampling.", "training.reduce_mean", "training.likelihood_weighting")
FREE = ("eval.begin_ckpt", "eval.end_ckpt", "eval.enable_", "model.ema_rate", "model.dropout")


def evaluate(config: Config, workdir: str, eval_folder: str = "eval") -> dict[int, Results]:
    """Evaluates the checkpoints begin_ckpt .. end_ckpt of `workdir` as config.eval says; returns results by number.

    Raises InputError for a bad config, a workdir or eval folder of another one, and if there is nothing to evaluate.
    """
    experiment = Experiment(config)
    config = experiment.config
    stages = [stage for name, stage in STAGES.items() if config.eval[f"enable_{name}"]]
    choose(BPD_IMAGES, config.eval.bpd_dataset.lower(), "eval.bpd_dataset")
    if loss_stage in stages or bpd_stage in stages:
        _check_images(experiment)
    if not Path(workdir).is_dir():
        raise InputError(f"--workdir={workdir} does not exist; train first, with --mode=train.")
    may_change = FREE + (("model.num_scales",) if config.training.continuous else ())
    check_config(workdir, config, lambda field: field.startswith(OF_THE_NETWORK) and not field.startswith(may_change))
    checkpoints = Checkpoints(workdir)
    kept, begin, end = checkpoints.kept(), config.eval.begin_ckpt, config.eval.end_ckpt
    found = [kept[number] for number in sorted(kept) if begin <= number <= end]
    if not found:
        raise InputError(
            f"{workdir} has no checkpoint from eval.begin_ckpt = {begin} to eval.end_ckpt = {end}; "
            f"it has: {', '.join(map(str, sorted(kept))) or 'none'}."
        )
    folder = Path(workdir) / eval_folder
    claim(folder, config, lambda field: field.startswith(OF_THE_ROUNDS) and not field.startswith(FREE))
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
        for stage in stages:
            result |= stage(experiment, ema, here)
        write_atomically(here / "results.json", lambda file, r=result: file.write(json.dumps(r, indent=2).encode()))
        results[each.number] = result
    if not results:
        raise InputError(f"None of the {len(found)} checkpoints asked for can be read.")
    print(_table(results, folder))
    return results


def _check_images(experiment: Experiment) -> None:
    try:
        len(experiment.test)
    except InputError as error:
        hint = "eval.enable_loss and eval.enable_bpd need its images; eval.enable_sampling does not."
        raise InputError(f"{error} {hint}") from error


# --- stages: (experiment, EMA parameters, folder) -> results ----------------------------------------------------------


def loss_stage(experiment: Experiment, ema: Params, folder: Path) -> Results:
    """The denoising loss of the test images, as in training but without dropout and flips."""
    images = experiment.test
    jobs = datasets.rounds(images, experiment.config.eval.batch_size)

    def compute(index: int) -> Arrays:
        indices, count = jobs[index]
        key = jax.random.fold_in(experiment.key("loss"), index)
        loss, _ = sharding.fetch(experiment.held_out_loss(ema, experiment.rows(images.pixels[indices]), key))
        return {"loss": loss[:count]}

    rounds = [np.load(path) for path in run_rounds(folder, "loss", len(jobs), compute)]
    return {"loss": _summary(np.concatenate([each["loss"] for each in rounds]))}


def bpd_stage(experiment: Experiment, ema: Params, folder: Path) -> Results:
    """bits/dim of uniformly dequantized images, over config.eval.bpd_num_repeats passes of the data set."""
    config = experiment.config.eval
    images = BPD_IMAGES[config.bpd_dataset.lower()](experiment)
    jobs = datasets.rounds(images, config.batch_size)
    bits_per_dim = compile_bits_per_dim(experiment)

    def compute(index: int) -> Arrays:
        repeat, (indices, count) = index // len(jobs), jobs[index % len(jobs)]
        batch = experiment.rows(images.pixels[indices]), experiment.rows(indices), repeat
        bpd, nfe = sharding.fetch(bits_per_dim(ema, *batch))
        return {"bpd": bpd[:count], "nfe": nfe[:count]}

    rounds = [np.load(path) for path in run_rounds(folder, "bpd", config.bpd_num_repeats * len(jobs), compute)]
    bpd, nfe = (np.concatenate([each[name] for each in rounds]).reshape(-1, len(images)) for name in ("bpd", "nfe"))
    summary = _summary(bpd.mean(0)) | {"passes": config.bpd_num_repeats, "nfe": float(nfe.mean())}
    return {"bpd": summary | {"data": config.bpd_dataset}}


def sampling_stage(experiment: Experiment, ema: Params, folder: Path) -> Results:
    """Images 0 .. num_samples - 1, uint8 (N, H, W, C) in the rounds, and a grid of the first ones."""
    config = experiment.config.eval
    size, total = config.batch_size, config.num_samples

    def compute(index: int) -> Arrays:
        samples, nfe = experiment.sample_images(ema, index * size, size)
        count = min(size, total - index * size)
        return {"samples": samples[:count], "nfe": nfe[:count]}

    paths = run_rounds(folder, "samples", -(-total // size), compute)
    nfe = np.concatenate([np.load(path)["nfe"] for path in paths])
    head = np.concatenate([np.load(path)["samples"] for path in paths[: -(-GRID // size)]])[:GRID]
    picture = folder / "samples.png"
    write_atomically(picture, lambda file: datasets.image_grid(head).save(file, "png"))
    return {"samples": {"images": total, "nfe": float(nfe.mean()), "picture": str(picture)}}


STAGES = {"loss": loss_stage, "bpd": bpd_stage, "sampling": sampling_stage}
"""Each is turned on by `config.eval.enable_NAME`."""

BPD_IMAGES = {"test": lambda experiment: experiment.test, "train": lambda experiment: experiment.train}


def run_rounds(folder: Path, name: str, count: int, compute: Callable[[int], Arrays]) -> list[Path]:
    """Computes those of the rounds 0 .. count - 1 that are not on disk yet; returns the files of all."""
    paths = [folder / f"{name}_{index}.npz" for index in range(count)]
    missing = [(index, path) for index, path in enumerate(paths) if not path.exists()]
    print(f"{folder.name}: {name}, {len(missing)} of {count} rounds to do", flush=True)
    for index, path in tqdm(missing, unit="round", disable=None):
        arrays = compute(index)
        write_atomically(path, lambda file, arrays=arrays: np.savez(file, **arrays))
    return paths


def compile_bits_per_dim(experiment: Experiment) -> Callable[[Params, Array, Array, int], tuple[Array, Array]]:
    """(params, uint8 images (B, H, W, C), their numbers (B,), pass) -> bits/dim (B,), score evaluations (B,)."""
    split, whole = sharding.along_axis(experiment.mesh), sharding.replicated(experiment.mesh)
    sde, scaler = experiment.sde, experiment.scaler

    @functools.partial(jax.jit, in_shardings=(whole, split, split, whole), out_shardings=(split, split))
    def bits_per_dim(params: Params, images: Array, indices: Array, repeat: Array) -> tuple[Array, Array]:
        keys = sampling.image_keys(jax.random.fold_in(experiment.key("bpd"), repeat), indices)
        x = scaler.dequantize(images, sampling.uniform(sampling.fold_in(keys, 0), images.shape))
        probes = likelihood.draw_probes(sampling.fold_in(keys, 1), x.shape)
        logp, _, nfe = likelihood.log_likelihood(experiment.score(params), sde, x, probes)
        return likelihood.bits_per_dim(logp, math.prod(x.shape[1:]), scaler.log_scale), nfe

    return bits_per_dim


def _summary(values: np.ndarray) -> Results:
    """Mean over images with its standard error; images whose solve failed (NaN) are counted and left out."""
    good = values[np.isfinite(values)]
    if len(good) < 2:
        raise InputError(f"Only {len(good)} of {len(values)} images could be evaluated; there is no mean to give.")
    stderr = float(good.std(ddof=1) / math.sqrt(len(good)))
    return {"mean": float(good.mean()), "stderr": stderr, "images": len(good), "failed": len(values) - len(good)}


def _table(results: dict[int, Results], folder: Path) -> str:
    lines = [f"{'checkpoint':>10}  {'step':>8}  {'loss':>18}  {'bits/dim':>18}  {'samples':>14}"]
    for number, result in results.items():
        cells = [f"{number:>10}", f"{result['step']:>8}"]
        for name in ("loss", "bpd"):
            each = result.get(name)
            cells.append(f"{each['mean']:.4f} +- {each['stderr']:.4f}" if each else "-")
        samples = result.get("samples")
        cells.append(f"{samples['images']}, {samples['nfe']:.0f} NFE" if samples else "-")
        lines.append("  ".join(f"{cell:>{width}}" for cell, width in zip(cells, (10, 8, 18, 18, 14))))
    pictures = [result["samples"]["picture"] for result in results.values() if "samples" in result]
    return "\n".join([*lines, *(f"picture: {picture}" for picture in pictures), f"results: {folder}"])
