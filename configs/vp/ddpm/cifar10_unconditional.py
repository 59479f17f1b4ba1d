"""DDPM on CIFAR-10 with a network that is not conditioned on the noise level.

The paper gives no number.

    python main.py --config=configs/vp/ddpm/cifar10_unconditional.py --workdir=DIR --mode=train
"""

from configs.vp.ddpm import cifar10


def get_config():
    config = cifar10.get_config()
    config.model.conditional = False
    return config
