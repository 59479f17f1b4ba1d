"""Defaults of the experiments on scikit-learn's handwritten digits: 8x8 pixels, 17 gray levels.

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

    config.data.update(dataset="digits", image_size=8, num_channels=1, random_flip=False)
    config.data.uniform_dequantization = True

    model = config.model
    network(model)
    model.update(num_scales=250, ema_rate=0.998, ema_ramp=True, dropout=0.0)
    model.update(nf=16, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=())

    training = config.training
    training.update(batch_size=64, n_iters=2600, n_jitted_steps=1, reduce_mean=True)
    training.update(log_freq=100, eval_freq=650)
    training.update(snapshot_freq=2600, snapshot_freq_for_preemption=1300)
    config.optim.update(lr=3e-3, warmup=100)

    config.guidance.scale = 4.0  # With the classifier; docs/guidance.md compares.
    config.classifier.update(blocks_per_group=1, channel_multiplier=1)
    config.classifier.update(batch_size=64, n_iters=2000, lr=3e-3)

    config.eval.update(batch_size=120, num_samples=120, features="classifier", bpd_num_repeats=1)
    config.eval.update(enable_sampling=True, enable_bpd=True, enable_metrics=True)
    return config
