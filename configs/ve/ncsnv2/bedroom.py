"""NCSNv2 on LSUN bedrooms, 128x128 pixels, as in Song & Ermon (2020).

The paper gives no number.

    python main.py --config=configs/ve/ncsnv2/bedroom.py --workdir=DIR --mode=train
"""

from configs import networks, recipes
from configs.default_lsun_configs import get_default_configs


def get_config():
    config = get_default_configs()
    config.data.category = "bedroom"
    config.data.image_size = 128
    networks.ncsnv2(config.model)
    recipes.ncsn(config)
    config.model.name = "ncsnv2_128"
    config.model.sigma_max = 190.0
    config.model.num_scales = 1086
    config.model.ema_rate = 0.9999
    config.training.batch_size = 128
    config.optim.lr = 1e-4
    config.sampling.n_steps_each = 3
    config.sampling.snr = 0.095
    return config
