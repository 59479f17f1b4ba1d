"""NCSN on CIFAR-10, with Technique 5 of Song & Ermon (2020): averaged parameters.

The paper gives no number.

    python main.py --config=configs/ve/ncsn/cifar10_5.py --workdir=DIR --mode=train
"""

from configs.ve.ncsn import cifar10


def get_config():
    config = cifar10.get_config()
    config.model.ema_rate = 0.999
    return config
