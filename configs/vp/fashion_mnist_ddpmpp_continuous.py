"""DDPM++ with the VP SDE on Fashion-MNIST, with the small network of the photographs.

docs/data.md states where to get the images."""

from configs.vp import photos_ddpmpp_continuous


def get_config():
    config = photos_ddpmpp_continuous.get_config()
    config.data.dataset = "FASHION_MNIST"
    config.data.image_size = 28
    config.data.num_channels = 1
    config.model.attn_resolutions = (7,)
    config.training.batch_size = 128
    config.training.n_iters = 20_000
    config.training.snapshot_freq = 5000
    return config
