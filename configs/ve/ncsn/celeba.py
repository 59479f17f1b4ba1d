"""NCSN on CelebA, 64x64 pixels, sampled by annealed Langevin dynamics, as in Song & Ermon (2019).

The paper gives no number.

    python main.py --config=configs/ve/ncsn/celeba.py --workdir=DIR --mode=train
"""

from configs import networks, recipes
from configs.default_celeba_configs import get_default_configs


def get_config():
    config = get_default_configs()
    networks.ncsn(config.model)
    recipes.ncsn(config)
    return config
