"""DDPM++ of EDM on color emoji, conditioned on the subgroup of Unicode; see docs/data.md.

The network has 3.1 million parameters."""

from configs import networks
from configs.default_emoji_configs import get_default_configs


def get_config():
    config = get_default_configs(networks.ddpmpp)
    config.data.update(dataset="folder", path="emoji", num_classes=83, centered=True)
    config.model.update(ch_mult=(1, 2, 3, 3), scale_by_sigma=False)
    config.model.update(class_embedding="before", class_dropout=0.1)
    config.model.update(sigma_data=0.6, ema_stds=(0.05, 0.1))
    config.training.update(sde="edmsde", time_distribution="log_normal", n_iters=8000)
    config.training.update(snapshot_freq=1000, snapshot_freq_for_preemption=200)
    config.eval.update(begin_ckpt=8, bpd_t_min=0.002)  # The smallest noise level of training.
    return config
