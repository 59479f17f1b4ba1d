"""The kinds of samplers: how each is made for an SDE, and its options."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import solvers
from errors import InputError
from options import (
    FLAG,
    NOT_NEGATIVE,
    POSITIVE,
    SHORT,
    TOLERANCE,
    AnyOf,
    Integer,
    Name,
    Option,
    Options,
    Sequence,
)
from sde_lib import SDE, Score
from solvers import stability
from solvers.predictor_corrector import (
    CORRECTORS,
    FLOW_PREDICTORS,
    PREDICTORS,
    Constraint,
    Update,
    Updates,
    evaluations,
    none,
    predictor_corrector_loop,
    probability_flow_ode,
)
from solvers.results import (
    Sampler,
    Samples,
    most_evaluations,
    single_loop,
    to_samples,
    total_nfe,
)

ADAPTIVE = "adaptive_sde"
FRAMES = 16  # states of a trajectory, at most


class Setting(NamedTuple):
    """What a sampler is made for: the SDE, its number of steps, and the scale of the data.

    `data_std` is a typical standard deviation of an entry of the data, to a factor of about 2, for
    tolerances and the test of stability.
    """

    name: str
    sde: SDE
    steps: int
    data_std: float


class Kind(NamedTuple):
    """How samplers of one name are made.

    Attributes:
      make: (setting, **options) -> Sampler.
      options: the keyword arguments of `make`.
      steps: the default number of steps; None for `Defaults.levels`.
      adaptive: whether the sampler chooses its steps.
    """

    make: Callable[..., Sampler]
    options: Options
    steps: int | None = None
    adaptive: bool = False


DENOISE = {"noise_removal": Option(True, FLAG, "Drop the noise of the last step.")}
TRAJECTORY = {"trajectory": Option(False, FLAG, "Draw states on the path from noise to images.")}
SCHEDULE = {
    "schedule": Option(
        "log_snr",
        AnyOf((Name(solvers.SCHEDULES), Sequence(NOT_NEGATIVE, 2, 10**5))),
        "Noise levels of a few-step solver: their name; or the levels std / alpha, one more than "
        "steps, from that of time T to 0.",
    )
}
PC = {
    "predictor": Option("reverse_diffusion", Name(PREDICTORS), "Predictor of pc."),
    "corrector": Option("langevin", Name(CORRECTORS), "Corrector of pc."),
    "n_steps_each": Option(1, Integer(1, 10**6), "Corrections of a step."),
    "snr": Option(0.16, POSITIVE, "Signal-to-noise ratio of the corrector."),
    "probability_flow": Option(
        False, FLAG, "Let the predictor follow the probability-flow ODE, Eq. (13)."
    ),
}
SDE_TOLERANCE = {
    "tolerance": Option(0.02, TOLERANCE, "Relative error of a step of 'adaptive_sde'.")
}


def unit_of(plan: solvers.Plan, steps: int) -> str:
    """Return what a plan's rows are: solvers of second order have two evaluations in most steps."""
    return "step" if len(plan.level) == steps else "evaluation"


def _pc(setting: Setting, *, trajectory: bool, noise_removal: bool, **chosen: Any) -> Sampler:
    """Return predictor and corrector."""
    sde, steps = setting.sde, setting.sde.discretize(setting.steps)
    predictor = PREDICTORS[chosen["predictor"].lower()]
    corrector = CORRECTORS[chosen["corrector"].lower()]
    corrections = chosen["n_steps_each"] * evaluations(corrector)
    if chosen["probability_flow"]:
        if chosen["predictor"].lower() not in FLOW_PREDICTORS:
            raise InputError(
                f"probability_flow = True: predictor = {chosen['predictor']!r} has no such form; "
                f"choose one of {', '.join(FLOW_PREDICTORS)}."
            )
        predictor = functools.partial(predictor, probability_flow=True)
    levels = np.append(sde.noise_to_signal(jnp.asarray(steps.t))[1:], 0.0)
    shown = solvers.frame_indices(levels, FRAMES) if trajectory else np.array([], int)

    def loop(
        keys: Array,
        score: Score,
        *,
        constraint: Constraint | None = None,
        wrap_predictor: Callable[[Update], Update] = lambda predictor: predictor,
    ) -> solvers.Loop:
        used = wrap_predictor(predictor)
        nfe = total_nfe(score, steps.t, corrections + evaluations(used))
        updates = Updates(
            used, corrector, chosen["snr"], chosen["n_steps_each"], noise_removal, constraint
        )
        found = predictor_corrector_loop(keys, score, sde, steps, updates, shown)
        return found.then(lambda result: to_samples(result[0], nfe, *result[1:]))

    growth = functools.partial(stability.predictor_growth, sde, predictor, steps, setting.data_std)
    return Sampler(
        loop,
        setting.steps,
        f"predictor {chosen['predictor']!r} and corrector {chosen['corrector']!r}, "
        f"{setting.steps} steps",
        None if predictor is none else growth,
        f"raise the number of steps, now {setting.steps}, lower snr = {chosen['snr']}, or choose "
        f"another predictor than {chosen['predictor']!r}, such as 'ancestral_sampling'",
        tuple(levels[shown].tolist()),
        denoises=noise_removal,
    )


