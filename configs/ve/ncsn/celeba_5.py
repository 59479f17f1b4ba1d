"""NCSN on CelebA, 64x64 pixels, with Technique 5 of Song & Ermon (2020): averaged parameters.

The paper gives no number.

    python main.py --config=configs/ve/ncsn/celeba_5.py --workdir=DIR --mode=train
"""

from configs.ve.ncsn import celeba


def get_config():
    config = celeba.get_config()
    config.model.ema_rate = 0.999
    return config
