"""Defaults of the experiments on CelebA: faces of 64x64 pixels."""

import ml_collections

from configs.default import get_default_config


def get_default_configs() -> ml_collections.ConfigDict:
    config = get_default_config()
    config.data.dataset = "CELEBA"
    config.data.image_size = 64
    config.model.sigma_max = 90.0
    config.eval.enable_sampling = True
    return config
