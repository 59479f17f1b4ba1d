"""Where the fields of our configs are not those of the official release, and why. The tests know no others.

Fields are named as on the command line. A field whose values are real numbers is a float here, even where it is an int
there, so that it takes any of them on the command line.
"""

_1024 = "The two experiments of 1024 pixels, which come from the PyTorch release, lack it; the others have it."

ADDED = {
    "data.path": "Where the images are; there TFDS knows, or data.tfrecords_path says.",
    "data.held_out": "The share of one's own images that is held out; there are only published sets there.",
    "data.value_range": "Of arrays of real numbers, which are not there.",
    "eval.bpd_num_repeats": "Passes over the data set, each with noise and probes of its own; there it is no field.",
    "eval.bpd_probes": "More of them measure what they cost in precision; there it is one.",
    "eval.bpd_trace": "The kind of probe, there an argument of the function; 'exact' is not there.",
    "eval.bpd_tolerance": "There an argument of the function; it means another thing here (see likelihood.py).",
    "eval.bpd_t_min": "There an argument of the function, eps.",
    "data.num_classes": "There no network is told the class.",
    "model.dtype": "What the network computes in; all is float32 there.",
    "training.remat": "Memory for time.",
    "training.accumulate": "Memory for time.",
    "model.class_dropout": "The share of labels that training hides from a network that is told classes.",
    "eval.enable_metrics": "There, sampling always measures.",
    "eval.features": "There, TF-GAN's Inception, or another one from 256 pixels on.",
    "eval.inception_path": "There, the weights are downloaded.",
    "eval.stats_path": "There, assets/stats.",
    "eval.stats_split": "The images that samples are compared with, if their statistics are not there yet.",
    "eval.legacy_rounding": "Samples are rounded to the nearest grey level here, and to the next lower one there.",
    "training.importance_weighting": "Of Song et al. (2021b), which came later.",
    "eval.dequantization": "The noise that makes grey levels real numbers: uniform, as there, or variational.",
    "training.shard_params": "There, every device has the whole state.",
    "training.dequantizer_iters": "Steps of training the flow of variational dequantization, which is not there.",
    "sampling.solver": "Which solver sampling.method = 'solver' is; there is no such method.",
    "sampling.num_steps": "Of a few-step solver; the official methods take model.num_scales steps.",
    "sampling.schedule": "The noise levels of a few-step solver.",
    "sampling.churn": "S_churn of Heun's method with noise (EDM).",
    "sampling.restart": "Levels, repetitions, least and highest noise level of the solver 'restart'.",
    "sampling.tolerance": "Of the solver that chooses its steps.",
    "sampling.temperature": "Scales the samples of the prior; there it is 1.",
    "sampling.trajectory": "Whether evaluation draws states on the way from noise to images.",
    "guidance": "A whole section, as the next two: classes that are asked for, there arguments of functions.",
    "classifier": "Of --mode=train_classifier, which is not there.",
    "restore": "Of --mode=restore, which is not there.",
    "model.attend_after_each_up_block": "True for the U-Net of Ho et al. (2020); there it attends once a level.",
    "model.num_classes": "Another name of model.num_scales, by which the official NCSN reads it; its configs lack it.",
    "model.fourier_scale": "Lacking in three NCSN++ with a positional embedding, on which it has no effect.",
    "model.beta_min": _1024,
    "model.beta_max": _1024,
    "training.n_jitted_steps": _1024,
    "training.sde": "ve/ncsn/celeba has its value under the name training.loss, and so cannot run there.",
    "eval.enable_sampling": _1024,
    "eval.enable_loss": _1024,
    "eval.enable_bpd": _1024,
    "eval.bpd_dataset": _1024,
}
DROPPED = {
    "device": "A PyTorch device, in the two experiments of 1024 pixels; JAX finds its devices.",
    "training.loss": "Read by nothing; ve/ncsn/celeba means training.sde.",
    "training.continuouse": "Read by nothing; ve/ncsnv2/bedroom means training.continuous.",
}
MENDED = {
    "ve/ncsnv2/bedroom": {
        "training.continuous": False
    },  # What training.continuouse is meant to say.
}
