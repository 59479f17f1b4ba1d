"""Where the fields of our configs are not those of the official release, and why. The tests know no others.

Fields are named as on the command line. A field whose values are real numbers is a float here, even where it is an int
there, so that it takes any of them on the command line.
"""

_1024 = "The two experiments of 1024 pixels, which come from the PyTorch release, lack it; the others have it."

ADDED = {
    "eval.bpd_num_repeats": "Passes over the data set, each with noise and probes of its own; there it is no field.",
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
    "ve/ncsnv2/bedroom": {"training.continuous": False},  # What training.continuouse is meant to say.
}
