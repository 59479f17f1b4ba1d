"""Config fields of sampling, guidance, inverse problems and evaluation."""

from __future__ import annotations

from configs.declaration import (
    BATCH,
    COUNT,
    EXACT_NAME,
    FLAG,
    NAME,
    NOISE_SCALE,
    NOT_NEGATIVE,
    PATH,
    POSITIVE,
    SHARE,
    TOLERANCE,
    WIDTH,
    WORD,
    Field,
)
from configs.domains import Code, Entries, FilePath, Integer, Name, Real, Sequence
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

FEATURES = ("inception", "inception_tf", "classifier")

SAMPLING = {
    "sampling.method": Field(
        "pc",
        NAME,
        (SAMPLES,),
        "pc: predictor and corrector; ode: the probability flow with adaptive steps; solver: "
        "sampling.solver.",
    ),
    "sampling.predictor": Field("reverse_diffusion", NAME, (SAMPLES,), "Predictor of pc."),
    "sampling.corrector": Field("langevin", NAME, (SAMPLES,), "Corrector of pc."),
    "sampling.n_steps_each": Field(1, Integer(1, 10**6), (SAMPLES,), "Corrections of a step."),
    "sampling.snr": Field(0.16, POSITIVE, (SAMPLES,), "Signal-to-noise ratio of the corrector."),
    "sampling.noise_removal": Field(True, FLAG, (SAMPLES,), "Drop the noise of the last step."),
    "sampling.probability_flow": Field(
        False, FLAG, (SAMPLES,), "Let the predictor follow the probability-flow ODE."
    ),
    "sampling.solver": Field(
        "dpm++_2m_sde", NAME, (SAMPLES,), "The solver of sampling.method = 'solver'."
    ),
    "sampling.num_steps": Field(20, Integer(1, 10**5), (SAMPLES,), "Steps of the solver."),
    "sampling.schedule": Field("log_snr", NAME, (SAMPLES,), "Noise levels of the solver."),
    "sampling.churn": Field(1.0, NOT_NEGATIVE, (SAMPLES,), "S_churn of solver = 'heun_churn'."),
    "sampling.churn_interval": Field(
        (0.0, 1e9),
        Entries((NOT_NEGATIVE, NOT_NEGATIVE)),
        (SAMPLES,),
        "S_min and S_max of 'heun_churn': the noise levels at which it adds noise.",
    ),
    "sampling.churn_noise": Field(
        1.0, NOT_NEGATIVE, (SAMPLES,), "S_noise of 'heun_churn': scale of the added noise."
    ),
    "sampling.curve": Field(
        "linear",
        Name(("linear", "ve", "vp")),
        (SAMPLES,),
        "Time and scale in which 'euler' and 'heun' take straight steps: linear in the noise level "
        "(EDM), in its square (VE), or along the VP SDE with its scale.",
    ),
    "sampling.second_point": Field(
        1.0,
        Real(0, 1, open_low=True),
        (SAMPLES,),
        "Second evaluation of 'heun', as a share of the step: 1 for Heun's method, 0.5 for the "
        "midpoint method.",
    ),
    "sampling.restart": Field(
        (3, 1, 0.3, 1.0),
        Entries((Integer(1, 100), Integer(1, 100), POSITIVE, POSITIVE)),
        (SAMPLES,),
        "Levels, repetitions, lowest and highest noise level of solver = 'restart'.",
    ),
    "sampling.tolerance": Field(
        0.02, TOLERANCE, (SAMPLES,), "Relative error of a step of 'adaptive_sde'."
    ),
    "sampling.temperature": Field(1.0, Real(0, 2), (SAMPLES,), "Scale of the initial noise."),
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
        "", PATH, (RESTORE,), "An image or a folder of images; '' for test images."
    ),
    "restore.observed": Field(False, FLAG, (RESTORE,), "The input is the measurement."),
    "restore.count": Field(8, COUNT, (RESTORE,), "Largest number of images."),
    "restore.samples": Field(4, Integer(1, 10**4), (RESTORE,), "Solutions for each image."),
    "restore.task": Field("inpaint", WORD, (RESTORE,), "What is measured; see docs/usage.md."),
    "restore.method": Field("ddrm", EXACT_NAME, (RESTORE,), "The posterior sampler."),
    "restore.noise": Field(
        0.0, Real(0, 1000), (RESTORE,), "Standard deviation of the noise, for images in [0, 1]."
    ),
    "restore.mask": Field(
        "box",
        FilePath(("box", "random")),
        (RESTORE,),
        "Unknown pixels: box, random, or an image, bright where known.",
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
        "Standard deviation of the Gaussian prior of pigdm and daps, in model units.",
    ),
    "restore.scale": Field(1.0, POSITIVE, (RESTORE,), "Step size of dps."),
    "restore.eta": Field(0.85, SHARE, (RESTORE,), "Share of noise that ddrm draws again."),
    "restore.eta_b": Field(1.0, SHARE, (RESTORE,), "Weight of the measurement in ddrm."),
    "restore.flow_steps": Field(
        5, Integer(1, 1000), (RESTORE,), "Evaluations of the network by daps at a noise level."
    ),
    "restore.langevin_steps": Field(
        100, Integer(1, 10**5), (RESTORE,), "Langevin steps of daps; unused for linear operators."
    ),
    "restore.official": Field(
        False, FLAG, (RESTORE,), "Projection with the two bugs of the official code."
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
        "inception",
        Code(FEATURES),
        (QUALITY,),
        "inception, inception_tf, classifier or module:function.",
    ),
    "eval.inception_path": Field("", PATH, (QUALITY,), "The weights of FID's Inception network."),
    "eval.stats_path": Field("", PATH, (QUALITY,), "Reference statistics."),
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
