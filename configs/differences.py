"""Where the fields of our configs differ from those of the official release, and why.

Tests allow no other differences. Fields are named as on the command line. A field whose values are
real numbers is a float here, even where it is an int in the official config, so that the command
line accepts any real number.
"""

_1024 = (
    "Missing in the two official experiments of 1024 pixels, which are from the PyTorch release."
)

ADDED = {
    "data.path": "Officially, TFDS finds the images, or data.tfrecords_path names them.",
    "data.held_out": "The official code reads published data sets only.",
    "data.value_range": "The official code reads bytes only.",
    "data.num_classes": "The official networks are unconditional.",
    "model.ema_ramp": "Officially, in the PyTorch release only; its effect is gone at the end.",
    "model.ema_stds": "Officially, there is one moving average.",
    "model.parameterization": "The official networks estimate the noise, or for VE the score.",
    "model.sigma_data": "From EDM, which came later.",
    "model.dtype": "The official code computes in float32.",
    "model.class_dropout": "The official networks are unconditional.",
    "model.attend_after_each_up_block": "True for the U-Net of Ho et al. (2020).",
    "model.num_classes": "The official NCSN reads model.num_scales by this name.",
    "model.fourier_scale": "Missing in three NCSN++ with a positional embedding; no effect there.",
    "model.beta_min": _1024,
    "model.beta_max": _1024,
    "training.sde": "Missing in ve/ncsn/celeba, which has the value as training.loss.",
    "training.n_jitted_steps": _1024,
    "training.importance_weighting": "From Song et al. (2021b), which came later.",
    "training.time_distribution": "Officially, times are uniform.",
    "training.p_mean": "From EDM, which came later.",
    "training.p_std": "From EDM, which came later.",
    "training.on_nonfinite": "Officially, training continues with NaN and saves it.",
    "training.shard_params": "Officially, every device holds the whole state.",
    "training.remat": "Officially, all activations are stored.",
    "training.accumulate": "Officially, a batch is processed at once.",
    "sampling.solver": "The official code has no few-step solvers.",
    "sampling.num_steps": "The official samplers take model.num_scales steps.",
    "sampling.schedule": "The official code has no few-step solvers.",
    "sampling.churn": "The official code has no few-step solvers.",
    "sampling.churn_interval": "The official code has no few-step solvers.",
    "sampling.churn_noise": "The official code has no few-step solvers.",
    "sampling.curve": "The official code has no few-step solvers.",
    "sampling.second_point": "The official code has no few-step solvers.",
    "sampling.restart": "The official code has no few-step solvers.",
    "sampling.tolerance": "The official code has no adaptive SDE solver.",
    "sampling.temperature": "Officially, the temperature is 1.",
    "sampling.trajectory": "Officially, intermediate states are not drawn.",
    "guidance": "Officially, classes are arguments of functions. This is a whole section.",
    "classifier": "The official code does not train a classifier. This is a whole section.",
    "restore": "Officially, inverse problems are notebooks. This is a whole section.",
    "calibrate": "The official code has no test of posterior samples. This is a whole section.",
    "ema": "Officially, the width of the average is fixed in training. This is a whole section.",
    "eval.enable_sampling": _1024,
    "eval.enable_loss": _1024,
    "eval.enable_bpd": _1024,
    "eval.bpd_dataset": _1024,
    "eval.bpd_num_repeats": "Officially, a constant.",
    "eval.bpd_probes": "Officially, there is one probe.",
    "eval.bpd_trace": "Officially, an argument of a function, without 'exact'.",
    "eval.bpd_tolerance": "Officially, an argument of a function, with another meaning.",
    "eval.bpd_t_min": "Officially, an argument of a function, eps.",
    "eval.enable_metrics": "Officially, sampling always computes metrics.",
    "eval.features": "Officially, TF-GAN's Inception, or another one from 256 pixels on.",
    "eval.inception_path": "Officially, the weights are downloaded.",
    "eval.stats_path": "Officially, assets/stats.",
    "eval.stats_split": "Officially, the statistics are downloaded.",
    "eval.legacy_rounding": "Officially, samples are truncated to bytes; here, rounded.",
}
DROPPED = {
    "device": "A PyTorch device, in the two experiments of 1024 pixels; JAX finds its devices.",
    "training.loss": "Nothing reads it; ve/ncsn/celeba means training.sde.",
    "training.continuouse": "Nothing reads it; ve/ncsnv2/bedroom means training.continuous.",
}
MENDED = {
    "ve/ncsnv2/bedroom": {"training.continuous": False},  # What training.continuouse means.
}
