"""Class-conditional DDPM++ with the VP SDE on handwritten digits; see docs/guidance.md."""

from configs.vp import digits_ddpmpp_continuous


def get_config():
    config = digits_ddpmpp_continuous.get_config()
    config.data.num_classes = 10
    config.guidance.classes = tuple(range(10))
    config.guidance.scale = 2.0
    return config
