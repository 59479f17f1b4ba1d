"""Defaults of EDM's experiments on images of 64x64 pixels, which are in a folder."""

import ml_collections

from configs.default import get_default_config


def get_default_configs() -> ml_collections.ConfigDict:
    """Return a config whose images of 64x64 pixels are in the folder data.path."""
    config = get_default_config()
    config.data.dataset = "folder"
    config.data.image_size = 64
    return config
