"""NCSN++ with the VE SDE on CelebA-HQ, 256x256 pixels, in continuous time.

The paper gives no number.

    python main.py --config=configs/ve/celebahq_256_ncsnpp_continuous.py --workdir=DIR --mode=train
"""

from configs.ve import ffhq_256_ncsnpp_continuous


def get_config():
    config = ffhq_256_ncsnpp_continuous.get_config()
    config.data.dataset = "CelebAHQ"
    config.data.tfrecords_path = "/home/yangsong/ncsc/celebahq/r08.tfrecords"
    return config
