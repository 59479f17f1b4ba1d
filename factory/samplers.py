"""The samplers of images that `config.sampling` describes, by `config.sampling.method`."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import datasets
import sampling
import solvers
from configs.default import Config
from errors import choose
from factory.sampler import Sampler, Samples, most_evaluations, to_samples, total_nfe
from sde_lib import SDE, Score
from solvers import stability

FRAMES = 16  # states of a trajectory, at most
ADAPTIVE = "adaptive_sde"


def make_sampler(config: Config, sde: SDE, data_std: float | None = None) -> Sampler:
    """Return the sampler that config.sampling describes.

    `data_std` is a typical standard deviation of an entry of the data, to a factor of about 2, for
    tolerances and the test of stability. It is that of images by default.
    """
    data_std = _image_std(config) if data_std is None else data_std
    return SAMPLERS[config.sampling.method.lower()](config, sde, data_std)


def _image_std(config: Config) -> float:
    """Return a typical standard deviation of images: a quarter of the length of their range."""
    low, high = datasets.model_range(config.data)
    return (high - low) / 4


def _pc_sampler(config: Config, sde: SDE, data_std: float) -> Sampler:
    """Return predictor and corrector with config.model.num_scales steps."""
    options, steps = config.sampling, sde.discretize(config.model.num_scales)
    predictor = sampling.PREDICTORS[options.predictor.lower()]
    corrector = sampling.CORRECTORS[options.corrector.lower()]
    corrections = 0 if corrector is sampling.none else options.n_steps_each
    if options.probability_flow:
        predictor = functools.partial(predictor, probability_flow=True)
    levels = np.append(sde.noise_to_signal(jnp.asarray(steps.t))[1:], 0.0)
    shown = solvers.frame_indices(levels, FRAMES) if options.trajectory else np.array([], int)
    make_loop = functools.partial(
        sampling.predictor_corrector_loop,
        corrector=corrector,
        snr=options.snr,
        n_steps_each=options.n_steps_each,
        denoise=options.noise_removal,
        shown=shown,
    )

    def loop(
        keys: Array,
        score: Score,
        *,
        constraint: sampling.Constraint | None = None,
        exchange: Callable[[sampling.Update], sampling.Update] = lambda predictor: predictor,
    ) -> solvers.Loop:
        chosen = exchange(predictor)
        evaluations = corrections + getattr(chosen, "evaluations", 1)
        if chosen is sampling.none:
            evaluations = corrections
        nfe = total_nfe(score, steps.t, evaluations)
        return make_loop(keys, score, sde, steps, predictor=chosen, constraint=constraint).then(
            lambda result: to_samples(result[0], nfe, *result[1:])
        )

    advice = (
        f"Raise model.num_scales = {len(steps.t)}, choose another sampling.predictor than "
        f"{options.predictor!r}, such as 'ancestral_sampling', or set sampling.method = 'solver'."
    )
    growth = functools.partial(stability.predictor_growth, sde, predictor, steps, data_std)
    growth = None if predictor is sampling.none else growth
    return Sampler(loop, len(steps.t), growth, advice, tuple(levels[shown].tolist()))


def _ode_sampler(config: Config, sde: SDE, data_std: float) -> Sampler:
    """Return the probability-flow ODE with adaptive steps."""
    del data_std  # The tolerances are those of the official code.
    steps = sde.discretize(config.model.num_scales)
    last = None
    if config.sampling.noise_removal:
        last = jax.tree.map(lambda leaf: leaf[-1], steps)

    def loop(keys: Array, score: Score) -> solvers.Loop:
        del keys  # The flow draws no noise.

        def solve(x: Array) -> Samples:
            y, calls = sampling.probability_flow_ode(score, sde, x, denoise_step=last)
            return to_samples(y, calls * most_evaluations(score, steps.t))

        return solvers.single(solve)

    return Sampler(loop)


def _solver_sampler(config: Config, sde: SDE, data_std: float) -> Sampler:
    """Return a few-step solver, or the adaptive solver of the reverse SDE."""
    options, name = config.sampling, config.sampling.solver.lower()
    if name == ADAPTIVE:
        return _adaptive_sampler(config, sde, data_std)
    levels = solvers.noise_levels(
        sde, options.schedule.lower(), options.num_steps, denoise=options.noise_removal
    )
    plan = make_plan(config, levels)
    noise_prediction = solvers.SOLVERS[name].noise_prediction
    shown, following = np.array([], int), np.append(plan.level[1:], levels[-1])
    if options.trajectory:
        shown = solvers.frame_indices(following, FRAMES)

    def loop(keys: Array, score: Score) -> solvers.Loop:
        nfe = total_nfe(score, sde.time_at(jnp.asarray(plan.level)))
        return solvers.few_step_loop(
            keys, score, sde, plan, levels[-1], noise_prediction=noise_prediction, shown=shown
        ).then(lambda result: to_samples(result[0], nfe, *result[1:]))

    advice = (
        f"Raise sampling.num_steps = {options.num_steps}, or choose another sampling.solver than "
        f"{options.solver!r} or sampling.schedule than {options.schedule!r}."
    )
    growth = functools.partial(
        stability.plan_growth, plan, data_std, noise_prediction=noise_prediction
    )
    frame_levels = tuple(following[shown].tolist())
    return Sampler(loop, len(plan.level), growth, advice, frame_levels, unit_of(plan, options))


def _adaptive_sampler(config: Config, sde: SDE, data_std: float) -> Sampler:
    """Return the solver of the reverse SDE that chooses steps for each image."""
    options = config.sampling
    absolute = data_std / 64  # one of 256 grey levels, for images

    def loop(keys: Array, score: Score) -> solvers.Loop:
        def solve(x: Array) -> Samples:
            y, calls = solvers.adaptive_sde(
                keys,
                score,
                sde,
                x,
                tolerance=options.tolerance,
                absolute=absolute,
                denoise=options.noise_removal,
            )
            most = most_evaluations(score, sde.sampling_times(1000))
            return to_samples(y, calls * most)

        return solvers.single(solve)

    return Sampler(loop)


SAMPLERS: dict[str, Callable[[Config, SDE, float], Sampler]] = {
    "ode": _ode_sampler,
    "pc": _pc_sampler,
    "solver": _solver_sampler,
}
"""By `config.sampling.method`."""


def fields_read(options: Config) -> set[str]:
    """Return the names of the fields of config.sampling, `options`, that its sampler reads."""
    found, method = {"method", "temperature", "noise_removal"}, options.method.lower()
    if method == "ode":
        return found
    if method == "pc":
        found |= {"predictor", "corrector", "probability_flow", "trajectory"}
        return found if options.corrector.lower() == "none" else found | {"snr", "n_steps_each"}
    name = options.solver.lower()
    if name == ADAPTIVE:
        return found | {"solver", "tolerance"}
    own = solvers.SOLVERS[name].options if name in solvers.SOLVERS else ()
    return found | {"solver", "schedule", "num_steps", "trajectory", *own}


def unit_of(plan: solvers.Plan, options: Config) -> str:
    """Return what a plan's rows are: solvers of second order have two evaluations in most steps."""
    return "step" if len(plan.level) == options.num_steps else "evaluation"


def make_plan(config: Config, levels: np.ndarray) -> solvers.Plan:
    """Return the solver of config.sampling, written out for the noise levels (n + 1,)."""
    options = config.sampling
    solver = choose(solvers.SOLVERS, options.solver.lower(), "sampling.solver")
    return solver.plan(levels, **{field: options[field] for field in solver.options})
