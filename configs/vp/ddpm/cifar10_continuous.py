"""DDPM's U-Net with the VP SDE on CIFAR-10, in continuous time.

Published as DDPM cont. (VP) in Table 2: 3.21 bits/dim and, by the ODE sampler, FID 3.69.

    python main.py --config=configs/vp/ddpm/cifar10_continuous.py --workdir=DIR --mode=train
"""

from configs import networks, recipes
from configs.default_cifar10_configs import get_default_configs


def get_config():
    config = get_default_configs()
    networks.ddpm(config.model)
    recipes.vp(config)
    return config
