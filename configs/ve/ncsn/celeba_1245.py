"""NCSN on CelebA, 64x64 pixels, with all techniques of Song & Ermon (2020) except the third.

The paper gives no number.

    python main.py --config=configs/ve/ncsn/celeba_1245.py --workdir=DIR --mode=train
"""

from configs.ve.ncsn import celeba_124


def get_config():
    config = celeba_124.get_config()
    config.model.ema_rate = 0.999
    return config
