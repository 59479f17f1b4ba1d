"""NCSN on CelebA, 64x64 pixels, with Techniques 1, 2 and 4 of Song & Ermon (2020).

They choose noise levels and step sizes. The paper gives no number.

    python main.py --config=configs/ve/ncsn/celeba_124.py --workdir=DIR --mode=train
"""

from configs.ve.ncsn import celeba


def get_config():
    config = celeba.get_config()
    config.model.sigma_max = 90.0
    config.model.num_scales = 500
    config.sampling.n_steps_each = 5
    config.sampling.snr = 0.128
    return config
