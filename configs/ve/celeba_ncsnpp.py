"""NCSN++ with the VE SDE on CelebA, 64x64 pixels, at 1000 noise levels.

It is in no table; its author mentions an FID of about 2.5 (yang-song/score_sde#10).

    python main.py --config=configs/ve/celeba_ncsnpp.py --workdir=DIR --mode=train
"""

from configs import networks
from configs.default_celeba_configs import get_default_configs


def get_config():
    config = get_default_configs()
    networks.ncsnpp(config.model)
    config.model.embedding_type = "positional"
    config.model.sigma_begin = 90.0  # Unused; the official file has it.
    config.training.continuous = False
    config.sampling.snr = 0.17
    return config
