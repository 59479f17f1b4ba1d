"""Comparison of our few-step solvers with diffusers' schedulers, state by state."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import solvers
from benchmarks.digit_mixture import DigitMixture
from benchmarks.markdown import header, row
from sde_lib import VPSDE

SCHEDULERS = {  # of diffusers, by our solver: (class, options)
    "dpm++_2m": ("DPMSolverMultistepScheduler", {"solver_order": 2}),
    "dpm++_3m_diffusers": ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    "unipc_2": ("UniPCMultistepScheduler", {"solver_order": 2}),
    "unipc_3": ("UniPCMultistepScheduler", {"solver_order": 3}),
    "deis": ("DEISMultistepScheduler", {"solver_order": 3}),
}


def rows() -> list[str]:
    """Compare solvers with diffusers' schedulers on the mixture's probability flow of the VP SDE.

    Both use the same noise levels and prior samples.
    """
    import diffusers
    import torch

    sde, mixture = VPSDE(), DigitMixture()
    score = jax.jit(mixture.score(sde))
    x = jax.random.normal(jax.random.key(0), (64, *mixture.shape))

    def own_states(name: str, levels: np.ndarray) -> np.ndarray:
        solver = solvers.SOLVERS[name]
        plan, prediction = solver.plan(levels), {"noise_prediction": solver.noise_prediction}

        @jax.jit
        def run(x: Array) -> Array:
            return solvers.few_step(None, score, sde, x, plan, levels[-1], **prediction)[1]

        return np.asarray(run(x))

    def peer_states(name: str, levels: np.ndarray) -> np.ndarray:
        kind, options = SCHEDULERS[name]
        scheduler = getattr(diffusers, kind)(use_karras_sigmas=True, **options)
        scheduler.set_timesteps(len(levels) - 1)
        scheduler.sigmas = torch.tensor(levels)
        state, states = torch.tensor(np.asarray(x)), []
        for t, timestep in zip(sde.time_at(jnp.asarray(levels)), scheduler.timesteps):
            s = score(jnp.asarray(state.numpy(), jnp.float32), jnp.full(len(x), t))
            noise = torch.tensor(np.asarray(-sde.std(t) * s))
            state = scheduler.step(noise, timestep, state).prev_sample
            states.append(state.numpy())
        return np.array(states)

    def noise_levels(steps: int, denoise: bool) -> np.ndarray:
        return solvers.noise_levels(sde, "log_snr", steps, denoise=denoise)

    def rms(error: np.ndarray) -> str:
        return f"{np.sqrt(np.mean(error**2)):.2e}"

    titles = "solver", "NFE", "largest difference of states", "error, ours", "error, diffusers"
    lines = header(*titles)
    truths = {
        denoise: own_states("dpm++_3m", noise_levels(1000, denoise))[-1]
        for denoise in (True, False)
    }
    for name in SCHEDULERS:
        denoise = name != "deis"  # diffusers' DEIS cannot reach noise level 0.
        for steps in (10, 20):
            levels, truth = noise_levels(steps, denoise), truths[denoise]
            own, peer = own_states(name, levels), peer_states(name, levels)
            difference = f"{np.abs(own - peer).max():.1e}"
            errors = rms(own[-1] - truth), rms(peer[-1] - truth)
            lines.append(row(f"`{name}`", str(steps), difference, *errors))
            print(lines[-1], flush=True)
    return lines
