"""Training and sampling settings that differ from the defaults, which are those of the VE SDE."""

import ml_collections

Config = ml_collections.ConfigDict


def vp(config: Config) -> None:
    """Set the VP SDE in continuous time."""
    config.data.centered = True
    config.model.update(ema_rate=0.9999, scale_by_sigma=False)
    config.training.update(sde="vpsde", reduce_mean=True)
    config.sampling.update(predictor="euler_maruyama", corrector="none")


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
    config.model.update(scale_by_sigma=False, dropout=0.13)
    config.training.update(sde="edmsde", time_distribution="log_normal", reduce_mean=True)
    # 18 steps are 35 evaluations of the network.
    config.sampling.update(method="solver", solver="heun", schedule="karras", num_steps=18)
    config.eval.bpd_t_min = 0.002  # The smallest noise level of training.
    config.optim.update(lr=1e-3, grad_clip=-1.0)
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
    config.training.update(batch_size=batch_size, n_iters=images // batch_size)
    config.model.ema_rate = 0.5 ** (batch_size / half_life)
    config.optim.warmup = 10_000_000 // batch_size


def ncsn(config: Config) -> None:
    """Set the noise levels, optimizer and annealed Langevin dynamics of NCSN (Song & Ermon,
    2019)."""
    config.model.update(sigma_max=1.0, num_scales=10, ema_rate=0.0)
    config.training.continuous = False
    config.optim.update(lr=1e-3, warmup=0, grad_clip=-1.0, amsgrad=False)
    config.sampling.update(predictor="none", corrector="ald", n_steps_each=100, snr=0.316)
