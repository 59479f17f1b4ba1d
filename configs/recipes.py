"""Training and sampling settings that differ from the defaults, which are those of the VE SDE."""

import ml_collections

Config = ml_collections.ConfigDict


def vp(config: Config) -> None:
    """Set the VP SDE in continuous time."""
    config.data.centered = True
    config.model.ema_rate = 0.9999
    config.model.scale_by_sigma = False
    config.training.sde = "vpsde"
    config.training.reduce_mean = True
    config.sampling.predictor = "euler_maruyama"
    config.sampling.corrector = "none"


def ddpm(config: Config) -> None:
    """Set DDPM's chain of 1000 steps and its sampler."""
    vp(config)
    config.model.num_scales = 1000
    config.training.continuous = False
    config.sampling.predictor = "ancestral_sampling"


def iddpm(config: Config) -> None:
    """Set the cosine schedule of Nichol & Dhariwal (2021), 1000 levels."""
    ddpm(config)
    config.training.sde = "cosinesde"


def edm(config: Config) -> None:
    """Set EDM's noise levels, objective and sampler, and its training on CIFAR-10.

    See Karras et al. 2022 (arXiv:2206.00364), Tables 1 and 7.
    """
    config.data.centered = True
    config.model.scale_by_sigma = False
    config.model.dropout = 0.13
    config.training.sde = "edmsde"
    config.training.time_distribution = "log_normal"
    config.training.reduce_mean = True
    config.sampling.method = "solver"
    config.sampling.solver = "heun"
    config.sampling.schedule = "karras"
    config.sampling.num_steps = 18  # 35 evaluations of the network
    config.eval.bpd_t_min = 0.002  # The smallest noise level of training.
    config.optim.lr = 1e-3
    config.optim.grad_clip = -1.0
    edm_batches(config, 512)


def edm_64(config: Config) -> None:
    """Set EDM's training and sampler for images of 64x64 pixels."""
    edm(config)
    config.optim.lr = 2e-4
    config.sampling.num_steps = 40  # 79 evaluations of the network
    edm_batches(config, 256)


def edm_batches(
    config: Config, batch_size: int, images: int = 200_000_000, half_life: int = 500_000
) -> None:
    """Set EDM's steps for a batch size: warm-up and moving average are measured in images.

    `half_life` is that of the moving average.
    """
    config.training.batch_size = batch_size
    config.training.n_iters = images // batch_size
    config.model.ema_rate = 0.5 ** (batch_size / half_life)
    config.optim.warmup = 10_000_000 // batch_size


def ncsn(config: Config) -> None:
    """Set the noise levels, optimizer and annealed Langevin dynamics of NCSN (Song & Ermon,
    2019)."""
    config.model.sigma_max = 1.0
    config.model.num_scales = 10
    config.model.ema_rate = 0.0
    config.training.continuous = False
    config.optim.lr = 1e-3
    config.optim.warmup = 0
    config.optim.grad_clip = -1.0
    config.optim.amsgrad = False
    config.sampling.predictor = "none"
    config.sampling.corrector = "ald"
    config.sampling.n_steps_each = 100
    config.sampling.snr = 0.316
