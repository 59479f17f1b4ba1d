"""NCSNv2 on CelebA, 64x64 pixels, as in Song & Ermon (2020).

The paper gives no number.

    python main.py --config=configs/ve/ncsnv2/celeba.py --workdir=DIR --mode=train
"""

from configs import networks
from configs.ve.ncsn import celeba_1245


def get_config():
    config = celeba_1245.get_config()
    networks.ncsnv2(config.model)
    config.optim.lr = 1e-4
    return config
