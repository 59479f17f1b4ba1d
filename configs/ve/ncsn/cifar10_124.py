"""NCSN on CIFAR-10, with Techniques 1, 2 and 4 of Song & Ermon (2020): noise levels and step sizes.

The paper gives no number.

    python main.py --config=configs/ve/ncsn/cifar10_124.py --workdir=DIR --mode=train
"""

from configs.ve.ncsn import cifar10


def get_config():
    config = cifar10.get_config()
    config.model.sigma_max = 50.0
    config.model.num_scales = 232
    config.sampling.n_steps_each = 5
    config.sampling.snr = 0.176
    return config
