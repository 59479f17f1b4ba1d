"""Every config field: its default value, the values it may have, what it affects, and its meaning.

Names and defaults are those of the official release; `differences.py` lists the exceptions. Where
the official experiments disagree, the default is that of CIFAR-10 with the VE SDE in continuous
time. A field without a default (`ABSENT`) is an option of some networks, which `networks.py` sets.

`affects` names groups of results. `workdir.DEPENDENCIES` states which files depend on which groups.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from configs.domains import Domain, Entries, Flag, Integer, Name, Real, Sequence, Text

ABSENT = object()
"""The default of a field that a config need not have."""

# Groups of results. Each one is what changes when a field of the group changes.
NETWORK = "network"  # the meaning of a checkpoint's parameters
NOISE = "noise"  # the distribution of noised images x_t, given the data set
TRAINING = "training"  # the parameters that training produces
IMAGES = "images"  # which images are trained on and evaluated
LOCATION = "location"  # where these images are stored
LOSS = "loss"  # the training objective
PRECISION = "precision"  # the rounding of everything that the network computes
SAMPLES = "samples"  # generated images
GUIDANCE = "guidance"  # generated images of requested classes
LIKELIHOOD = "likelihood"  # bits/dim
ROUNDS = "rounds"  # how an evaluation is split into files
QUALITY = "quality"  # distances between generated images and data
CLASSIFIER = "classifier"  # the classifier that guides samples
DEQUANTIZER = "dequantizer"  # the flow of variational dequantization
RESTORE = "restore"  # solutions of inverse problems
SEED = "seed"  # every random number
NOTHING = ()  # frequencies, memory and speed

GROUPS = frozenset(
    {NETWORK, NOISE, TRAINING, IMAGES, LOCATION, LOSS, PRECISION, SAMPLES, GUIDANCE, LIKELIHOOD}
    | {ROUNDS, QUALITY, CLASSIFIER, DEQUANTIZER, RESTORE, SEED}
)


class Field(NamedTuple):
    """One config field.

    Attributes:
      default: the value that a config has unless it states another one, or ABSENT.
      domain: the values that are allowed.
      affects: the groups of results that change with the field.
      meaning: what the field is.
    """

    default: Any
    domain: Domain
    affects: tuple[str, ...]
    meaning: str


FLAG, TEXT, NAME, EXACT_NAME = Flag(), Text(), Name(), Name(exact=True)
FEATURES = ("inception", "inception_tf", "classifier")
RESTORE_METHODS = ("projection", "dps", "ddrm", "pigdm", "moment_matching")
COUNT = Integer(1, 10**9)
BATCH = Integer(1, 10**6)
SMALLEST, LARGEST = 1e-30, 1e30  # float32, the type of all computations, holds their reciprocals.
FINITE = Real(-LARGEST, LARGEST)
POSITIVE = Real(SMALLEST, LARGEST)
NOT_NEGATIVE = Real(0, LARGEST)
TOLERANCE = Real(1e-8, 1e3)  # float32 rounds at 1e-7; a solver would reach its largest count.
NOISE_SCALE = Real(1e-10, 1e10)  # Its square is computed as well.
SHARE = Real(0, 1)
PART = Real(0, 1, open_low=True, open_high=True)

GENERAL = {
    "seed": Field(42, Integer(0, 2**32 - 1), (SEED,), "The root of all random numbers."),
}

DATA = {
    "data.dataset": Field("CIFAR10", NAME, (IMAGES,), "The data set; see docs/data.md."),
    "data.path": Field("", TEXT, (LOCATION,), "Where the images are; see docs/data.md."),
    "data.tfrecords_path": Field(ABSENT, TEXT, (LOCATION,), "The official name of data.path."),
    "data.category": Field(ABSENT, TEXT, (IMAGES,), "The category of LSUN, such as bedroom."),
    "data.held_out": Field(
        0.1, PART, (IMAGES,), "Share of custom images that is held out, unless they have splits."
    ),
    "data.value_range": Field(
        (),
        Entries((FINITE, FINITE), optional=True),
        (NETWORK, NOISE, IMAGES),
        "Smallest and largest value of arrays of real numbers; () for bytes.",
    ),
    "data.image_size": Field(32, Integer(1, 4096), (NETWORK, NOISE, IMAGES), "Height and width."),
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
    "model.num_scales": Field(
        1000,
        Integer(2, 10**6),
        (NETWORK, SAMPLES),
        "Noise levels of discrete-time training, and steps of sampling.method = 'pc'.",
    ),
    "model.ema_rate": Field(0.999, SHARE, (TRAINING,), "Decay of the parameters' moving average."),
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
        Name(("fourier", "positional")),
        (NETWORK,),
        "Embedding of the noise level in NCSN++ and DDPM++; other networks have a fixed one.",
    ),
    "model.scale_by_sigma": Field(
        True, FLAG, (NETWORK,), "Divide the network's output by the noise scale."
    ),
    "model.name": Field(ABSENT, EXACT_NAME, (NETWORK,), "The network."),
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
        "Heights at which the network has self-attention.",
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
        ABSENT, Name(("sum", "cat")), (NETWORK,), "How this input is combined with the features."
    ),
    "model.init_scale": Field(
        ABSENT, NOT_NEGATIVE, (TRAINING,), "Initial scale of the last layer of each branch."
    ),
    "model.fourier_scale": Field(
        ABSENT, POSITIVE, (TRAINING,), "Standard deviation of the random frequencies."
    ),
    "model.nonlinearity": Field(ABSENT, NAME, (NETWORK,), "Activation function."),
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
    "training.sde": Field("vesde", NAME, (NETWORK, NOISE), "The SDE."),
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
    "training.dequantizer_iters": Field(
        1000, COUNT, (DEQUANTIZER,), "Steps of --mode=train_dequantizer."
    ),
}

OPTIM = {
    "optim.optimizer": Field("Adam", NAME, (TRAINING,), "The optimizer."),
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

SAMPLING = {
    "sampling.method": Field("pc", NAME, (SAMPLES,), "pc, ode or solver."),
    "sampling.predictor": Field("reverse_diffusion", NAME, (SAMPLES,), "Predictor of pc."),
    "sampling.corrector": Field("langevin", NAME, (SAMPLES,), "Corrector of pc."),
    "sampling.n_steps_each": Field(1, Integer(1, 10**6), (SAMPLES,), "Corrections of a step."),
    "sampling.snr": Field(0.16, POSITIVE, (SAMPLES,), "Signal-to-noise ratio of the corrector."),
    "sampling.noise_removal": Field(True, FLAG, (SAMPLES,), "Drop the noise of the last step."),
    "sampling.probability_flow": Field(
        False, FLAG, (SAMPLES,), "Let the predictor follow the probability-flow ODE."
    ),
    "sampling.solver": Field("deis", NAME, (SAMPLES,), "The solver of sampling.method = 'solver'."),
    "sampling.num_steps": Field(20, Integer(1, 10**5), (SAMPLES,), "Steps of the solver."),
    "sampling.schedule": Field("karras", NAME, (SAMPLES,), "Noise levels of the solver."),
    "sampling.churn": Field(1.0, NOT_NEGATIVE, (SAMPLES,), "S_churn of solver = 'heun_churn'."),
    "sampling.restart": Field(
        (3, 1, 0.3, 1.0),
        Entries((Integer(1, 100), Integer(1, 100), POSITIVE, POSITIVE)),
        (SAMPLES,),
        "Levels, repetitions, lowest and highest noise level of solver = 'restart'.",
    ),
    "sampling.tolerance": Field(0.02, TOLERANCE, (SAMPLES,), "Of solver = 'adaptive_sde'."),
    "sampling.temperature": Field(1.0, Real(0, 1000), (SAMPLES,), "Scale of the initial noise."),
    "sampling.trajectory": Field(
        False, FLAG, (SAMPLES,), "Draw states on the path from noise to images."
    ),
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
        "", TEXT, (RESTORE,), "An image or a folder of images; '' for test images."
    ),
    "restore.observed": Field(False, FLAG, (RESTORE,), "The input is the measurement."),
    "restore.count": Field(8, COUNT, (RESTORE,), "Largest number of images."),
    "restore.samples": Field(4, Integer(1, 10**4), (RESTORE,), "Solutions for each image."),
    "restore.task": Field("inpaint", TEXT, (RESTORE,), "What is measured."),
    "restore.method": Field(
        "ddrm", Name(RESTORE_METHODS, exact=True), (RESTORE,), "The posterior sampler."
    ),
    "restore.noise": Field(
        0.0, Real(0, 1000), (RESTORE,), "Standard deviation of the noise, for images in [0, 1]."
    ),
    "restore.mask": Field(
        "box", TEXT, (RESTORE,), "Unknown pixels: box, random, or an image, bright where known."
    ),
    "restore.share": Field(
        0.5,
        Real(0, 1, open_low=True),
        (RESTORE,),
        "Share of the box's sides; of the known pixels, frequencies or measurements.",
    ),
    "restore.factor": Field(2, Integer(1, 4096), (RESTORE,), "Factor of super-resolution."),
    "restore.blur": Field(
        1.0, Real(1e-3, 1000), (RESTORE,), "Standard deviation of the blur, in pixels."
    ),
    "restore.length": Field(4.0, Real(1e-3, 1000), (RESTORE,), "Length of the motion, in pixels."),
    "restore.angle": Field(
        45.0, Real(-360, 360), (RESTORE,), "Angle of the motion to the horizontal, in degrees."
    ),
    "restore.iterations": Field(
        3, Integer(1, 1000), (RESTORE,), "Conjugate-gradient iterations of moment_matching."
    ),
    "restore.prior_std": Field(
        0.5,
        NOISE_SCALE,
        (RESTORE,),
        "Standard deviation of pigdm's Gaussian prior, in model units.",
    ),
    "restore.scale": Field(1.0, POSITIVE, (RESTORE,), "Step size of dps."),
    "restore.eta": Field(0.85, SHARE, (RESTORE,), "Share of noise that ddrm draws again."),
    "restore.eta_b": Field(1.0, SHARE, (RESTORE,), "Weight of the measurement in ddrm."),
    "restore.official": Field(
        False, FLAG, (RESTORE,), "Projection with the two bugs of the official code."
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
    "eval.bpd_dataset": Field("test", Name(("train", "test")), (LIKELIHOOD,), "The split."),
    "eval.dequantization": Field(
        "uniform", Name(("uniform", "variational")), (LIKELIHOOD,), "Noise added to grey levels."
    ),
    "eval.bpd_num_repeats": Field(5, Integer(1, 10**4), (LIKELIHOOD,), "Passes over the images."),
    "eval.bpd_probes": Field(1, Integer(1, 10**6), (LIKELIHOOD,), "Probes of the trace."),
    "eval.bpd_trace": Field(
        "Rademacher",
        EXACT_NAME,
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
        "inception", TEXT, (QUALITY,), "inception, inception_tf, classifier or module:function."
    ),
    "eval.inception_path": Field("", TEXT, (QUALITY,), "The weights of FID's Inception network."),
    "eval.stats_path": Field("", TEXT, (QUALITY,), "Reference statistics."),
    "eval.stats_split": Field(
        "train", Name(("train", "test"), exact=True), (QUALITY,), "Their split."
    ),
    "eval.legacy_rounding": Field(
        False, FLAG, (SAMPLES,), "Truncate samples to bytes, as the official code does."
    ),
    "eval.bpd_t_min": Field(1e-5, POSITIVE, (LIKELIHOOD,), "Time at which images are placed."),
}

FIELDS: dict[str, Field] = {
    **GENERAL,
    **DATA,
    **MODEL,
    **TRAIN,
    **OPTIM,
    **SAMPLING,
    **GUIDE,
    **CLASSIFY,
    **RESTORATION,
    **EVAL,
}
"""All fields, by their names on the command line."""

INERT = {
    "device": "A PyTorch device; JAX finds its devices.",
    "training.loss": "Nothing reads it; ve/ncsn/celeba means training.sde.",
    "training.continuouse": "Nothing reads it; ve/ncsnv2/bedroom means training.continuous.",
    "optim.amsgrad": "Nothing reads it; it is False wherever it occurs.",
    "model.attention_type": "Nothing reads it; there is one kind of attention.",
    "model.conv_size": "Nothing reads it; convolutions are 3x3.",
    "model.sigma_begin": "Nothing reads it; the fields are model.sigma_max and model.sigma_min.",
}
"""Fields of official configs that are accepted and have no effect, as in the official code."""
