"""Defaults of the experiments on color emoji: 32x32 pixels, of the font Noto Color Emoji.

docs/data.md states where to get the font. The networks have 1.8 million parameters."""

from collections.abc import Callable

import ml_collections

from configs import networks
from configs.default import get_default_config


def get_default_configs(
    network: Callable[[ml_collections.ConfigDict], None] = networks.ncsnpp,
) -> ml_collections.ConfigDict:
    """Return the config of the emoji with a small network; `network` sets its kind."""
    config = get_default_config()

    config.data.dataset = "emoji"
    config.data.random_flip = False  # Letters, digits and flags are not symmetric.
    config.data.uniform_dequantization = True

    model = config.model
    network(model)
    model.update(ema_rate=0.999, ema_ramp=True, dropout=0.0)
    model.update(nf=32, ch_mult=(1, 2, 2, 2), num_res_blocks=1, attn_resolutions=(8,))

    training = config.training
    training.update(batch_size=64, n_iters=3000, n_jitted_steps=1, reduce_mean=True)
    training.update(log_freq=100, eval_freq=250)
    training.update(snapshot_freq=1000, snapshot_freq_for_preemption=250)
    config.optim.update(lr=1e-3, warmup=200)

    sampling = config.sampling
    sampling.update(method="solver", solver="dpm++_2m_sde", schedule="log_snr", num_steps=50)

    config.eval.begin_ckpt = 3  # The last one.
    config.eval.update(batch_size=128, num_samples=256, bpd_num_repeats=1)
    config.eval.update(enable_sampling=True, enable_bpd=True)
    return config
