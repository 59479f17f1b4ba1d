"""Config fields of the data, the network and its training."""

from __future__ import annotations

import dataclasses
from collections import ChainMap
from typing import Any

import datasets
from configs.declaration import ABSENT, BATCH, PART, SIDE, WIDTH, Field
from configs.groups import (
    IMAGES,
    LOCATION,
    LOSS,
    NETWORK,
    NOISE,
    NOTHING,
    PRECISION,
    SAMPLES,
    SEED,
    TRAINING,
)
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
    AnyOf,
    Entries,
    FilePath,
    Integer,
    Name,
    Real,
    Sequence,
    Word,
)
from sde_lib import SDES

OPTIMIZERS = ("adam",)

GENERAL = {
    "seed": Field(42, Integer(0, 2**32 - 1), (SEED,), "The root of all random numbers."),
}

DATA = {
    "data.dataset": Field(
        "CIFAR10", Name(datasets.DATASETS), (IMAGES,), "The data set; see docs/data.md."
    ),
    "data.path": Field("", FilePath(), (LOCATION,), "Where the images are; see docs/data.md."),
    "data.tfrecords_path": Field(
        ABSENT, FilePath(), (LOCATION,), "The official name of data.path."
    ),
    "data.category": Field(ABSENT, Word(), (IMAGES,), "The category of LSUN, such as bedroom."),
    "data.held_out": Field(
        0.1,
        PART,
        (IMAGES,),
        "Share of custom images and emoji that is held out, unless they have splits.",
    ),
    "data.value_range": Field(
        (),
        Entries((FINITE, FINITE), optional=True),
        (NETWORK, NOISE, IMAGES),
        "Smallest and largest value of arrays of real numbers; () for bytes.",
    ),
    "data.image_size": Field(
        32,
        AnyOf((SIDE, Entries((SIDE, SIDE)))),
        (NETWORK, NOISE, IMAGES),
        "Height and width: an integer for squares, or the pair (height, width).",
    ),
    "data.num_channels": Field(
        3, Integer(1, 1024), (NETWORK, NOISE, IMAGES), "Channels of an image."
    ),
    "data.random_flip": Field(True, FLAG, (TRAINING,), "Flip training images at random."),
    "data.uniform_dequantization": Field(
        False,
        FLAG,
        (NETWORK, NOISE),
        "Add uniform noise to grey levels, so that they have a density.",
    ),
    "data.centered": Field(
        False, FLAG, (NETWORK, NOISE), "Scale images to [-1, 1] instead of [0, 1]."
    ),
    "data.num_classes": Field(
        0, Integer(0, 10**6), (NETWORK,), "Classes the network is conditioned on; 0 for none."
    ),
}

