"""DDPM++ with the sub-VP SDE on color emoji."""

from configs.vp import emoji_ddpmpp_continuous


def get_config():
    config = emoji_ddpmpp_continuous.get_config()
    config.training.sde = "subvpsde"
    return config
