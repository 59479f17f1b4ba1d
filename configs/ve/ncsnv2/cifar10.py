"""NCSNv2 on CIFAR-10, as in Song & Ermon (2020).

Published as NCSNv2 in Table 3, which quotes that paper: FID 10.87, IS 8.40.

    python main.py --config=configs/ve/ncsnv2/cifar10.py --workdir=DIR --mode=train
"""

from configs import networks
from configs.ve.ncsn import cifar10_1245


def get_config():
    config = cifar10_1245.get_config()
    networks.ncsnv2(config.model)
    config.optim.lr = 1e-4
    return config
