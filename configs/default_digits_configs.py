"""Defaults of the experiments on scikit-learn's handwritten digits: 8x8 pixels, 17 grey levels.

Training takes minutes on two cores."""

from collections.abc import Callable

import ml_collections

from configs import networks
from configs.default import get_default_config


def get_default_configs(
    network: Callable[[ml_collections.ConfigDict], None] = networks.ncsnpp,
) -> ml_collections.ConfigDict:
    """Return the config of the digits with a small network; `network` sets its kind."""
    config = get_default_config()

    data = config.data
    data.dataset = "digits"
    data.image_size = 8
    data.num_channels = 1
    data.random_flip = False
    data.uniform_dequantization = True

    model = config.model
    network(model)
    model.num_scales = 250
    model.ema_rate = 0.998
    model.ema_ramp = True
    model.dropout = 0.0
    model.nf = 16
    model.ch_mult = (1, 2)
    model.num_res_blocks = 1
    model.attn_resolutions = ()

    training = config.training
    training.batch_size = 64
    training.n_iters = 2600
    training.n_jitted_steps = 1
    training.reduce_mean = True
    training.log_freq = 100
    training.eval_freq = 650
    training.snapshot_freq = 2600
    training.snapshot_freq_for_preemption = 1300

    config.optim.lr = 3e-3
    config.optim.warmup = 100

    config.guidance.scale = 4.0  # With the classifier; docs/guidance.md compares.

    classifier = config.classifier
    classifier.blocks_per_group = 1
    classifier.channel_multiplier = 1
    classifier.batch_size = 64
    classifier.n_iters = 2000
    classifier.lr = 3e-3

    evaluate = config.eval
    evaluate.batch_size = 120
    evaluate.num_samples = 120
    evaluate.enable_sampling = True
    evaluate.enable_bpd = True
    evaluate.enable_metrics = True
    evaluate.features = "classifier"
    evaluate.bpd_num_repeats = 1
    return config
