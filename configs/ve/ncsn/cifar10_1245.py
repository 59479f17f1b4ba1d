"""NCSN on CIFAR-10, with all techniques of Song & Ermon (2020) except the third.

The paper gives no number.

    python main.py --config=configs/ve/ncsn/cifar10_1245.py --workdir=DIR --mode=train
"""

from configs.ve.ncsn import cifar10_124


def get_config():
    config = cifar10_124.get_config()
    config.model.ema_rate = 0.999
    return config
