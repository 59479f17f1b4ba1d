"""Groups of results. Each one is what changes when a config field of the group changes."""

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
RESTORE = "restore"  # solutions of inverse problems
CALIBRATION = "calibration"  # tests of the spread of these solutions
SEED = "seed"  # every random number
NOTHING = ()  # frequencies, memory and speed

GROUPS = frozenset(
    {NETWORK, NOISE, TRAINING, IMAGES, LOCATION, LOSS, PRECISION, SAMPLES, GUIDANCE, LIKELIHOOD}
    | {ROUNDS, QUALITY, CLASSIFIER, RESTORE, CALIBRATION, SEED}
)