def _ode(setting: Setting, *, noise_removal: bool) -> Sampler:
    """Return the probability-flow ODE with adaptive steps and the official tolerances."""
    sde, steps = setting.sde, setting.sde.discretize(setting.steps)
    last = jax.tree.map(lambda leaf: leaf[-1], steps) if noise_removal else None

    def solve(score: Score, x: Array) -> Samples:
        y, calls = probability_flow_ode(score, sde, x, denoise_step=last)
        return to_samples(y, calls * most_evaluations(score, steps.t))

    title = "the probability-flow ODE with adaptive steps"
    return Sampler(single_loop(solve), title=title, denoises=noise_removal)


def _adaptive(setting: Setting, *, noise_removal: bool, tolerance: float) -> Sampler:
    """Return the solver of the reverse SDE that chooses steps for each image."""
    sde, absolute = setting.sde, setting.data_std / 64  # one of 256 gray levels, for images

    def loop(keys: Array, score: Score) -> solvers.Loop:
        def solve(x: Array) -> Samples:
            y, calls = solvers.adaptive_sde(
                *(keys, score, sde, x),
                tolerance=tolerance,
                absolute=absolute,
                denoise=noise_removal,
            )
            return to_samples(y, calls * most_evaluations(score, sde.sampling_times(1000)))

        return solvers.single(solve)

    return Sampler(
        loop,
        title=f"{ADAPTIVE!r}, with adaptive steps",
        advice=f"raise tolerance = {tolerance}, or choose another sampler",
        denoises=noise_removal,
    )


def _few_step(
    setting: Setting,
    *,
    schedule: str | tuple[float, ...],
    noise_removal: bool,
    trajectory: bool,
    **chosen: Any,
) -> Sampler:
    """Return a few-step solver."""
    name, sde, solver = setting.name, setting.sde, solvers.SOLVERS[setting.name]
    levels = solvers.noise_levels(sde, schedule, setting.steps, denoise=noise_removal)
    plan = solver.plan(levels, **chosen)
    following = np.append(plan.level[1:], levels[-1])
    shown = solvers.frame_indices(following, FRAMES) if trajectory else np.array([], int)

    def loop(keys: Array, score: Score) -> solvers.Loop:
        nfe = total_nfe(score, sde.time_at(jnp.asarray(plan.level)))
        return solvers.few_step_loop(
            *(keys, score, sde, plan, levels[-1]),
            noise_prediction=solver.noise_prediction,
            shown=shown,
        ).then(lambda result: to_samples(result[0], nfe, *result[1:]))

    return Sampler(
        loop,
        len(plan.level),
        f"{name!r}, {setting.steps} steps on {solvers.schedule_title(schedule)}",
        functools.partial(
            stability.plan_growth,
            plan,
            setting.data_std,
            noise_prediction=solver.noise_prediction,
        ),
        f"raise the number of steps, now {setting.steps}, or choose another solver than {name!r} "
        f"or schedule than {SHORT.repr(schedule)}",
        tuple(following[shown].tolist()),
        unit_of(plan, setting.steps),
        noise_removal,
    )


KINDS: dict[str, Kind] = {
    ADAPTIVE: Kind(_adaptive, {**DENOISE, **SDE_TOLERANCE}, adaptive=True),
    "ode": Kind(_ode, DENOISE, adaptive=True),
    "pc": Kind(_pc, {**PC, **DENOISE, **TRAJECTORY}),
}
"""The samplers that are not few-step solvers, by name."""


def kinds() -> dict[str, Kind]:
    """Return all samplers by name, with the solvers that a user has entered."""
    few_step = {
        name: Kind(_few_step, {**solver.options, **SCHEDULE, **DENOISE, **TRAJECTORY}, 20)
        for name, solver in sorted(solvers.SOLVERS.items())
    }
    return {**few_step, **KINDS}
