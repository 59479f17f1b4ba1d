"""Posterior samplers of azula and deepinv, with the exact score of `studies.posterior_peers`.

Both are optional PyTorch packages (`pip install azula deepinv`). States are (B, 1, SIZE).
"""

from __future__ import annotations

import functools
import importlib
import math
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from sde_lib import VPSDE
from tests import gaussian_posterior
from tests.gaussian_posterior import MEAN, SIZE

SDE = VPSDE()
COVARIANCE = gaussian_posterior.COVARIANCES["correlated"]
CALLS: Counter[str] = Counter()
"""How often the score ("evaluations"), and the gradient of a function of it, were evaluated."""
load = importlib.import_module
Tensor = Any


class Linear(NamedTuple):
    """Measurements y (B, K) = A x + noise of standard deviation `noise`, with A (K, SIZE)."""

    y: np.ndarray
    a: np.ndarray
    noise: float


def draw(
    library: str, method: str, steps: int, measured: Linear, scale: float
) -> Callable[[int], np.ndarray]:
    """Return a function of the seed to one sample for each measurement, float64 (B, SIZE).

    Args:
      library: "azula" or "deepinv".
      method: "DPS", "PiGDM" or another name, for moment matching.
      steps: on an even grid of times from 1 to 0.
      scale: the step size of DPS.
    """
    torch = load("torch")
    torch.set_num_threads(1)  # Threads of PyTorch and JAX would wait for each other.
    sampler = {"azula": _azula, "deepinv": _deepinv}[library](method, steps, measured, scale)

    def run(seed: int) -> np.ndarray:
        torch.manual_seed(seed)
        return sampler().detach().numpy().astype(np.float64).reshape(-1, SIZE)

    return run


def _tensor(a: np.ndarray) -> Tensor:
    torch = load("torch")
    return torch.tensor(a, dtype=torch.float32)


@functools.cache
def _counter() -> Any:
    """Return an identity function of tensors that counts its calls and those of its gradient."""
    torch = load("torch")

    class Counted(torch.autograd.Function):
        @staticmethod
        def forward(x: Tensor) -> Tensor:
            CALLS["evaluations"] += 1
            return x.clone()

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            pass

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            CALLS["gradients"] += 1
            return gradient.clone()

    return Counted.apply


def make_denoiser() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return E[x_0 | x_t] as a function of x_t (B, 1, SIZE), alpha and std, which are scalars."""
    count, mean = _counter(), _tensor(MEAN)
    values, vectors = (_tensor(each) for each in np.linalg.eigh(COVARIANCE))

    def denoise(x: Tensor, alpha: Tensor, std: Tensor) -> Tensor:
        gain = alpha * values / (alpha**2 * values + std**2)
        return mean + ((count(x) - alpha * mean) @ vectors * gain) @ vectors.T

    return denoise


def scales_at(t: Tensor) -> tuple[Tensor, Tensor]:
    """Return alpha(t) and std(t) of the VP SDE, for a tensor t."""
    torch = load("torch")
    log_alpha = -(0.25 * t**2 * (SDE.beta_max - SDE.beta_min) + 0.5 * t * SDE.beta_min)
    return torch.exp(log_alpha), torch.sqrt(-torch.expm1(2 * log_alpha))


def _azula(method: str, steps: int, measured: Linear, scale: float) -> Callable[[], Tensor]:
    """Return a sampler of azula.

    azula's DPS divides the gradient by the norm of the residuals of the whole batch. Its step size
    zeta is `scale` times the square root of the batch size, so that `scale` has the same effect for
    every batch size.
    """
    torch, guidance, denoisers = load("torch"), load("azula.guidance"), load("azula.denoise")
    denoise, a, y = make_denoiser(), _tensor(measured.a), _tensor(measured.y)[:, None]

    class Schedule(load("azula.noise").Schedule):
        def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
            return scales_at(t)

    class Denoiser(denoisers.Denoiser):
        schedule = Schedule()

        def forward(self, x_t: Tensor, t: Tensor) -> Any:
            return denoisers.DiracPosterior(denoise(x_t, *scales_at(t)))

    given = Denoiser(), y, lambda x: x @ a.T
    options = {"steps": steps, "silent": True}
    if method == "DPS":
        sampler = guidance.DPSSampler(*given, zeta=scale * math.sqrt(len(y)), **options)
    elif method == "PiGDM":
        pinv = _tensor(np.linalg.pinv(measured.a))
        sampler = guidance.PGDMSampler(*given, lambda y: y @ pinv.T, **options)
    else:
        covariance = load("azula.linalg").covariance
        variance = covariance.IsotropicCovariance(torch.tensor(measured.noise**2))
        guided = guidance.MMPSDenoiser(*given, variance, solver="cg", iterations=len(a))
        sampler = load("azula.sample").DDIMSampler(guided, **options)
    return lambda: sampler(torch.randn(len(y), 1, SIZE))


def _deepinv(method: str, steps: int, measured: Linear, scale: float) -> Callable[[], Tensor]:
    """Return a sampler of deepinv, without clipping."""
    torch, sampling, physics = load("torch"), load("deepinv.sampling"), load("deepinv.physics")
    denoise, a, y = make_denoiser(), _tensor(measured.a), _tensor(measured.y)[:, None]
    operator = physics.LinearPhysics(
        A=lambda x, **_: x @ a.T,
        A_adjoint=lambda y, **_: y @ a,
        noise_model=physics.GaussianNoise(measured.noise),
    )

    class Denoiser(torch.nn.Module):
        def forward(self, x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
            return denoise(x, torch.ones(()), torch.as_tensor(sigma, dtype=x.dtype).flatten()[0])

    if method == "DPS":
        fidelity = sampling.DPSDataFidelity(weight=scale)
    elif method == "PiGDM":
        fidelity = sampling.PiGDMDataFidelity(cg_max_iter=len(a))
    else:
        fidelity = sampling.MomentMatchingDataFidelity(cg_max_iter=len(a))
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    model = sampling.PosteriorDiffusion(
        data_fidelity=fidelity,
        denoiser=Denoiser(),
        sde=sampling.VariancePreservingDiffusion(beta_min=SDE.beta_min, beta_max=SDE.beta_max),
        solver=(sampling.DDPMSolver if method == "DPS" else sampling.DDIMSolver)(times),
        minus_one_one=False,
    )
    return torch.no_grad()(lambda: model(y, operator, x_init=(len(y), 1, SIZE)))
