"""NCSN on CIFAR-10, sampled by annealed Langevin dynamics, as in Song & Ermon (2019).

Published as NCSN in Table 3, which quotes the first paper: FID 25.32, IS 8.87.

    python main.py --config=configs/ve/ncsn/cifar10.py --workdir=DIR --mode=train
"""

from configs import networks, recipes
from configs.default_cifar10_configs import get_default_configs


def get_config():
    config = get_default_configs()
    networks.ncsn(config.model)
    recipes.ncsn(config)
    return config
