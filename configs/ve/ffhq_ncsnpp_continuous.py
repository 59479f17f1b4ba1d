"""NCSN++ with the VE SDE on FFHQ, 1024x1024 pixels, in continuous time.

The paper gives no number.

    python main.py --config=configs/ve/ffhq_ncsnpp_continuous.py --workdir=DIR --mode=train
"""

from configs.ve import celebahq_ncsnpp_continuous


def get_config():
    config = celebahq_ncsnpp_continuous.get_config()
    config.data.dataset = "FFHQ"
    config.data.tfrecords_path = "/raid/song/ffhq-dataset/ffhq/ffhq-r10.tfrecords"
    config.training.reduce_mean = True
    return config
