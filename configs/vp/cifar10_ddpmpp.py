"""DDPM++ with the VP SDE on CIFAR-10, at 1000 noise levels.

Published as DDPM++ in Table 3: FID 2.78, IS 9.64.

    python main.py --config=configs/vp/cifar10_ddpmpp.py --workdir=DIR --mode=train
"""

from configs import networks, recipes
from configs.default_cifar10_configs import get_default_configs


def get_config():
    config = get_default_configs()
    networks.ddpmpp(config.model)
    recipes.ddpm(config)
    return config
