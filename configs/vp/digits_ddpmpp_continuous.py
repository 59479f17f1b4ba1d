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
    model.ema_rate = 0.999
    model.embedding_type = "positional"
    model.nf = 32
    model.ch_mult = (1, 2)
    model.num_res_blocks = 1
    model.attn_resolutions = ()
    model.fir = False
    model.progressive_input = "none"
    model.scale_by_sigma = False

    training = config.training
    training.sde = "vpsde"
    training.reduce_mean = True
    training.n_iters = 3000
    training.n_jitted_steps = 1
    training.log_freq = 100
    training.eval_freq = 500
    training.snapshot_freq = 1500
    training.snapshot_freq_for_preemption = 500

    optim = config.optim
    optim.lr = 1e-3
    optim.warmup = 200

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
