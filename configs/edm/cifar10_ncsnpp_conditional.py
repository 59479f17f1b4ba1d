"""NCSN++ of EDM on CIFAR-10, conditioned on the class (Karras et al. 2022, arXiv:2206.00364).

Configuration F of Table 2, conditional, VE, sampled with 35 NFE. EDM augments the training images,
with probability 0.12, and this code does not: do not expect the published FID.

    python main.py --config=configs/edm/cifar10_ncsnpp_conditional.py --workdir=DIR --mode=train
"""

from configs import networks, recipes
from configs.default_cifar10_configs import get_default_configs


def get_config():
    config = get_default_configs()
    networks.edm_ncsnpp(config.model)
    recipes.edm(config)
    config.data.num_classes = 10
    config.model.class_dropout = 0.0
    return config
