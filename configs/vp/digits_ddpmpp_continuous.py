"""DDPM++ with the VP SDE on handwritten digits; `make demo` trains it."""

from configs import networks
from configs.default_digits_configs import get_default_configs


def get_config():
    config = get_default_configs(networks.ddpmpp)
    config.data.centered = True
    config.model.scale_by_sigma = False
    config.training.sde = "vpsde"
    config.sampling.predictor = "euler_maruyama"
    config.sampling.corrector = "none"
    return config
