"""NCSN++ of twice the depth with the VE SDE on CIFAR-10, in continuous time.

Published as NCSN++ cont. (deep, VE) in Table 3: FID 2.20, IS 9.89.

    python main.py --config=configs/ve/cifar10_ncsnpp_deep_continuous.py --workdir=DIR --mode=train
"""

from configs.ve import cifar10_ncsnpp_continuous


def get_config():
    config = cifar10_ncsnpp_continuous.get_config()
    config.model.num_res_blocks = 8
    config.training.n_iters = 950_001
    return config
