"""The table of config fields, by the results (`fields.GROUPS`) that they affect.

Names and defaults are those of the official release; tests/test_configs.py lists the exceptions.
"""

from __future__ import annotations

from collections import ChainMap
from typing import Any, NamedTuple

import datasets
import likelihood
import sampling
import solvers
from controllable.methods import METHODS
from controllable.tasks import TASKS
from models import NETWORKS
from models.layers import ACTIVATIONS
from models.score import PARAMETERIZATIONS
from options import (
    COUNT,
    FINITE,
    FLAG,
    NOISE_SCALE,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    TOLERANCE,
    AnyOf,
    Code,
    Domain,
    Entries,
    FilePath,
    Integer,
    Name,
    Option,
    Options,
    Real,
    Sequence,
    Word,
)
from sde_lib import SDES
from solvers.density import STEPS

ABSENT = object()
"""The default of a field that a config need not have, such as an option of some networks."""

FEATURES = ("inception", "inception_tf", "classifier")

_BATCH = Integer(1, 10**6)
_SIDE = Integer(1, 4096)  # pixels
_PART = Real(0, 1, open_low=True, open_high=True)
_SPLIT = Name(("train", "test"))
_WIDTH = Real(0, 0.3, open_low=True)  # of power-function averages, none of which has 0.3003 or more


class Field(NamedTuple):
    """A default, or ABSENT; the values that are allowed; the meaning; and the groups of
    results, of GROUPS, that change with it.
    """

    default: Any
    domain: Domain
    meaning: str
    affects: tuple[str, ...]


