"""ADM of EDM on ImageNet, 64x64 pixels, conditioned on the class (arXiv:2206.00364).

Published: FID 1.36 with the stochastic sampler, 256 steps or 511 NFE, as set here. data.path names
a folder with a folder of images for each class.

    python main.py --config=configs/edm/imagenet_64_adm.py --workdir=DIR --mode=train \
        --config.data.path=IMAGES
"""

from configs import networks, recipes
from configs.default_edm_configs import get_default_configs


def get_config():
    config = get_default_configs()
    networks.adm(config.model)
    recipes.edm_64(config)
    recipes.edm_batches(config, 4096, images=2_500_000_000, half_life=50_000_000)
    config.data.num_classes = 1000
    config.model.class_dropout = 0.0
    config.model.dropout = 0.1
    config.optim.lr = 1e-4
    config.sampling.solver = "heun_churn"
    config.sampling.num_steps = 256
    config.sampling.churn = 40.0
    config.sampling.churn_interval = (0.05, 50.0)
    config.sampling.churn_noise = 1.003
    return config
