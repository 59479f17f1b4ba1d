"""DDPM++ that is told the class of an image, with the VP SDE on handwritten digits. docs/guidance.md has numbers."""

from configs.vp import digits_ddpmpp_continuous


def get_config():
    config = digits_ddpmpp_continuous.get_config()
    config.data.num_classes = 10
    config.guidance.classes = tuple(range(10))
    config.guidance.scale = 2.0
    return config
