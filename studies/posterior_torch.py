"""Posterior samplers of azula and deepinv, with the exact score of `studies.posterior_problem`.

Both are optional PyTorch packages (`pip install azula deepinv`). States have the shape (B, 1, 16).
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from jax import Array

from studies.posterior_problem import CALLS, COVARIANCE, SDE, Contestant, Draw, Problem
from tests.gaussian_posterior import MEAN, SIZE

Tensor = Any  # PyTorch is an optional dependency.
SCALES = {
    "azula": (0.02, 0.05, 0.1, 0.2, 0.5, 1.0),
    "deepinv": (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0),
}
"""Step sizes of DPS, which have other units in each library."""
MATCHING = {"azula": "MMPS", "deepinv": "moment matching"}
"""The libraries' names of moment matching."""


def missing(*packages: str) -> list[str]:
    """Return the packages that are not installed."""
    return [name for name in packages if importlib.util.find_spec(name) is None]


def contestants() -> list[Contestant]:
    """Return the samplers of the packages that are installed; print which are skipped."""
    found = []
    if not missing("torch"):  # Threads of PyTorch and JAX would wait for each other.
        importlib.import_module("torch").set_num_threads(1)
    for library, prepare in (("azula", _prepare_azula), ("deepinv", _prepare_deepinv)):
        if absent := missing("torch", library):
            print(f"{library} is skipped: not installed: {', '.join(absent)}", flush=True)
            continue
        methods = [("DPS", 200, SCALES[library])]
        methods += [(m, n, ()) for m in ("PiGDM", MATCHING[library]) for n in (20, 100)]
        for method, steps, scales in methods:
            sampler = functools.partial(prepare, method, steps)
            found.append(Contestant(library, method, steps, sampler, sampler, scales))
    return found


# --- the exact denoiser ---


@functools.cache
def _counter() -> Any:
    """Return an identity function of tensors that counts its calls and those of its gradient."""
    torch = importlib.import_module("torch")

    class Counter(torch.autograd.Function):
        @staticmethod
        def forward(x: Tensor) -> Tensor:
            CALLS.evaluations += 1
            return x.clone()

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            pass

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            CALLS.gradients += 1
            return gradient.clone()

    return Counter.apply


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
    torch = importlib.import_module("torch")
    log_alpha = -(0.25 * t**2 * (SDE.beta_max - SDE.beta_min) + 0.5 * t * SDE.beta_min)
    return torch.exp(log_alpha), torch.sqrt(-torch.expm1(2 * log_alpha))


def _tensor(a: np.ndarray) -> Tensor:
    torch = importlib.import_module("torch")
    return torch.tensor(a, dtype=torch.float32)


# --- azula ---


def _prepare_azula(method: str, steps: int, problem: Problem, y: Array, scale: float) -> Draw:
    """Prepare a sampler of azula, on its even grid of times from 1 to 0.

    azula's DPS divides the gradient by the norm of the residuals of the whole batch. Its step size
    zeta is `scale` times the square root of the batch size, so that `scale` has the same effect for
    every batch size.
    """
    torch, guidance = importlib.import_module("torch"), importlib.import_module("azula.guidance")
    linalg, sample = (importlib.import_module(f"azula.{name}") for name in ("linalg", "sample"))
    denoiser, a = _azula_denoiser(), _tensor(problem.a)
    measured, pinv = _tensor(problem.reduce(y))[:, None], _tensor(np.linalg.pinv(problem.a))
    options = {"steps": steps, "silent": True}

    def forward(x: Tensor) -> Tensor:
        return x @ a.T

    if method == "DPS":
        zeta = scale * math.sqrt(len(y))
        sampler = guidance.DPSSampler(denoiser, measured, forward, zeta=zeta, **options)
    elif method == "PiGDM":
        sampler = guidance.PGDMSampler(denoiser, measured, forward, lambda y: y @ pinv.T, **options)
    else:
        noise = linalg.covariance.IsotropicCovariance(torch.tensor(problem.noise**2))
        guided = guidance.MMPSDenoiser(
            denoiser, measured, forward, noise, solver="cg", iterations=len(a)
        )
        sampler = sample.DDIMSampler(guided, **options)

    def draw(seed: int) -> np.ndarray:
        torch.manual_seed(seed)
        x = sampler(torch.randn(len(y), 1, SIZE))
        return x.numpy().astype(np.float64).reshape(-1, SIZE)

    return draw


@functools.cache
def _azula_denoiser() -> Any:
    azula, noise = importlib.import_module("azula.denoise"), importlib.import_module("azula.noise")
    denoise = make_denoiser()

    class Schedule(noise.Schedule):
        def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
            return scales_at(t)

    class Denoiser(azula.Denoiser):
        schedule = Schedule()

        def forward(self, x_t: Tensor, t: Tensor) -> Any:
            return azula.DiracPosterior(denoise(x_t, *scales_at(t)))

    return Denoiser()


# --- deepinv ---


def _prepare_deepinv(method: str, steps: int, problem: Problem, y: Array, scale: float) -> Draw:
    """Prepare a sampler of deepinv, without clipping, on an even grid of times from 1 to 0."""
    torch, sampling = importlib.import_module("torch"), importlib.import_module("deepinv.sampling")
    physics_of, a = importlib.import_module("deepinv.physics"), _tensor(problem.a)
    measured, denoise = _tensor(problem.reduce(y))[:, None], make_denoiser()
    physics = physics_of.LinearPhysics(
        A=lambda x, **_: x @ a.T,
        A_adjoint=lambda y, **_: y @ a,
        noise_model=physics_of.GaussianNoise(problem.noise),
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
    solver = sampling.DDPMSolver(times) if method == "DPS" else sampling.DDIMSolver(times)
    model = sampling.PosteriorDiffusion(
        data_fidelity=fidelity,
        denoiser=Denoiser(),
        sde=sampling.VariancePreservingDiffusion(beta_min=SDE.beta_min, beta_max=SDE.beta_max),
        solver=solver,
        minus_one_one=False,
    )

    def draw(seed: int) -> np.ndarray:
        torch.manual_seed(seed)
        with torch.no_grad():
            x = model(measured, physics, x_init=(len(y), 1, SIZE))
        return x.numpy().astype(np.float64).reshape(-1, SIZE)

    return draw
