"""DDPM++ with the sub-VP SDE on CIFAR-10, in continuous time.

Published as DDPM++ cont. (sub-VP): FID 2.61, IS 9.56 in Table 3; 3.02 bits/dim and, by the ODE
sampler, FID 3.16 in Table 2.

    python main.py --config=configs/subvp/cifar10_ddpmpp_continuous.py --workdir=DIR --mode=train
"""

from configs.vp import cifar10_ddpmpp_continuous


def get_config():
    config = cifar10_ddpmpp_continuous.get_config()
    config.training.sde = "subvpsde"
    return config
