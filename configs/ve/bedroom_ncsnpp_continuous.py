"""NCSN++ with the VE SDE on LSUN bedrooms, 256x256 pixels, in continuous time.

The paper gives no number; it shows samples in Figure 9.

    python main.py --config=configs/ve/bedroom_ncsnpp_continuous.py --workdir=DIR --mode=train
"""

from configs import networks
from configs.default_lsun_configs import get_default_configs


def get_config():
    config = get_default_configs()
    config.data.category = "bedroom"
    networks.ncsnpp_256(config.model)
    return config