MODEL = {
    "model.sigma_min": Field(
        0.01, NOISE_SCALE, (NETWORK, NOISE), "Lowest noise scale of the VE SDE."
    ),
    "model.sigma_max": Field(
        50.0, NOISE_SCALE, (NETWORK, NOISE), "Highest noise scale of the VE SDE."
    ),
    "model.beta_min": Field(
        0.1, NOISE_SCALE, (NETWORK, NOISE), "beta(0) of the VP and sub-VP SDEs."
    ),
    "model.beta_max": Field(
        20.0, NOISE_SCALE, (NETWORK, NOISE), "beta(T) of the VP and sub-VP SDEs."
    ),
    "model.offset": Field(
        ABSENT, NOISE_SCALE, (NETWORK, NOISE), "Offset of the cosine schedule; 0.008 if missing."
    ),
    "model.num_scales": Field(
        1000,
        Integer(2, 10**6),
        (NETWORK, SAMPLES),
        "Noise levels of discrete-time training, and the steps of pc if sampling.num_steps is 0.",
    ),
    "model.parameterization": Field(
        "default",
        Name(ChainMap[str, Any]({"default": None}, PARAMETERIZATIONS)),
        (NETWORK,),
        "What the network's output estimates; 'default' is the score for the VE SDE, edm for "
        "edmsde, flow for rectifiedflow, and else the noise.",
    ),
    "model.sigma_data": Field(
        0.5, NOISE_SCALE, (NETWORK,), "Standard deviation of the data, for parameterization = edm."
    ),
    "model.ema_rate": Field(0.999, SHARE, (TRAINING,), "Decay of the parameters' moving average."),
    "model.ema_ramp": Field(
        False,
        FLAG,
        (TRAINING,),
        "After n steps the decay is at most (1 + n) / (10 + n), so that the moving average forgets "
        "the initial parameters within few steps.",
    ),
    "model.ema_stds": Field(
        (),
        Sequence(WIDTH, 0, 8),
        (TRAINING,),
        "Relative widths of further averages, which checkpoints store for --mode=ema; 0.05 and 0.1 "
        "are enough for the widths between them.",
    ),
    "model.dropout": Field(0.1, Real(0, 1, open_high=True), (TRAINING,), "Dropout rate."),
    "model.class_dropout": Field(
        0.1, SHARE, (TRAINING,), "Share of labels hidden in training, for classifier-free guidance."
    ),
    "model.dtype": Field(
        "float32",
        Name(("float32", "bfloat16"), exact=True),
        (PRECISION,),
        "The type that the network computes in; its parameters are float32.",
    ),
    "model.embedding_type": Field(
        "fourier",
        Name(("fourier", "positional", "fourier_linear", "positional_log")),
        (NETWORK,),
        "Embedding of the noise level in NCSN++, DDPM++ and ADM; other networks have a fixed one. "
        "Labels enter 'fourier' and 'positional_log' by their logarithm.",
    ),
    "model.noise_mult": Field(
        ABSENT,
        Integer(0, 2**10),
        (NETWORK,),
        "Features of the embedding of the noise level, as a multiple of model.nf; 0 for 2 "
        "('fourier') or 1.",
    ),
    "model.temb_mult": Field(
        ABSENT,
        Integer(1, 2**10),
        (NETWORK,),
        "Features of the embedding of the noise level after its dense layers, as a multiple of "
        "model.nf.",
    ),
    "model.class_embedding": Field(
        ABSENT,
        Name(("after", "before")),
        (NETWORK,),
        "Whether NCSN++ adds classes to the embedding of the noise level before or after its dense "
        "layers.",
    ),
    "model.scale_by_sigma": Field(
        True, FLAG, (NETWORK,), "Divide the network's output by the noise scale."
    ),
    "model.name": Field(ABSENT, Name(NETWORKS, exact=True), (NETWORK,), "The network."),
    "model.nf": Field(ABSENT, Integer(1, 2**16), (NETWORK,), "Features of the first level."),
    "model.ch_mult": Field(
        ABSENT,
        Sequence(Integer(1, 2**10), 1, 16),
        (NETWORK,),
        "Features of each level, as multiples of model.nf.",
    ),
    "model.num_res_blocks": Field(
        ABSENT, Integer(0, 100), (NETWORK,), "Residual blocks of a level."
    ),
    "model.attn_resolutions": Field(
        ABSENT,
        Sequence(Integer(1, 4096), 0, 16),
        (NETWORK,),
        "Side lengths of the levels with self-attention; of rectangles, the larger side counts.",
    ),
    "model.attend_after_each_up_block": Field(
        ABSENT, FLAG, (NETWORK,), "True for the U-Net of Ho et al. (2020)."
    ),
    "model.resamp_with_conv": Field(ABSENT, FLAG, (NETWORK,), "Resampling layers convolve."),
    "model.conditional": Field(ABSENT, FLAG, (NETWORK,), "Condition on the noise level."),
    "model.fir": Field(ABSENT, FLAG, (NETWORK,), "Resample through a FIR filter."),
    "model.fir_kernel": Field(
        ABSENT, Sequence(FINITE, 1, 32), (NETWORK,), "Coefficients of the FIR filter."
    ),
    "model.skip_rescale": Field(ABSENT, FLAG, (NETWORK,), "Divide residual sums by sqrt(2)."),
    "model.resblock_type": Field(
        ABSENT, Name(("biggan", "ddpm")), (NETWORK,), "The residual block."
    ),
    "model.progressive": Field(
        ABSENT,
        Name(("none", "output_skip", "residual")),
        (NETWORK,),
        "How lower resolutions contribute to the output.",
    ),
    "model.progressive_input": Field(
        ABSENT,
        Name(("none", "input_skip", "residual")),
        (NETWORK,),
        "How lower resolutions receive the input image.",
    ),
    "model.progressive_combine": Field(
        ABSENT, Name(("sum", "cat")), (NETWORK,), "How input skips are combined with the features."
    ),
    "model.init_scale": Field(
        ABSENT, NOT_NEGATIVE, (TRAINING,), "Initial scale of the last layer of each branch."
    ),
    "model.fourier_scale": Field(
        ABSENT, POSITIVE, (TRAINING,), "Standard deviation of the random frequencies."
    ),
    "model.nonlinearity": Field(ABSENT, Name(ACTIVATIONS), (NETWORK,), "Activation function."),
    "model.normalization": Field(
        ABSENT,
        Name(("GroupNorm", "InstanceNorm++"), exact=True),
        (NETWORK,),
        "Normalization layer.",
    ),
    "model.interpolation": Field(
        ABSENT,
        Name(("bilinear", "nearest_neighbor"), exact=True),
        (NETWORK,),
        "Resizing in RefineNets.",
    ),
    "model.num_classes": Field(
        ABSENT, Integer(2, 10**6), (NETWORK,), "The official NCSN's name of model.num_scales."
    ),
}

