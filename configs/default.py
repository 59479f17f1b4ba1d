"""What all experiments have in common; each config file states only how it differs.

Names and values are those of the official release, but for what `differences.py` lists. Where experiments disagree, the
value is that of CIFAR-10 and the VE SDE in continuous time. The fields of each network are in `networks.py`.

The paper, its tables and its figures are, in all config files, those of Song et al. (ICLR 2021, arXiv:2011.13456).
"""

import ml_collections

Config = ml_collections.ConfigDict


def get_default_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.seed = 42

    config.data = data = ml_collections.ConfigDict()
    data.dataset = "CIFAR10"
    data.path = ""  # Ours, as held_out and value_range: where the images are; docs/data.md.
    data.held_out = 0.1  # The share of one's own images that is the test split, if they do not say.
    data.value_range = ()  # Least and largest value, if arrays hold real numbers; () for bytes.
    data.image_size = 32
    data.num_channels = 3
    data.random_flip = True
    data.uniform_dequantization = False
    data.centered = False
    data.num_classes = 0  # Ours: of which the network is told; 0 for one that is told none.

    config.model = model = ml_collections.ConfigDict()
    model.sigma_min = 0.01
    model.sigma_max = 50.0
    model.beta_min = 0.1
    model.beta_max = 20.0
    model.num_scales = 1000
    model.ema_rate = 0.999
    model.dropout = 0.1
    model.class_dropout = (
        0.1  # Ours: the share of labels hidden in training, for classifier-free guidance.
    )
    model.dtype = (
        "float32"  # Ours: of what the network computes, or "bfloat16"; parameters are float32.
    )
    model.embedding_type = (
        "fourier"  # Of NCSN++ and DDPM++; the other networks have one embedding or none.
    )
    model.scale_by_sigma = True

    config.training = training = ml_collections.ConfigDict()
    training.sde = "vesde"
    training.continuous = True
    training.batch_size = 128
    training.n_iters = 1_300_001
    training.n_jitted_steps = 5
    training.reduce_mean = False
    training.likelihood_weighting = False
    training.importance_weighting = (
        False  # Ours: with likelihood_weighting, times from the density that suits it.
    )
    training.log_freq = 50
    training.eval_freq = 100
    training.snapshot_freq = 50_000
    training.snapshot_freq_for_preemption = 10_000
    training.snapshot_sampling = True
    training.shard_params = (
        False  # Ours: splits parameters, moving average and Adam's averages over the devices.
    )
    training.remat = (
        False  # Ours: residual blocks are computed anew for the gradient, to save memory.
    )
    training.accumulate = (
        1  # Ours: parts of a batch that are worked through one after the other, to save memory.
    )
    training.dequantizer_iters = 1000  # Ours: steps of --mode=train_dequantizer.

    config.optim = optim = ml_collections.ConfigDict()
    optim.optimizer = "Adam"
    optim.lr = 2e-4
    optim.beta1 = 0.9
    optim.eps = 1e-8
    optim.weight_decay = 0.0
    optim.warmup = 5000
    optim.grad_clip = 1.0

    config.sampling = sampling = ml_collections.ConfigDict()
    sampling.method = "pc"
    sampling.predictor = "reverse_diffusion"
    sampling.corrector = "langevin"
    sampling.n_steps_each = 1
    sampling.snr = 0.16
    sampling.noise_removal = True
    sampling.probability_flow = False
    sampling.solver = "deis"  # Ours, as all that follow: what sampling.method = "solver" takes.
    sampling.num_steps = 20
    sampling.schedule = "karras"
    sampling.churn = 1.0
    sampling.restart = (3, 1, 0.3, 1.0)
    sampling.tolerance = 0.02
    sampling.temperature = 1.0
    sampling.trajectory = False

    config.guidance = guidance = ml_collections.ConfigDict()  # Ours, with all its fields.
    guidance.classes = ()  # Image i of a run is to be of class classes[i % len(classes)]; () for any class.
    guidance.scale = 1.0
    guidance.interval = (0.0, 1e6)  # of noise levels std / alpha; outside the scale is 1.

    config.classifier = classifier = (
        ml_collections.ConfigDict()
    )  # Ours: of --mode=train_classifier.
    classifier.num_classes = 10
    classifier.blocks_per_group = 4
    classifier.channel_multiplier = 10
    classifier.batch_size = 128
    classifier.n_iters = 100_000
    classifier.lr = 1e-3
    classifier.weight_decay = 5e-4

    config.restore = restore = ml_collections.ConfigDict()  # Ours: of --mode=restore.
    restore.input = ""  # An image file, or a folder of them; "" for test images.
    restore.observed = False  # Whether the input is what was measured, not what is to be measured.
    restore.count = 8  # images, at most
    restore.samples = 4  # answers to each
    restore.task = "inpaint"
    restore.method = "ddrm"
    restore.noise = 0.0  # Standard deviation of the noise in measurements, for images in [0, 1].
    restore.mask = (
        "box"  # What is unknown: "box", "random", or an image file, known where it is bright.
    )
    restore.share = 0.5  # Of the box's sides; of the known pixels, frequencies or measurements.
    restore.factor = 2  # Sides of the blocks of which super-resolution has the means.
    restore.blur = 1.0  # Standard deviation of the blur, in pixels.
    restore.length = 4.0  # Of the movement, in pixels.
    restore.angle = 45.0  # Of the movement against the horizontal, in degrees.
    restore.iterations = 3  # Of conjugate gradients, in moment_matching.
    restore.prior_std = 0.5  # Of the data that pigdm takes for Gaussian, in the range of the model.
    restore.scale = 1.0  # Of dps.
    restore.eta = 0.85  # Of ddrm.
    restore.eta_b = 1.0
    restore.official = False  # Projection with the faults of the official code.

    config.eval = evaluate = ml_collections.ConfigDict()
    evaluate.begin_ckpt = 1
    evaluate.end_ckpt = 26
    evaluate.batch_size = 1024
    evaluate.num_samples = 50_000
    evaluate.enable_sampling = False
    evaluate.enable_loss = True
    evaluate.enable_bpd = False
    evaluate.bpd_dataset = "test"
    evaluate.dequantization = "uniform"  # Ours: or "variational", after --mode=train_dequantizer.
    evaluate.bpd_num_repeats = 5
    evaluate.bpd_probes = 1  # Ours: of each image, in each pass.
    evaluate.bpd_trace = (
        "Rademacher"  # Ours: or "Gaussian", or "exact" (as many probes as an image has entries).
    )
    evaluate.bpd_tolerance = 1e-3  # Ours: of an adaptive step, in nats/dim among others.
    evaluate.enable_metrics = (
        False  # Ours, as all that follow: FID, KID, inception score, precision and recall.
    )
    evaluate.features = (
        "inception"  # Or "inception_tf", "classifier", "module:function"; see features.py.
    )
    evaluate.inception_path = ""
    evaluate.stats_path = ""
    evaluate.stats_split = "train"
    evaluate.legacy_rounding = False  # True truncates samples to uint8 as the official code did.
    evaluate.bpd_t_min = 1e-5  # Ours: images are taken for states at this time.
    return config


def complete(config: Config) -> Config:
    """A copy with default values for missing fields, other than the model's: official configs lack some of them."""
    fields, defaults = config.to_dict(), get_default_config().to_dict()
    for section in (
        "data",
        "training",
        "optim",
        "sampling",
        "guidance",
        "classifier",
        "restore",
        "eval",
    ):
        fields[section] = defaults[section] | fields.get(section, {})
    for field in ("class_dropout", "dtype"):
        fields["model"].setdefault(field, defaults["model"][field])
    return ml_collections.ConfigDict(fields).lock()
