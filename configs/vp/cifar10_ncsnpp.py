"""NCSN++ with the VP SDE on CIFAR-10, at 1000 noise levels.

The paper gives no number; Table 3 has DDPM++ instead.

    python main.py --config=configs/vp/cifar10_ncsnpp.py --workdir=DIR --mode=train
"""

from configs.vp import cifar10_ncsnpp_continuous


def get_config():
    config = cifar10_ncsnpp_continuous.get_config()
    config.training.continuous = False
    config.sampling.predictor = "reverse_diffusion"
    return config
