"""NCSN++ with the VP SDE on CIFAR-10, in continuous time.

The paper gives no number; Table 3 has DDPM++ instead.

    python main.py --config=configs/vp/cifar10_ncsnpp_continuous.py --workdir=DIR --mode=train
"""

from configs import networks, recipes
from configs.default_cifar10_configs import get_default_configs


def get_config():
    config = get_default_configs()
    networks.ncsnpp(config.model)
    recipes.vp(config)
    config.model.embedding_type = "positional"
    return config
