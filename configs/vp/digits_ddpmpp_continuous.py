"""DDPM++ with the VP SDE on handwritten digits: `make demo`. The README has its time and its bits/dim."""

from configs.default_digits import get_default_digits_config


def get_config():
    config = get_default_digits_config()
    config.data.centered = True

    model = config.model
    model.embedding_type = "positional"
    model.fir = False
    model.progressive_input = "none"
    model.scale_by_sigma = False

    config.training.sde = "vpsde"
    config.sampling.predictor = "euler_maruyama"
    config.sampling.corrector = "none"
    return config
