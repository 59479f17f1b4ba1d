"""DDPM's U-Net with the sub-VP SDE on CIFAR-10, in continuous time.

Published as DDPM cont. (sub-VP) in Table 2: 3.05 bits/dim and, by the ODE sampler, FID 3.56.

    python main.py --config=configs/subvp/cifar10_ddpm_continuous.py --workdir=DIR --mode=train
"""

from configs.vp.ddpm import cifar10_continuous


def get_config():
    config = cifar10_continuous.get_config()
    config.training.sde = "subvpsde"
    return config