TRAIN = {
    "training.sde": Field("vesde", Name(SDES), (NETWORK, NOISE), "The SDE."),
    "training.continuous": Field(True, FLAG, (NETWORK,), "Train in continuous time."),
    "training.batch_size": Field(128, BATCH, (TRAINING,), "Images of a training step."),
    "training.n_iters": Field(1_300_001, COUNT, NOTHING, "Training steps."),
    "training.n_jitted_steps": Field(
        5, Integer(1, 1000), (TRAINING,), "Steps of one compiled call."
    ),
    "training.reduce_mean": Field(
        False, FLAG, (LOSS,), "Mean over the entries of an image, not half their sum."
    ),
    "training.likelihood_weighting": Field(False, FLAG, (LOSS,), "Weight the loss by g(t)^2."),
    "training.importance_weighting": Field(
        False, FLAG, (LOSS,), "With likelihood weighting, importance sampling of the times."
    ),
    "training.time_distribution": Field(
        "uniform",
        Name(("uniform", "importance", "log_normal")),
        (LOSS,),
        "Times of the loss: uniform; as training.importance_weighting, which is the older name of "
        "'importance'; or EDM's log-normal noise levels, with EDM's weights.",
    ),
    "training.p_mean": Field(
        -1.2, Real(-100, 100), (LOSS,), "Mean of the logarithm of log-normal noise levels."
    ),
    "training.p_std": Field(
        1.2,
        Real(1e-6, 100),
        (LOSS,),
        "Standard deviation of the logarithm of log-normal noise levels.",
    ),
    "training.log_freq": Field(50, COUNT, NOTHING, "Steps between log lines."),
    "training.eval_freq": Field(100, COUNT, NOTHING, "Steps between held-out losses."),
    "training.snapshot_freq": Field(
        50_000, COUNT, (TRAINING,), "Steps between checkpoints that are kept for evaluation."
    ),
    "training.snapshot_freq_for_preemption": Field(
        10_000, COUNT, NOTHING, "Steps between checkpoints for a restart."
    ),
    "training.snapshot_sampling": Field(True, FLAG, NOTHING, "Sample at each snapshot."),
    "training.on_nonfinite": Field(
        "stop",
        Name(("stop", "skip", "rollback"), exact=True),
        NOTHING,
        "After a loss or gradient that is not finite: stop; skip the step; or go back to the "
        "newest checkpoint and draw other noise.",
    ),
    "training.shard_params": Field(
        False, FLAG, NOTHING, "Split parameters, EMA and optimizer state over the devices."
    ),
    "training.remat": Field(
        False, FLAG, NOTHING, "Recompute activations in the backward pass, to save memory."
    ),
    "training.accumulate": Field(
        1, Integer(1, 10**6), NOTHING, "Parts of a batch, processed in turn, to save memory."
    ),
}

OPTIM = {
    "optim.optimizer": Field("Adam", Name(OPTIMIZERS), (TRAINING,), "The optimizer."),
    "optim.lr": Field(2e-4, POSITIVE, (TRAINING,), "Learning rate."),
    "optim.beta1": Field(
        0.9, Real(0, 1, open_high=True), (TRAINING,), "Adam's decay of the mean gradient."
    ),
    "optim.eps": Field(1e-8, NOT_NEGATIVE, (TRAINING,), "Adam's epsilon."),
    "optim.weight_decay": Field(0.0, NOT_NEGATIVE, (TRAINING,), "Decoupled weight decay."),
    "optim.warmup": Field(5000, Integer(0, 10**9), (TRAINING,), "Steps of linear warm-up."),
    "optim.grad_clip": Field(
        1.0, FINITE, (TRAINING,), "Largest norm of a gradient; 0 or less for no limit."
    ),
}


def parameter_fields() -> dict[str, Field]:
    """Return the options of networks and the numbers of SDEs that users have entered."""
    found = {}
    for network in NETWORKS.values():
        for name, option in network.options.items():
            found[f"model.{name}"] = Field(
                option.default, option.domain, (NETWORK,), option.meaning
            )
    for name, sde in SDES.items():
        for field in dataclasses.fields(sde):
            if field.name not in ("T", "t_min", "t_end") and isinstance(field.default, float):
                text = f"{field.name} of training.sde = {name!r}."
                domain = FINITE if field.default <= 0 else NOISE_SCALE
                found[f"model.{field.name}"] = Field(ABSENT, domain, (NETWORK, NOISE), text)
    return found
