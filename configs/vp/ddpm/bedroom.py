"""DDPM on LSUN bedrooms, 256x256 pixels.

The paper gives no number.

    python main.py --config=configs/vp/ddpm/bedroom.py --workdir=DIR --mode=train
"""

from configs import networks, recipes
from configs.default_lsun_configs import get_default_configs


def get_config():
    config = get_default_configs()
    config.data.category = "bedroom"
    networks.ddpm_256(config.model)
    recipes.ddpm(config)
    config.optim.lr = 2e-5
    return config
