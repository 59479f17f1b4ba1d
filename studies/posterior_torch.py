"""Posterior samplers of azula and deepinv, with the exact scores of `studies.posterior_cases`.

Both are optional PyTorch packages (`pip install azula deepinv`). States are (B, 1, D). The score is
evaluated by JAX, with its gradient.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from studies.posterior_cases import CALLS, VP, Problem

load = importlib.import_module
Tensor = Any


def draw(
    library: str, method: str, steps: int, problem: Problem, count: int, scale: float
) -> np.ndarray:
    """Return `count` samples given each y, float64 (B, count, D).

    `method` is "DPS", with the step size `scale`, "PiGDM" or another name, for moment matching.
    """
    torch = load("torch")
    torch.set_num_threads(1)  # Threads of PyTorch and JAX would wait for each other.
    torch.manual_seed(1)
    y = _tensor(np.repeat(problem.y, count, 0))[:, None]
    sample = {"azula": _azula, "deepinv": _deepinv}[library]
    x = sample(method, steps, problem, y, scale).detach().numpy()
    return x.astype(np.float64).reshape(len(problem.y), count, -1)


def _tensor(a: Any) -> Tensor:
    return load("torch").tensor(np.asarray(a, np.float32))


def make_denoiser(problem: Problem) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return E[x_0 | x_t] as a function of x_t (B, 1, D), alpha and std, which are scalars."""
    arrays, score = problem.prior.arrays, type(problem.prior).score

    def denoise(u: jax.Array, level: jax.Array) -> jax.Array:
        mean = u + level**2 * score(arrays, u, jnp.broadcast_to(level, (len(u), 1)))
        return jnp.clip(mean, *problem.support) if problem.support else mean

    evaluate = differentiable(denoise)
    return lambda x, alpha, std: evaluate(x / alpha, float(std / alpha))


def differentiable(compute: Callable[[jax.Array, jax.Array], jax.Array]) -> Any:
    """Return a function of JAX as one of tensors (B, 1, D) and a level, with its gradient.

    CALLS counts its evaluations and gradients.
    """

    def pull_back(gradient: jax.Array, u: jax.Array, level: jax.Array) -> jax.Array:
        return jax.vjp(lambda u: compute(u, level), u)[1](gradient)[0]

    differentiate = _function("gradients", jax.jit(pull_back))
    return _function("evaluations", jax.jit(compute), differentiate)


def _function(name: str, compute: Callable[..., jax.Array], gradient: Any = None) -> Any:
    """Return a function of tensors (B, 1, D) and a level that is computed by JAX and counted.

    `gradient` returns the vector-Jacobian product from the vector and the arguments.
    """
    torch = load("torch")

    class Computed(torch.autograd.Function):
        @staticmethod
        def forward(*arguments: Any) -> Tensor:
            CALLS[name] += 1
            *tensors, level = arguments
            flat = (each.numpy(force=True)[:, 0].astype(np.float32) for each in tensors)
            return _tensor(compute(*flat, np.float32(level)))[:, None].to(tensors[0].dtype)

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            ctx.save_for_backward(*inputs[:-1])
            ctx.level = inputs[-1]

        @staticmethod
        def backward(ctx: Any, vector: Tensor) -> tuple[Tensor, None]:
            return gradient(vector, *ctx.saved_tensors, ctx.level), None

    return Computed.apply


def scales_at(t: Tensor) -> tuple[Tensor, Tensor]:
    """Return alpha(t) and std(t) of the SDE, for a tensor t."""
    alpha, std = (_tensor(scale(jnp.asarray(t.numpy()))) for scale in (VP.alpha, VP.std))
    return alpha, std


def _azula(method: str, steps: int, problem: Problem, y: Tensor, scale: float) -> Tensor:
    """Return a sample of azula for each y.

    azula's DPS divides the gradient by the norm of the residuals of the whole batch, so that its
    step size zeta is `scale` times the square root of the batch size.
    """
    torch, guidance, denoisers = load("torch"), load("azula.guidance"), load("azula.denoise")
    denoise, a = make_denoiser(problem), _tensor(problem.matrix)

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
        pinv = _tensor(np.linalg.pinv(problem.matrix))
        sampler = guidance.PGDMSampler(*given, lambda y: y @ pinv.T, **options)
    else:
        covariance = load("azula.linalg").covariance
        variance = covariance.IsotropicCovariance(torch.tensor(problem.noise**2))
        guided = guidance.MMPSDenoiser(*given, variance, solver="cg", iterations=len(a))
        sampler = load("azula.sample").DDIMSampler(guided, **options)
    return sampler(torch.randn(len(y), 1, a.shape[1]))


def _deepinv(method: str, steps: int, problem: Problem, y: Tensor, scale: float) -> Tensor:
    """Return a sample of deepinv for each y, without clipping."""
    torch, sampling, physics = load("torch"), load("deepinv.sampling"), load("deepinv.physics")
    denoise, a = make_denoiser(problem), _tensor(problem.matrix)
    operator = physics.LinearPhysics(
        A=lambda x, **_: x @ a.T,
        A_adjoint=lambda y, **_: y @ a,
        noise_model=physics.GaussianNoise(problem.noise),
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
        sde=sampling.VariancePreservingDiffusion(beta_min=VP.beta_min, beta_max=VP.beta_max),
        solver=(sampling.DDPMSolver if method == "DPS" else sampling.DDIMSolver)(times),
        minus_one_one=False,
    )
    with torch.no_grad():
        return model(y, operator, x_init=(len(y), 1, a.shape[1]))
