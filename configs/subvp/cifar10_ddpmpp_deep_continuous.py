"""DDPM++ of twice the depth with the sub-VP SDE on CIFAR-10, in continuous time.

Published as DDPM++ cont. (deep, sub-VP): FID 2.41, IS 9.57 in Table 3; 2.99 bits/dim and, by the
ODE sampler, FID 2.92 in Table 2.

    python main.py --config=configs/subvp/cifar10_ddpmpp_deep_continuous.py --workdir=DIR \
        --mode=train
"""

from configs.vp import cifar10_ddpmpp_deep_continuous


def get_config():
    config = cifar10_ddpmpp_deep_continuous.get_config()
    config.training.sde = "subvpsde"
    return config
