"""The probability flow of a config, as a map from images to latent codes and back."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

import sampling
import solvers
from configs.default import Config
from errors import InputError
from factory.sampler import Sampler, to_samples
from factory.samplers import make_plan, unit_of
from sde_lib import SDE, Score


def make_flow(config: Config, sde: SDE) -> tuple[Sampler, Sampler]:
    """Return the probability flow as a map from data to latent codes, and its inverse.

    Their arguments are (score, states (B, ...)), and x is the state that they lead to.

    The flow connects the times sde.t_end and T: data are states at t_end, and no last step
    denoises. It is integrated by the solver of config.sampling if sampling.method is 'solver', and
    by adaptive steps otherwise.

    Raises InputError if the solver draws noise.
    """
    if config.sampling.method.lower() != "solver":
        return _adaptive_flow(sde, sde.t_end, sde.T), _adaptive_flow(sde, sde.T, sde.t_end)
    options, name = config.sampling, config.sampling.solver.lower()
    deterministic = [name for name, solver in solvers.SOLVERS.items() if not solver.stochastic]
    if name not in deterministic:
        raise InputError(
            f"sampling.solver = {name!r} draws noise; latent codes need one of "
            f"{', '.join(sorted(deterministic))}."
        )
    levels = solvers.noise_levels(sde, options.schedule.lower(), options.num_steps, denoise=False)
    return _solver_flow(config, sde, levels[::-1]), _solver_flow(config, sde, levels)


def _adaptive_flow(sde: SDE, start: float, end: float) -> Sampler:
    def loop(score: Score) -> solvers.Loop:
        return solvers.single(
            lambda x: to_samples(*sampling.integrate_flow(score, sde, x, start, end))
        )

    return Sampler(loop)


def _solver_flow(config: Config, sde: SDE, levels: np.ndarray) -> Sampler:
    plan = make_plan(config, levels)
    noise_prediction = solvers.SOLVERS[config.sampling.solver.lower()].noise_prediction
    nfe = jnp.int32(len(plan.level))

    def loop(score: Score) -> solvers.Loop:
        return solvers.few_step_loop(
            None, score, sde, plan, levels[-1], noise_prediction=noise_prediction
        ).then(lambda result: to_samples(result[0], nfe, *result[1:]))

    return Sampler(loop, len(plan.level), unit=unit_of(plan, config.sampling))
