"""NCSN++ with the VE SDE on LSUN churches, 256x256 pixels, in continuous time.

The paper gives no number; it shows samples in Figure 9.

    python main.py --config=configs/ve/church_ncsnpp_continuous.py --workdir=DIR --mode=train
"""

from configs.ve import bedroom_ncsnpp_continuous


def get_config():
    config = bedroom_ncsnpp_continuous.get_config()
    config.data.category = "church_outdoor"
    config.model.sigma_max = 380.0
    return config
