"""Defaults of the experiments on CIFAR-10: images of 32x32 pixels."""

import ml_collections

from configs.default import get_default_config


def get_default_configs() -> ml_collections.ConfigDict:
    config = get_default_config()
    config.eval.begin_ckpt = 9
    return config
