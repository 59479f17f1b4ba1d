"""NCSN++ with the VE SDE on color emoji."""

from configs.default_emoji_configs import get_default_configs


def get_config():
    config = get_default_configs()
    # The largest distance between two of 2,000 images is 35.7 (Song & Ermon 2020, Technique 1).
    config.model.sigma_max = 36.0
    return config
