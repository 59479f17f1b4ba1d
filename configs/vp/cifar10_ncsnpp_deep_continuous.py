"""NCSN++ of twice the depth with the VP SDE on CIFAR-10, in continuous time.

The paper gives no number; Table 3 has DDPM++ instead.

    python main.py --config=configs/vp/cifar10_ncsnpp_deep_continuous.py --workdir=DIR --mode=train
"""

from configs.vp import cifar10_ncsnpp_continuous


def get_config():
    config = cifar10_ncsnpp_continuous.get_config()
    config.model.num_res_blocks = 8
    config.training.n_iters = 950_001
    return config