_DATA_AND_NETWORK = {
    "data.mean": Option((), Sequence(FINITE, 0, 10**6), "Mean of each entry, or of all."),
    "data.std": Option((), Sequence(NOISE_SCALE, 0, 10**6), "Standard deviation, likewise."),
    "data.value_range": Option(
        (),
        Entries((FINITE, FINITE), optional=True),
        "Range of arrays of real numbers; () for bytes.",
    ),
    "data.image_size": Option(
        32,
        AnyOf((_SIDE, Sequence(_SIDE, 0, 4))),
        "Height and width: an integer for squares, or (height, width); () for vectors.",
    ),
    "data.num_channels": Option(3, Integer(1, 1024), "Channels of an image."),
}
_IMAGES = {
    "data.dataset": Option("CIFAR10", Name(datasets.DATASETS), "The data set; see docs/data.md."),
    "data.condition": Option((), Sequence(Word(), 0, 16), "Names of conditions; see docs/data.md."),
    "data.category": Option(ABSENT, Word(), "The category of LSUN, such as bedroom."),
    "data.held_out": Option(0.1, _PART, "Held-out share of images without splits."),
}
_LOCATION = {
    "data.path": Option("", FilePath(), "Where the images are; see docs/data.md."),
    "data.tfrecords_path": Option(ABSENT, FilePath(), "The official name of data.path."),
}
_NETWORK_AND_NOISE = {
    "data.uniform_dequantization": Option(False, FLAG, "Add uniform noise to gray levels."),
    "data.centered": Option(False, FLAG, "Scale images to [-1, 1] instead of [0, 1]."),
    "model.sigma_min": Option(0.01, NOISE_SCALE, "Lowest noise scale of the VE SDE."),
    "model.sigma_max": Option(50.0, NOISE_SCALE, "Highest noise scale of the VE SDE."),
    "model.beta_min": Option(0.1, NOISE_SCALE, "beta(0) of the VP and sub-VP SDEs."),
    "model.beta_max": Option(20.0, NOISE_SCALE, "beta(T) of the VP and sub-VP SDEs."),
    "model.offset": Option(ABSENT, NOISE_SCALE, "Offset of the cosine schedule; 0.008 if missing."),
    "training.sde": Option("vesde", Name(SDES), "The SDE."),
    "model.T": Option(ABSENT, NOISE_SCALE, "The last time of the SDE."),
    "model.t_min": Option(ABSENT, NOISE_SCALE, "The first time of training, and of densities."),
    "model.t_end": Option(ABSENT, NOISE_SCALE, "The time at which samplers stop."),
}
_NETWORK = {
    "data.num_classes": Option(0, Integer(0, 10**6), "Classes of the condition; 0 for none."),
    "data.vector_size": Option(0, Integer(0, 10**6), "Entries of the vector of the condition."),
    "data.vector_mean": Option((), Sequence(FINITE, 0, 10**6), "Mean of each entry."),
    "data.vector_std": Option((), Sequence(NOISE_SCALE, 0, 10**6), "Std of each; () for 1."),
    "data.image_channels": Option(0, Integer(0, 1024), "Channels of the image of the condition."),
    "model.parameterization": Option(
        "default",
        Name(ChainMap[str, Any]({"default": None}, PARAMETERIZATIONS)),
        "What the network's output estimates; 'default' depends on training.sde.",
    ),
    "model.sigma_data": Option(0.5, NOISE_SCALE, "Data's standard deviation, for 'edm'."),
    "model.embedding_type": Option(
        "fourier",
        Name(("fourier", "positional", "fourier_linear", "positional_log")),
        "Embedding of the noise level in NCSN++, DDPM++ and ADM; two take its logarithm.",
    ),
    "model.noise_mult": Option(ABSENT, Integer(0, 2**10), "Features of the embedding / model.nf."),
    "model.temb_mult": Option(ABSENT, Integer(1, 2**10), "Those after its layers / model.nf."),
    "model.class_embedding": Option(
        ABSENT,
        Name(("after", "before")),
        "Whether NCSN++ adds classes after the dense layers.",
    ),
    "model.vector_at": Option(ABSENT, Name(("embedding", "input")), "Where the MLP adds a vector."),
    "model.scale_by_sigma": Option(True, FLAG, "Divide the network's output by the noise scale."),
    "model.name": Option(ABSENT, Name(NETWORKS, exact=True), "The network."),
    "model.nf": Option(ABSENT, Integer(1, 2**16), "Features of the first level."),
    "model.ch_mult": Option(ABSENT, Sequence(Integer(1, 2**10), 1, 16), "Features / model.nf."),
    "model.num_res_blocks": Option(ABSENT, Integer(0, 32), "Residual blocks of a level."),
    "model.attn_resolutions": Option(ABSENT, Sequence(_SIDE, 0, 16), "Sides with self-attention."),
    "model.attend_after_each_up_block": Option(ABSENT, FLAG, "As in Ho et al. (2020)."),
    "model.resamp_with_conv": Option(ABSENT, FLAG, "Resampling layers convolve."),
    "model.conditional": Option(ABSENT, FLAG, "Condition on the noise level."),
    "model.fir": Option(ABSENT, FLAG, "Resample through a FIR filter."),
    "model.fir_kernel": Option(ABSENT, Sequence(FINITE, 1, 32), "Coefficients of the FIR filter."),
    "model.skip_rescale": Option(ABSENT, FLAG, "Divide residual sums by sqrt(2)."),
    "model.resblock_type": Option(ABSENT, Name(("biggan", "ddpm")), "The residual block."),
    "model.progressive": Option(
        ABSENT, Name(("none", "output_skip", "residual")), "How lower levels enter the output."
    ),
    "model.progressive_input": Option(
        ABSENT, Name(("none", "input_skip", "residual")), "How lower levels receive the input."
    ),
    "model.progressive_combine": Option(ABSENT, Name(("sum", "cat")), "How input skips join."),
    "model.nonlinearity": Option(ABSENT, Name(ACTIVATIONS), "Activation function."),
    "model.normalization": Option(
        ABSENT, Name(("GroupNorm", "InstanceNorm++"), exact=True), "Normalization layer."
    ),
    "model.interpolation": Option(
        ABSENT, Name(("bilinear", "nearest_neighbor"), exact=True), "Resizing in RefineNets."
    ),
    "model.num_classes": Option(ABSENT, Integer(2, 10**6), "NCSN's name of model.num_scales."),
    "training.continuous": Option(True, FLAG, "Train in continuous time."),
}
_TRAINING = {
    "data.random_flip": Option(True, FLAG, "Flip training images at random."),
    "model.ema_rate": Option(0.999, SHARE, "Decay of the parameters' moving average."),
    "model.ema_ramp": Option(
        False, FLAG, "Limit the decay to (1 + n) / (10 + n) after n steps, for short training."
    ),
    "model.ema_stds": Option(
        (),
        Sequence(_WIDTH, 0, 8),
        "Widths of further averages for --mode=ema; (0.05, 0.1) suffice.",
    ),
    "model.dropout": Option(0.1, Real(0, 1, open_high=True), "Dropout rate."),
    "model.class_dropout": Option(0.1, SHARE, "Share of conditions hidden in training."),
    "model.init_scale": Option(ABSENT, NOT_NEGATIVE, "Initial scale of a branch's last layer."),
    "model.fourier_scale": Option(ABSENT, POSITIVE, "Std of the random frequencies."),
    "training.batch_size": Option(128, _BATCH, "Images of a training step."),
    "training.n_jitted_steps": Option(5, Integer(1, 1000), "Steps of one compiled call."),
    "training.snapshot_freq": Option(50_000, COUNT, "Steps between checkpoints for evaluation."),
    "optim.optimizer": Option("Adam", Name(("adam",)), "The optimizer."),
    "optim.lr": Option(2e-4, POSITIVE, "Learning rate."),
    "optim.beta1": Option(0.9, Real(0, 1, open_high=True), "Adam's decay of the mean gradient."),
    "optim.eps": Option(1e-8, NOT_NEGATIVE, "Adam's epsilon."),
    "optim.weight_decay": Option(0.0, NOT_NEGATIVE, "Decoupled weight decay."),
    "optim.warmup": Option(5000, Integer(0, 10**9), "Steps of linear warm-up."),
    "optim.grad_clip": Option(1.0, FINITE, "Largest norm of a gradient; 0 or less for no limit."),
}
_LOSS = {
    "training.reduce_mean": Option(False, FLAG, "Mean over entries, not half their sum."),
    "training.likelihood_weighting": Option(False, FLAG, "Weight the loss by g(t)^2."),
    "training.importance_weighting": Option(False, FLAG, "Older name of 'importance'."),
    "training.time_distribution": Option(
        "uniform",
        Name(("uniform", "importance", "log_normal")),
        "Times of the loss; log_normal are EDM's noise levels, with EDM's weights.",
    ),
    "training.p_mean": Option(-1.2, Real(-100, 100), "Mean of log-normal noise levels."),
    "training.p_std": Option(1.2, Real(1e-6, 100), "Std of log-normal noise levels."),
}
_SAMPLES = {
    "sampling.method": Option(
        "pc",
        Name(("pc", "ode", "solver")),
        "Predictor-corrector, adaptive flow or few-step solver.",
    ),
    "sampling.solver": Option(
        sampling.DEFAULT,
        Name(ChainMap[str, Any](solvers.SOLVERS, {sampling.ADAPTIVE: None})),
        "The solver of sampling.method = 'solver'.",
    ),
    "sampling.num_steps": Option(
        0, Integer(0, sampling.MOST_STEPS), "Steps; 0 for 20 of a solver, model.num_scales of pc."
    ),
    "sampling.temperature": Option(1.0, Real(0, 2), "Scale of the initial noise."),
    "eval.legacy_rounding": Option(False, FLAG, "Truncate to bytes, as officially."),
}
_GUIDANCE = {
    "guidance.classes": Option(
        (), Sequence(Integer(0, 10**6), 0, 10**6), "Classes of the images in turn; () for any."
    ),
    "guidance.scale": Option(1.0, NOT_NEGATIVE, "Guidance scale."),
    "guidance.interval": Option(
        (0.0, 1e6),
        Entries((NOT_NEGATIVE, NOT_NEGATIVE)),
        "Noise levels std / alpha with this scale.",
    ),
    "guidance.checkpoint": Option(0, Integer(0, 10**9), "Snapshot for autoguidance; 0 for none."),
    "guidance.condition": Option("", FilePath(), "Conditions; '' for those of held-out images."),
}
_CLASSIFIER = {
    "classifier.num_classes": Option(10, Integer(1, 10**6), "Classes."),
    "classifier.blocks_per_group": Option(4, Integer(1, 1000), "Blocks of a group."),
    "classifier.channel_multiplier": Option(10, Integer(1, 1000), "Width."),
    "classifier.batch_size": Option(128, _BATCH, "Images of a training step."),
    "classifier.n_iters": Option(100_000, COUNT, "Training steps."),
    "classifier.lr": Option(1e-3, POSITIVE, "Learning rate."),
    "classifier.weight_decay": Option(5e-4, NOT_NEGATIVE, "Weight decay."),
}
_RESTORE = {
    "restore.input": Option("", FilePath(), "An image or a folder of images; '' for test images."),
    "restore.observed": Option(False, FLAG, "The input is the measurement."),
    "restore.count": Option(8, COUNT, "Largest number of images."),
    "restore.samples": Option(4, Integer(1, 10**4), "Solutions for each image."),
    "restore.task": Option("inpaint", Name(TASKS, exact=True), "What is measured."),
    "restore.method": Option("ddrm", Name(METHODS, exact=True), "The posterior sampler."),
    "restore.noise": Option(0.0, Real(0, 1000), "Std of the noise, for images in [0, 1]."),
}
_ROUNDS = {
    "eval.batch_size": Option(1024, _BATCH, "Images of a round."),
    "eval.num_samples": Option(50_000, COUNT, "Images to generate."),
}
_LIKELIHOOD = {
    "eval.bpd_dataset": Option("test", _SPLIT, "Split whose bits/dim are computed."),
    "eval.bpd_num_repeats": Option(5, Integer(1, 10**4), "Passes over the images."),
    "eval.bpd_probes": Option(1, Integer(1, 10**6), "Probes of the trace."),
    "eval.bpd_trace": Option(
        "Rademacher", Name(likelihood.PROBES, exact=True), "Probes, or the exact trace."
    ),
    "eval.bpd_tolerance": Option(1e-3, TOLERANCE, "Tolerance of an adaptive step (nats/dim)."),
    "eval.bpd_steps": Option(
        0, AnyOf((Integer(0, 0), Integer(*STEPS))), "Fixed noise levels; 0 for adaptive steps."
    ),
    "eval.bpd_t_min": Option(1e-5, POSITIVE, "Time of the images, at least training's."),
}
_QUALITY = {
    "eval.features": Option("inception", Code(FEATURES), "The network of the features."),
    "eval.inception_path": Option("", FilePath(), "The weights of FID's Inception network."),
    "eval.stats_path": Option("", FilePath(), "Reference statistics."),
    "eval.stats_split": Option(
        "train", Name(("train", "test"), exact=True), "Split of the reference images."
    ),
}
_NOTHING = {
    "training.n_iters": Option(1_300_001, COUNT, "Training steps."),
    "training.patience": Option(
        0,
        Integer(0, 10**6),
        "Stop after this many held-out losses without a new minimum; 0 for never.",
    ),
    "training.log_freq": Option(50, COUNT, "Steps between log lines."),
    "training.eval_freq": Option(100, COUNT, "Steps between held-out losses."),
    "training.snapshot_freq_for_preemption": Option(10_000, COUNT, "Steps between backups."),
    "training.snapshot_sampling": Option(True, FLAG, "Sample at each snapshot."),
    "training.on_nonfinite": Option(
        "stop",
        Name(("stop", "skip", "rollback"), exact=True),
        "After a loss or gradient that is not finite: stop, skip the step, or go back.",
    ),
    "training.shard_params": Option(False, FLAG, "Split the state over the devices."),
    "training.remat": Option(False, FLAG, "Save memory: recompute activations."),
    "training.accumulate": Option(1, Integer(1, 10**6), "Save memory: parts of a batch in turn."),
    "calibrate.simulations": Option(200, Integer(20, 10**6), "Images that are measured."),
    "ema.std": Option(0.0, Real(0, _WIDTH.high), "Relative width for --mode=ema; 0 for none."),
    "eval.begin_ckpt": Option(1, Integer(0, 10**9), "First checkpoint to evaluate."),
    "eval.end_ckpt": Option(26, Integer(0, 10**9), "Last checkpoint to evaluate."),
    "eval.enable_sampling": Option(False, FLAG, "Generate images."),
    "eval.enable_loss": Option(True, FLAG, "Compute the held-out loss."),
    "eval.enable_bpd": Option(False, FLAG, "Compute bits/dim."),
    "eval.enable_metrics": Option(False, FLAG, "Compute FID and other distances."),
}


