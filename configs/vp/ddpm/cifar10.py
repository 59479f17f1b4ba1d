"""DDPM on CIFAR-10.

Published as VP SDE (DDPM) in Table 1: FID 3.24 +- 0.02, sampled as here; as DDPM in Table 2: 3.28
bits/dim and, by the ODE sampler, FID 3.37. (DDPM in Table 3, FID 3.17 and IS 9.46, is the model of
Ho et al., 2020.)

    python main.py --config=configs/vp/ddpm/cifar10.py --workdir=DIR --mode=train
"""

from configs import networks, recipes
from configs.default_cifar10_configs import get_default_configs


def get_config():
    config = get_default_configs()
    networks.ddpm(config.model)
    recipes.ddpm(config)
    return config
