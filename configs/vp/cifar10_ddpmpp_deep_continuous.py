"""DDPM++ of twice the depth with the VP SDE on CIFAR-10, in continuous time.

Published as DDPM++ cont. (deep, VP): FID 2.41, IS 9.68 in Table 3; 3.13 bits/dim and, by the ODE
sampler, FID 3.08 in Table 2.

    python main.py --config=configs/vp/cifar10_ddpmpp_deep_continuous.py --workdir=DIR --mode=train
"""

from configs.vp import cifar10_ddpmpp_continuous


def get_config():
    config = cifar10_ddpmpp_continuous.get_config()
    config.model.num_res_blocks = 8
    config.training.n_iters = 950_001
    return config
