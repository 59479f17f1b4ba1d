"""DDPM's U-Net with the VE SDE on CIFAR-10, at 1000 noise levels.

Published as VE SDE (SMLD) in Table 1: FID 3.60 +- 0.02 with Langevin corrections, as sampled here,
and 4.79 +- 0.07 without.

    python main.py --config=configs/ve/cifar10_ddpm.py --workdir=DIR --mode=train
"""

from configs import networks
from configs.default_cifar10_configs import get_default_configs


def get_config():
    config = get_default_configs()
    networks.ddpm(config.model)
    config.model.conv_size = 3  # Unused; the official file has it.
    config.training.continuous = False
    return config
