"""DDPM on CelebA-HQ, 256x256 pixels.

The paper gives no number.

    python main.py --config=configs/vp/ddpm/celebahq.py --workdir=DIR --mode=train
"""

from configs import networks, recipes
from configs.default_lsun_configs import get_default_configs


def get_config():
    config = get_default_configs()
    config.data.dataset = "CelebAHQ"
    config.data.tfrecords_path = "/atlas/u/yangsong/celeba_hq/-r10.tfrecords"
    networks.ddpm_256(config.model)
    recipes.ddpm(config)
    config.optim.lr = 2e-5
    return config
