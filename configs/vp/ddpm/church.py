"""DDPM on LSUN churches, 256x256 pixels.

The paper gives no number.

    python main.py --config=configs/vp/ddpm/church.py --workdir=DIR --mode=train
"""

from configs.vp.ddpm import bedroom


def get_config():
    config = bedroom.get_config()
    config.data.category = "church_outdoor"
    return config
