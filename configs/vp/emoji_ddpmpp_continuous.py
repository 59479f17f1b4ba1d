"""DDPM++ with the VP SDE on color emoji."""

from configs import networks
from configs.default_emoji_configs import get_default_configs


def get_config():
    config = get_default_configs(networks.ddpmpp)
    config.data.centered = True
    config.model.scale_by_sigma = False
    config.training.sde = "vpsde"
    return config
