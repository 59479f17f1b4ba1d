"""DDPM++ with the VP SDE on 32x32 color patches of two photographs: small enough for two cores.

With batches of 16 and a learning rate of 2e-3, samples were patches of saturated colors: the
mean color of a patch is 1/1024 of the loss and is learned last.
"""

from configs import networks
from configs.default import get_default_config


def get_config():
    config = get_default_config()
    config.data.dataset = "photos"
    config.data.centered = True
    config.data.uniform_dequantization = True

    model = config.model
    networks.ddpmpp(model)
    model.num_scales = 250
    model.ema_rate = 0.998
    model.ema_ramp = True
    model.dropout = 0.0
    model.scale_by_sigma = False
    model.nf = 16
    model.ch_mult = (1, 2, 4)
    model.num_res_blocks = 1
    model.attn_resolutions = (8,)

    training = config.training
    training.sde = "vpsde"
    training.batch_size = 32
    training.n_iters = 3000
    training.n_jitted_steps = 1
    training.reduce_mean = True
    training.log_freq = 100
    training.eval_freq = 500
    training.snapshot_freq = 3000
    training.snapshot_freq_for_preemption = 500

    config.optim.lr = 1e-3
    config.optim.warmup = 100

    config.sampling.predictor = "euler_maruyama"
    config.sampling.corrector = "none"

    evaluate = config.eval
    evaluate.batch_size = 130
    evaluate.num_samples = 64
    evaluate.enable_sampling = True
    evaluate.bpd_num_repeats = 1
    return config
