"""NCSN++ with the VE SDE on handwritten digits, sampled by predictor and corrector."""

from configs.default_digits import get_default_digits_config


def get_config():
    config = get_default_digits_config()
    config.model.sigma_max = 5.0  # The largest distance between two images is 4.8 (Technique 1 of Song & Ermon 2020).
    config.training.sde = "vesde"
    return config
