"""NCSN++ with the VE SDE on CelebA-HQ, 1024x1024 pixels, in continuous time.

The paper gives no number; it shows samples in Figure 12.

    python main.py --config=configs/ve/celebahq_ncsnpp_continuous.py --workdir=DIR --mode=train
"""

from configs import networks
from configs.default_lsun_configs import get_default_configs


def get_config():
    config = get_default_configs()
    config.data.dataset = "CelebAHQ"
    config.data.image_size = 1024
    config.data.tfrecords_path = "/atlas/u/yangsong/celeba_hq/-r10.tfrecords"
    networks.ncsnpp_1024(config.model)
    config.model.sigma_max = 1348.0
    config.model.ema_rate = 0.9999
    config.training.batch_size = 8
    config.optim.amsgrad = False
    config.sampling.snr = 0.15
    config.eval.begin_ckpt = 1
    config.eval.batch_size = 1024
    return config
