"""NCSN++ with the VE SDE on FFHQ, 256x256 pixels, in continuous time.

The paper gives no number.

    python main.py --config=configs/ve/ffhq_256_ncsnpp_continuous.py --workdir=DIR --mode=train
"""

from configs import networks
from configs.default_lsun_configs import get_default_configs


def get_config():
    config = get_default_configs()
    config.data.dataset = "FFHQ"
    config.data.tfrecords_path = "/home/yangsong/ncsc/ffhq/ffhq-r08.tfrecords"
    networks.ncsnpp_256(config.model)
    config.model.sigma_max = 348.0
    return config