def affecting(options: Options, *affects: str) -> dict[str, Field]:
    """Return options as fields that affect these groups of results."""
    return {name: Field(*option, affects) for name, option in options.items()}


DECLARED: dict[str, Field] = {
    "seed": Field(42, Integer(0, 2**32 - 1), "The root of all random numbers.", ("seed",)),
    **affecting(_IMAGES, "images"),
    **affecting(_LOCATION, "location"),
    **affecting(_DATA_AND_NETWORK, "network", "noise", "images"),
    **affecting(_NETWORK_AND_NOISE, "network", "noise"),
    **affecting(_NETWORK, "network"),
    "model.num_scales": Field(
        1000, Integer(2, 10**6), "Noise levels of discrete-time training.", ("network", "samples")
    ),
    **affecting(_TRAINING, "training"),
    "model.dtype": Field(
        "float32",
        Name(("float32", "bfloat16"), exact=True),
        "The type that the network computes in; its parameters are float32.",
        ("precision",),
    ),
    **affecting(_LOSS, "loss"),
    **affecting(_SAMPLES, "samples"),
    **affecting(_GUIDANCE, "guidance"),
    **affecting(_CLASSIFIER, "classifier"),
    **affecting(_RESTORE, "restore"),
    "calibrate.samples": Field(63, Integer(20, 10**4), "Solutions of each.", ("calibration",)),
    **affecting(_ROUNDS, "rounds"),
    **affecting(_LIKELIHOOD, "likelihood"),
    **affecting(_QUALITY, "quality"),
    **affecting(_NOTHING),
}
