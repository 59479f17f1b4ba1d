"""A small DDPM++ with the VP SDE on scikit-learn's handwritten digits (8x8, 17 grey levels); what `make demo` runs."""

from configs.default import get_default_config


def get_config():
    config = get_default_config()

    data = config.data
    data.dataset = "digits"
    data.image_size = 8
    data.num_channels = 1
    data.random_flip = False
    data.uniform_dequantization = True
    data.centered = True

    model = config.model
    model.num_scales = 250
    model.ema_rate = 0.998
    model.embedding_type = "positional"
    model.nf = 16
    model.ch_mult = (1, 2)
    model.num_res_blocks = 1
    model.dropout = 0.0
    model.attn_resolutions = ()
    model.fir = False
    model.progressive_input = "none"
    model.scale_by_sigma = False

    training = config.training
    training.sde = "vpsde"
    training.reduce_mean = True
    training.batch_size = 64
    training.n_iters = 2600
    training.n_jitted_steps = 1
    training.log_freq = 100
    training.eval_freq = 650
    training.snapshot_freq = 2600
    training.snapshot_freq_for_preemption = 1300

    optim = config.optim
    optim.lr = 3e-3
    optim.warmup = 100

    sampling = config.sampling
    sampling.predictor = "euler_maruyama"
    sampling.corrector = "none"

    evaluate = config.eval
    evaluate.batch_size = 120
    evaluate.num_samples = 120
    evaluate.enable_sampling = True
    evaluate.enable_bpd = True
    evaluate.bpd_num_repeats = 1
    return config
