"""Defaults of the experiments on LSUN, CelebA-HQ and FFHQ: images of 256x256 pixels."""

import ml_collections

from configs.default import get_default_config


def get_default_configs() -> ml_collections.ConfigDict:
    config = get_default_config()
    config.data.dataset = "LSUN"
    config.data.image_size = 256

    config.model.sigma_max = 378.0
    config.model.num_scales = 2000
    config.model.dropout = 0.0

    config.training.batch_size = 64
    config.training.n_iters = 2_400_001
    config.training.snapshot_freq_for_preemption = 5000

    config.sampling.snr = 0.075

    config.eval.begin_ckpt = 50
    config.eval.end_ckpt = 96
    config.eval.batch_size = 512
    config.eval.enable_sampling = True
    return config
