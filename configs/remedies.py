"""Samplers in words, and errors for samples that are not finite: where, and what to change."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from configs.default import Config
from errors import NotFiniteError


def check_samples(
    config: Config,
    bad_step: np.ndarray,
    steps: int | None,
    unit: str = "step",
    *,
    mode: str = "",
    codes: bool = False,
) -> None:
    """Raise NotFiniteError if a sampler failed.

    Args:
      config: the config that describes the sampler.
      bad_step: the first step (B,) whose state was not finite, from 1; 0 for a finite image.
      steps: the number of steps; None if the solver chooses them for each image.
      unit: "evaluation" if evaluations are counted in place of steps.
      mode: the mode whose own fields may help as well, such as "restore".
      codes: whether the images are latent codes, or decoded from them. They need the probability
        flow: by the solver if sampling.method is 'solver', and by adaptive steps otherwise.
    """
    failed = bad_step[bad_step > 0]
    if not len(failed):
        return
    method = config.sampling.method.lower()
    if codes and method != "solver":
        method = "ode"
    where = ", because the solver did not converge"
    if steps is not None:
        where = f"; the first failed at {unit} {failed.min()} of {steps}"
    remedies = [*_remedies(config, method), *_remedies_of_mode(config, mode)]
    raise NotFiniteError(
        f"{len(failed)} of {len(bad_step)} images are not finite{where}. The sampler is "
        f"{describe(config, method)}. To correct it: {', or '.join(remedies)}. If nothing helps, "
        "the parameters of the checkpoint may be the cause: choose an earlier one."
    )


def describe(config: Config, method: str = "") -> str:
    """Return the sampler of config.sampling in words; `method` replaces sampling.method."""
    options, method = config.sampling, method or config.sampling.method.lower()
    if method == "ode":
        return "the probability-flow ODE with adaptive steps"
    if method == "pc":
        return (
            f"predictor {options.predictor!r} and corrector {options.corrector!r}, "
            f"{config.model.num_scales} steps"
        )
    if options.solver.lower() == "adaptive_sde":
        return "'adaptive_sde', with adaptive steps"
    return f"{options.solver!r}, {options.num_steps} steps on the schedule {options.schedule!r}"


def _remedies(config: Config, method: str) -> Iterator[str]:
    """Yield changes that may help a sampler."""
    options = config.sampling
    if method == "pc":
        if config.training.continuous:
            yield f"raise model.num_scales = {config.model.num_scales}"
        if options.corrector.lower() != "none":
            yield f"lower sampling.snr = {options.snr}"
        yield "choose another sampling.predictor or sampling.corrector"
    elif method == "ode":
        yield "set sampling.method = 'solver'"
    elif options.solver.lower() == "adaptive_sde":
        yield f"raise sampling.tolerance = {options.tolerance}"
        yield "choose another sampling.solver"
    else:
        yield f"raise sampling.num_steps = {options.num_steps}"
        yield "choose another sampling.solver or sampling.schedule"
    if options.temperature > 1:
        yield f"lower sampling.temperature = {options.temperature:g}"
    if config.training.sde.lower() == "vesde":
        yield f"check that model.sigma_max = {config.model.sigma_max} is that of the training"


def _remedies_of_mode(config: Config, mode: str) -> Iterator[str]:
    if config.guidance.classes:
        yield f"lower guidance.scale = {config.guidance.scale}"
    if mode == "restore" and config.restore.method == "dps":
        yield f"lower restore.scale = {config.restore.scale}"
    if mode == "restore":
        yield f"choose another restore.method than {config.restore.method!r}"
