"""NCSN++ of twice the depth with the sub-VP SDE on CIFAR-10, in continuous time.

The paper gives no number; Table 3 has DDPM++ instead.

    python main.py --config=configs/subvp/cifar10_ncsnpp_deep_continuous.py --workdir=DIR \
        --mode=train
"""

from configs.vp import cifar10_ncsnpp_deep_continuous


def get_config():
    config = cifar10_ncsnpp_deep_continuous.get_config()
    config.training.sde = "subvpsde"
    return config
