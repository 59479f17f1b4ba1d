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
    """Set the noise levels and the preconditioning of EDM (Karras et al. 2022)."""
    config.data.centered = True
    config.model.scale_by_sigma = False
    config.training.sde = "edmsde"


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
