"""DDPM++ with the VP SDE on Fashion-MNIST, with the settings of the emoji.

docs/data.md states where to get the images."""

from configs.vp import emoji_ddpmpp_continuous


def get_config():
    config = emoji_ddpmpp_continuous.get_config()
    config.data.dataset = "FASHION_MNIST"
    config.data.image_size = 28
    config.data.num_channels = 1
    config.model.ch_mult = (1, 2, 2)
    config.model.attn_resolutions = (7,)
    config.eval.enable_bpd = False  # 10,000 test images take hours on a CPU.
    config.eval.enable_metrics = True
    config.eval.features = "classifier"
    return config
