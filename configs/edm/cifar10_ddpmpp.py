"""DDPM++ of EDM on CIFAR-10 (Karras et al. 2022, arXiv:2206.00364).

Configuration F of Table 2, unconditional, VP, sampled with 35 NFE. EDM augments the training
images, with probability 0.12, and this code does not: do not expect the published FID.

    python main.py --config=configs/edm/cifar10_ddpmpp.py --workdir=DIR --mode=train
"""

from configs import networks, recipes
from configs.default_cifar10_configs import get_default_configs


def get_config():
    config = get_default_configs()
    networks.edm_ddpmpp(config.model)
    recipes.edm(config)
    return config
