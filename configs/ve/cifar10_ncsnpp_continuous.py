"""NCSN++ with the VE SDE on CIFAR-10, in continuous time.

Published as NCSN++ cont. (VE) in Table 3: FID 2.38, IS 9.83.

    python main.py --config=configs/ve/cifar10_ncsnpp_continuous.py --workdir=DIR --mode=train
"""

from configs import networks
from configs.default_cifar10_configs import get_default_configs


def get_config():
    config = get_default_configs()
    networks.ncsnpp(config.model)
    return config
