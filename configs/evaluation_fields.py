"""Config fields of sampling, guidance, inverse problems and evaluation."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from typing import Any

import likelihood
import samplers
import solvers
from configs.declaration import BATCH, WIDTH, Field
from configs.groups import (
    CALIBRATION,
    CLASSIFIER,
    GUIDANCE,
    LIKELIHOOD,
    NOTHING,
    QUALITY,
    RESTORE,
    ROUNDS,
    SAMPLES,
)
from controllable.methods import METHODS
from controllable.tasks import TASKS
from options import (
    COUNT,
    FLAG,
    NOT_NEGATIVE,
    POSITIVE,
    TOLERANCE,
    Code,
    Entries,
    FilePath,
    Integer,
    Name,
    Options,
    Real,
    Sequence,
)

FEATURES = ("inception", "inception_tf", "classifier")

SAMPLING = {
    "sampling.method": Field(
        "pc",
        Name(("pc", "ode", "solver")),
        (SAMPLES,),
        "pc: predictor and corrector; ode: the probability flow with adaptive steps; solver: "
        "sampling.solver.",
    ),
    "sampling.solver": Field(
        samplers.DEFAULT,
        Name(ChainMap[str, Any](solvers.SOLVERS, {samplers.ADAPTIVE: None})),
        (SAMPLES,),
        "The solver of sampling.method = 'solver'.",
    ),
    "sampling.num_steps": Field(
        0,
        Integer(0, samplers.MOST_STEPS),
        (SAMPLES,),
        "Steps of the sampler; 0 for 20 steps of a solver, and model.num_scales of pc.",
    ),
    "sampling.temperature": Field(1.0, Real(0, 2), (SAMPLES,), "Scale of the initial noise."),
}


def sampler_fields() -> dict[str, Field]:
    """Return the options of all samplers as fields of config.sampling."""
    owners = {name: kind.options for name, kind in samplers.kinds().items()}
    return options_of("sampling", owners, (SAMPLES,))


def restoration_fields() -> dict[str, Field]:
    """Return the options of all tasks and methods as fields of config.restore."""
    owners = {name: entry.options for name, entry in (*TASKS.items(), *METHODS.items())}
    return options_of("restore", owners, (RESTORE,))


def options_of(
    section: str, owners: Mapping[str, Options], affects: tuple[str, ...]
) -> dict[str, Field]:
    """Return the options of registry entries as fields of a section."""
    return {
        f"{section}.{name}": Field(option.default, option.domain, affects, option.meaning)
        for options in owners.values()
        for name, option in options.items()
    }


GUIDE = {
    "guidance.classes": Field(
        (),
        Sequence(Integer(0, 10**6), 0, 10**6),
        (GUIDANCE,),
        "Image i is of class classes[i % len(classes)]; () for any class.",
    ),
    "guidance.scale": Field(1.0, NOT_NEGATIVE, (GUIDANCE,), "Guidance scale."),
    "guidance.interval": Field(
        (0.0, 1e6),
        Entries((NOT_NEGATIVE, NOT_NEGATIVE)),
        (GUIDANCE,),
        "Noise levels std / alpha in which the scale applies; it is 1 outside.",
    ),
}

CLASSIFY = {
    "classifier.num_classes": Field(10, Integer(1, 10**6), (CLASSIFIER,), "Classes."),
    "classifier.blocks_per_group": Field(4, Integer(1, 1000), (CLASSIFIER,), "Blocks of a group."),
    "classifier.channel_multiplier": Field(10, Integer(1, 1000), (CLASSIFIER,), "Width."),
    "classifier.batch_size": Field(128, BATCH, (CLASSIFIER,), "Images of a training step."),
    "classifier.n_iters": Field(100_000, COUNT, (CLASSIFIER,), "Training steps."),
    "classifier.lr": Field(1e-3, POSITIVE, (CLASSIFIER,), "Learning rate."),
    "classifier.weight_decay": Field(5e-4, NOT_NEGATIVE, (CLASSIFIER,), "Weight decay."),
}

RESTORATION = {
    "restore.input": Field(
        "", FilePath(), (RESTORE,), "An image or a folder of images; '' for test images."
    ),
    "restore.observed": Field(False, FLAG, (RESTORE,), "The input is the measurement."),
    "restore.count": Field(8, COUNT, (RESTORE,), "Largest number of images."),
    "restore.samples": Field(4, Integer(1, 10**4), (RESTORE,), "Solutions for each image."),
    "restore.task": Field(
        "inpaint", Name(TASKS, exact=True), (RESTORE,), "What is measured; see docs/usage.md."
    ),
    "restore.method": Field(
        "ddrm", Name(METHODS, exact=True), (RESTORE,), "The posterior sampler."
    ),
    "restore.noise": Field(
        0.0, Real(0, 1000), (RESTORE,), "Standard deviation of the noise, for images in [0, 1]."
    ),
}

CALIBRATE = {
    "calibrate.simulations": Field(
        200, Integer(20, 10**6), NOTHING, "Images whose measurements are solved."
    ),
    "calibrate.samples": Field(
        63, Integer(20, 10**4), (CALIBRATION,), "Solutions for each of these images."
    ),
}

RECONSTRUCTION = {
    "ema.std": Field(
        0.0,
        Real(0, WIDTH.high),
        NOTHING,
        "Relative width of the average that --mode=ema reconstructs; 0 for none.",
    ),
}

EVAL = {
    "eval.begin_ckpt": Field(1, Integer(0, 10**9), NOTHING, "First checkpoint to evaluate."),
    "eval.end_ckpt": Field(26, Integer(0, 10**9), NOTHING, "Last checkpoint to evaluate."),
    "eval.batch_size": Field(1024, BATCH, (ROUNDS,), "Images of a round."),
    "eval.num_samples": Field(50_000, COUNT, (ROUNDS,), "Images to generate."),
    "eval.enable_sampling": Field(False, FLAG, NOTHING, "Generate images."),
    "eval.enable_loss": Field(True, FLAG, NOTHING, "Compute the held-out loss."),
    "eval.enable_bpd": Field(False, FLAG, NOTHING, "Compute bits/dim."),
    "eval.bpd_dataset": Field(
        "test", Name(("train", "test")), (LIKELIHOOD,), "Split whose bits/dim are computed."
    ),
    "eval.bpd_num_repeats": Field(5, Integer(1, 10**4), (LIKELIHOOD,), "Passes over the images."),
    "eval.bpd_probes": Field(1, Integer(1, 10**6), (LIKELIHOOD,), "Probes of the trace."),
    "eval.bpd_trace": Field(
        "Rademacher",
        Name(likelihood.PROBES, exact=True),
        (LIKELIHOOD,),
        "Rademacher or Gaussian probes, or the exact trace.",
    ),
    "eval.bpd_tolerance": Field(
        1e-3, TOLERANCE, (LIKELIHOOD,), "Tolerance of an adaptive step, in nats/dim among others."
    ),
    "eval.enable_metrics": Field(
        False, FLAG, NOTHING, "Compute FID, KID, inception score, precision and recall."
    ),
    "eval.features": Field(
        "inception",
        Code(FEATURES),
        (QUALITY,),
        "inception, inception_tf, classifier or module:function.",
    ),
    "eval.inception_path": Field(
        "", FilePath(), (QUALITY,), "The weights of FID's Inception network."
    ),
    "eval.stats_path": Field("", FilePath(), (QUALITY,), "Reference statistics."),
    "eval.stats_split": Field(
        "train", Name(("train", "test"), exact=True), (QUALITY,), "Split of the reference images."
    ),
    "eval.legacy_rounding": Field(
        False, FLAG, (SAMPLES,), "Truncate samples to bytes, as the official code does."
    ),
    "eval.bpd_t_min": Field(
        1e-5,
        POSITIVE,
        (LIKELIHOOD,),
        "Time at which images are placed, not below the smallest one of training.",
    ),
}
