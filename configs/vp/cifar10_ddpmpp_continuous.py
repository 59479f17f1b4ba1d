"""DDPM++ with the VP SDE on CIFAR-10, in continuous time.

Published as DDPM++ cont. (VP): FID 2.55, IS 9.58 in Table 3; 3.16 bits/dim and, by the ODE sampler,
FID 3.93 in Table 2.

    python main.py --config=configs/vp/cifar10_ddpmpp_continuous.py --workdir=DIR --mode=train
"""

from configs import networks, recipes
from configs.default_cifar10_configs import get_default_configs


def get_config():
    config = get_default_configs()
    networks.ddpmpp(config.model)
    recipes.vp(config)
    return config
