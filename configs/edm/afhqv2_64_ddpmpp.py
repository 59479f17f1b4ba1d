"""DDPM++ of EDM on AFHQv2, 64x64 pixels (Karras et al. 2022, arXiv:2206.00364).

Configuration F of Table 2, VP, sampled with 79 NFE. EDM augments the training images, with
probability 0.15, and this code does not: do not expect the published FID. data.path names a folder
of images.

    python main.py --config=configs/edm/afhqv2_64_ddpmpp.py --workdir=DIR --mode=train \
        --config.data.path=IMAGES
"""

from configs import networks, recipes
from configs.default_edm_configs import get_default_configs


def get_config():
    config = get_default_configs()
    networks.edm_ddpmpp(config.model)
    config.model.ch_mult = (1, 2, 2, 2)
    recipes.edm_64(config)
    config.model.dropout = 0.25
    return config
