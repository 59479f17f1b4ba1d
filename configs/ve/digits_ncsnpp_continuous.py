"""NCSN++ with the VE SDE on handwritten digits, sampled by predictor and corrector."""

from configs.default_digits_configs import get_default_configs


def get_config():
    config = get_default_configs()
    # The largest distance between two images is 4.8 (Technique 1 of Song & Ermon 2020).
    config.model.sigma_max = 5.0
    return config
