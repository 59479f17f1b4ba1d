"""NCSN++ with the VE SDE on CIFAR-10, at 1000 noise levels.

Published as NCSN++ in Table 3: FID 2.45, IS 9.73.

    python main.py --config=configs/ve/cifar10_ncsnpp.py --workdir=DIR --mode=train
"""

from configs.ve import cifar10_ncsnpp_continuous


def get_config():
    config = cifar10_ncsnpp_continuous.get_config()
    config.model.embedding_type = "positional"
    config.training.continuous = False
    return config
