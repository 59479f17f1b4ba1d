"""Defaults of the experiments on colour emoji: 32x32 pixels, of the font Noto Color Emoji.

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

    data = config.data
    data.dataset = "emoji"
    data.random_flip = False  # Letters, digits and flags are not symmetric.
    data.uniform_dequantization = True

    model = config.model
    network(model)
    model.ema_rate = 0.999
    model.ema_ramp = True
    model.dropout = 0.0
    model.nf = 32
    model.ch_mult = (1, 2, 2, 2)
    model.num_res_blocks = 1
    model.attn_resolutions = (8,)

    training = config.training
    training.batch_size = 64
    training.n_iters = 3000
    training.n_jitted_steps = 1
    training.reduce_mean = True
    training.log_freq = 100
    training.eval_freq = 250
    training.snapshot_freq = 1000
    training.snapshot_freq_for_preemption = 250

    config.optim.lr = 1e-3
    config.optim.warmup = 200

    sampling = config.sampling
    sampling.method = "solver"
    sampling.solver = "dpm++_2m_sde"
    sampling.schedule = "log_snr"
    sampling.num_steps = 50

    evaluate = config.eval
    evaluate.begin_ckpt = 3  # The last one.
    evaluate.batch_size = 128
    evaluate.num_samples = 256
    evaluate.enable_sampling = True
    evaluate.enable_bpd = True
    evaluate.bpd_num_repeats = 1
    return config
