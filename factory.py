"""From what a config says to what it means: SDE, network, score model and sampler."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

import sampling
import solvers
from configs.default import Config
from controllable import guidance
from errors import InputError, check_name, choose
from models import NETWORKS, networks_supporting
from models.classifier import WideResnet
from models.layers import Rngs
from models.score import ScoreModel
from sde_lib import SDE, SDES, VESDE, Score

FRAMES = 16  # states of a trajectory, at most


class Samples(NamedTuple):
    """What a sampler returns: samples x (B, ...), evaluations of the network for each of them (B,), and `frames`, the
    states on the way to x, in order (F, B, ...) with F at most FRAMES; F = 0 unless they were asked for.

    Classifier-free guidance evaluates the network twice where its scale is not 1. With steps that are chosen on the way
    the evaluations are, then, at most `nfe`, else exactly. Those of a classifier are not counted."""

    x: Array
    nfe: Array
    frames: Array


Sampler = Callable[..., Samples]
"""(keys (B,), score, samples of the prior (B, ...)) -> Samples.

That of sampling.method = 'pc' takes by name, besides, a `constraint` for its loop, and `exchange`, a function from its
predictor to the one that it is to use."""

Map = Callable[[Score, Array], tuple[Array, Array]]
"""(score, states (B, ...)) -> states (B, ...), score evaluations of each (B,)."""


def make_sde(config: Config) -> SDE:
    """The SDE that config.training.sde names, with those of its fields that config.model sets."""
    sde = choose(SDES, config.training.sde.lower(), "training.sde")
    return sde(**matching(sde, config.model))


def make_network(config: Config, rngs: Rngs) -> nnx.Module:
    """The network that config.model names, with randomly initialised parameters."""
    network = choose(NETWORKS, config.model.name, "model.name")
    shape = {"image_size": config.data.image_size, "num_channels": config.data.num_channels}
    if config.data.num_classes:
        _check_classes(config)
        shape["classes"] = config.data.num_classes
    if config.training.remat:
        _check_capability(config, "remat", "training.remat = True")
        shape["remat"] = True
    if not 0 <= config.model.get("dropout", 0) < 1:
        raise InputError(
            f"model.dropout = {config.model.dropout} must be at least 0 and less than 1."
        )
    return network.build(**network.arguments(config.model), **shape, rngs=rngs)


def _check_capability(config: Config, capability: str, setting: str) -> None:
    """Raise InputError unless the network has the capability that `setting`, a field, requires."""
    known = networks_supporting(capability)
    if config.model.name not in known:
        raise InputError(f"{setting} needs model.name in {known}, not {config.model.name!r}.")


def _check_classes(config: Config) -> None:
    """Raises InputError for a bad data.num_classes or model.class_dropout, or a network that cannot be told classes."""
    known = networks_supporting("class_conditional")
    if config.model.name not in known:
        raise InputError(
            f"data.num_classes = {config.data.num_classes}: networks of model.name = {config.model.name!r} cannot be "
            f"told classes, having no embedding to add one to; known that can: {', '.join(known)}."
        )
    if config.data.num_classes < 0 or not 0 <= config.model.class_dropout <= 1:
        raise InputError(
            f"data.num_classes = {config.data.num_classes} must not be negative, and model.class_dropout = "
            f"{config.model.class_dropout} must lie between 0 and 1."
        )


def make_classifier(config: Config, rngs: Rngs) -> WideResnet:
    """The noise-conditional classifier of config.classifier, with randomly initialised parameters."""
    options = matching(WideResnet, config.classifier)
    return WideResnet(
        num_channels=config.data.num_channels,
        num_outputs=config.classifier.num_classes,
        **options,
        rngs=rngs,
    )


def check_guidance(config: Config) -> None:
    """Raises InputError for bad values in config.guidance."""
    options = config.guidance
    field, count = "data.num_classes", config.data.num_classes
    if not count:  # Then a classifier guides.
        field, count = "classifier.num_classes", config.classifier.num_classes
    bad = [c for c in options.classes if not isinstance(c, int) or not 0 <= c < count]
    if bad:
        raise InputError(
            f"guidance.classes has {bad[0]!r}; by {field} = {count} the classes are 0 .. {count - 1}."
        )
    if not 0 <= options.scale < math.inf:
        raise InputError(f"guidance.scale = {options.scale} must be a number that is not negative.")
    interval = tuple(options.interval)
    if len(interval) != 2 or not 0 <= interval[0] < interval[1]:
        raise InputError(
            f"guidance.interval = {interval} must be two noise levels (std / alpha), the lower one first."
        )


def make_score_model(config: Config, sde: SDE, num_scales: int | None) -> ScoreModel:
    """The conventions between the network and the SDE of a config."""
    model, sigmas = config.model, None
    options = choose(NETWORKS, model.name, "model.name").arguments(model)
    check_name(model.dtype, ("float32", "bfloat16"), "model.dtype")
    if model.dtype != "float32":
        _check_capability(config, "bfloat16", f"model.dtype = {model.dtype!r}")
    fourier = (
        options.get("embedding_type", "").lower() == "fourier"
    )  # Features of log(label): the label is sigma.
    if fourier and num_scales is not None:
        raise InputError(
            "model.embedding_type = 'fourier' needs training.continuous = True; 'positional' fits both."
        )
    if model.get("scale_by_sigma", False):
        ladder = VESDE(sigma_min=model.sigma_min, sigma_max=model.sigma_max)
        sigmas = () if fourier else tuple(ladder.sigmas(model.num_scales).tolist())
    dtype = jnp.dtype(model.dtype)
    return ScoreModel(sde, num_scales, config.data.centered, sigmas, config.data.num_classes, dtype)


# --- samplers ---------------------------------------------------------------------------------------------------------


def make_sampler(config: Config, sde: SDE) -> Sampler:
    """The sampler that config.sampling describes. Raises InputError for names and values it does not know."""
    make = {"ode": _ode_sampler, "pc": _pc_sampler, "solver": _solver_sampler}
    return choose(make, config.sampling.method.lower(), "sampling.method")(config, sde)


def _pc_sampler(config: Config, sde: SDE) -> Sampler:
    """Predictor and corrector on config.model.num_scales steps."""
    options, steps = config.sampling, sde.discretize(config.model.num_scales)
    predictor = choose(sampling.PREDICTORS, options.predictor.lower(), "sampling.predictor")
    corrector = choose(sampling.CORRECTORS, options.corrector.lower(), "sampling.corrector")
    evaluations = (predictor is not sampling.none) + options.n_steps_each * (
        corrector is not sampling.none
    )
    if options.probability_flow:
        if "probability_flow" not in inspect.signature(predictor).parameters:
            raise InputError(
                f"sampling.predictor = {options.predictor!r} has no form for sampling.probability_flow = True."
            )
        predictor = functools.partial(predictor, probability_flow=True)
    settings = {
        "snr": options.snr,
        "n_steps_each": options.n_steps_each,
        "denoise": options.noise_removal,
    }
    settings["num_frames"] = FRAMES if options.trajectory else 0
    run = functools.partial(sampling.predictor_corrector, corrector=corrector, **settings)

    def sample(
        keys: Array,
        score: Score,
        x: Array,
        *,
        constraint: sampling.Constraint | None = None,
        exchange: Callable[[sampling.Update], sampling.Update] = lambda predictor: predictor,
    ) -> Samples:
        x, frames = run(
            keys, score, sde, x, steps, predictor=exchange(predictor), constraint=constraint
        )
        return Samples(x, _nfe(score, steps.t, x, evaluations), frames)

    return sample


def _ode_sampler(config: Config, sde: SDE) -> Sampler:
    """The probability-flow ODE, by adaptive steps."""
    options = config.sampling
    _refuse_trajectory(options, "the steps of sampling.method = 'ode' differ from image to image")
    steps = sde.discretize(config.model.num_scales)
    last = jax.tree.map(lambda leaf: leaf[-1], steps) if options.noise_removal else None

    def sample(keys: Array, score: Score, x: Array) -> Samples:
        y, calls = sampling.probability_flow_ode(score, sde, x, denoise_step=last)
        return Samples(y, calls * _most(score, steps.t), x[None][:0])

    return sample


def _solver_sampler(config: Config, sde: SDE) -> Sampler:
    """A few-step solver, or the SDE solver that chooses its steps."""
    options, name = config.sampling, config.sampling.solver.lower()
    check_name(name, (*solvers.SOLVERS, ADAPTIVE), "sampling.solver")
    if name == ADAPTIVE:
        _refuse_trajectory(
            options, f"the steps of sampling.solver = {name!r} differ from image to image"
        )
        grey_level = (2 if config.data.centered else 1) / 256
        settings = {
            "tolerance": options.tolerance,
            "absolute": grey_level,
            "denoise": options.noise_removal,
        }

        def sample(keys: Array, score: Score, x: Array) -> Samples:
            y, calls = sampling.adaptive_sde(keys, score, sde, x, **settings)
            return Samples(y, calls * _most(score, sde.sampling_times(1000)), x[None][:0])

        return sample

    levels = solvers.noise_levels(
        sde, options.schedule.lower(), options.num_steps, denoise=options.noise_removal
    )
    plan = make_plan(config, levels)
    prediction = {"noise_prediction": solvers.SOLVERS[name].noise_prediction}
    shown = (
        np.unique(np.linspace(0, len(plan.level) - 1, FRAMES).astype(int))
        if options.trajectory
        else []
    )

    def sample(keys: Array, score: Score, x: Array) -> Samples:
        x, states = sampling.few_step(keys, score, sde, x, plan, levels[-1], **prediction)
        times = sde.time_at(jnp.asarray(plan.level))
        return Samples(x, _nfe(score, times, x), states[np.asarray(shown, int)])

    return sample


def _nfe(score: Score, times: Array, x: Array, calls: int = 1) -> Array:
    """Evaluations of the network (B,) in `calls` calls at each of the times (n,)."""
    return jnp.full(x.shape[0], calls * guidance.evaluations(score, times).sum(), jnp.int32)


def _most(score: Score, times: Array) -> Array:
    """The most evaluations of the network in a call at any of the times."""
    return guidance.evaluations(score, times).max().astype(jnp.int32)


ADAPTIVE = "adaptive_sde"


def make_plan(config: Config, levels: np.ndarray) -> solvers.Plan:
    """The solver of config.sampling written out for these noise levels (n + 1,). Raises InputError for bad options."""
    options = config.sampling
    solver = choose(solvers.SOLVERS, options.solver.lower(), "sampling.solver")
    return solver.plan(levels, **{field: options[field] for field in solver.options})


def make_flow(config: Config, sde: SDE) -> tuple[Map, Map]:
    """The probability flow as a map from data to latent codes and its inverse.

    It joins the times sde.t_end and T: data are taken for states at t_end, and no last step denoises. It is integrated
    by the solver of config.sampling or, unless sampling.method is 'solver', by adaptive steps.

    Raises InputError if the solver draws noise.
    """
    options, name = config.sampling, config.sampling.solver.lower()
    if options.method.lower() != "solver":
        solve = lambda t0, t1: lambda score, x: sampling.integrate_flow(score, sde, x, t0, t1)
        return solve(sde.t_end, sde.T), solve(sde.T, sde.t_end)
    known = [name for name, solver in solvers.SOLVERS.items() if not solver.stochastic]
    if name not in known:
        raise InputError(
            f"Latent codes need a solver without noise; sampling.solver = {name!r} is none of {known}."
        )
    down = solvers.noise_levels(sde, options.schedule.lower(), options.num_steps, denoise=False)

    def along(levels: np.ndarray) -> Map:
        plan, prediction = make_plan(config, levels), solvers.SOLVERS[name].noise_prediction

        def run(score: Score, x: Array) -> tuple[Array, Array]:
            y, _ = sampling.few_step(
                None, score, sde, x, plan, levels[-1], noise_prediction=prediction
            )
            return y, jnp.full(x.shape[0], len(plan.level))

        return run

    return along(down[::-1]), along(down)


def _refuse_trajectory(options: Config, reason: str) -> None:
    if options.trajectory:
        raise InputError(f"sampling.trajectory = True cannot be had: {reason}.")


def matching(constructor: Callable[..., Any], fields: Config) -> dict[str, Any]:
    """Those of the fields that are arguments of a class."""
    names = inspect.signature(constructor.__init__).parameters
    return {name: value for name, value in fields.items() if name in names}
