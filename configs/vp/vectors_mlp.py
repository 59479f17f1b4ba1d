"""A residual MLP with the VP SDE on vectors: an array (N, D) in the file data.path.

Set data.num_channels to D, and data.value_range to the smallest and the largest value.
"""

from configs import networks
from configs.default import get_default_config


def get_config():
    config = get_default_config()
    config.data.update(dataset="array", image_size=(), num_channels=2, value_range=(-4.0, 4.0))
    config.data.update(random_flip=False, centered=True)
    networks.mlp(config.model)
    config.model.update(num_scales=1000, parameterization="edm", scale_by_sigma=False)
    config.model.update(dropout=0.0, ema_ramp=True)
    config.training.update(sde="vpsde", batch_size=256, n_iters=5000, n_jitted_steps=1)
    config.training.update(time_distribution="log_normal", reduce_mean=True)
    config.training.update(log_freq=250, eval_freq=250, snapshot_sampling=False)
    config.training.update(snapshot_freq=5000, snapshot_freq_for_preemption=1000)
    config.optim.update(lr=1e-3, warmup=100)
    config.sampling.method = "solver"
    return config
