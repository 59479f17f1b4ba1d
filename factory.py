"""From a config to the objects that it describes: SDE, network, score model and sampler.

`validated` completes and checks a config against the registries of names; every other function
here takes a config that it returned.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

import datasets
import likelihood
import sampling
import solvers
import train_state
from configs import validation
from configs.default import Config, complete
from controllable import guidance
from errors import InputError, choose
from models import NETWORKS, networks_supporting
from models.classifier import WideResnet
from models.layers import ACTIVATIONS, Rngs
from models.score import ScoreModel, conventions
from sde_lib import SDE, SDES, VESDE, Score
from solvers.finite import first_bad, is_finite

FRAMES = 16  # states of a trajectory, at most
ADAPTIVE = "adaptive_sde"


class Samples(NamedTuple):
    """The result of a sampler.

    Attributes:
      x: samples (B, ...).
      nfe: evaluations of the network for each of them (B,). It is exact for fixed steps, and an
        upper bound where classifier-free guidance meets adaptive steps. Evaluations of a
        classifier are not counted.
      frames: states on the way to x, in order (F, B, ...), F <= FRAMES; F = 0 unless requested.
      bad_step: the step (B,), from 1, after which the state was first not finite; 0 if x is finite.
        Adaptive steps are not counted: 1 if x is not finite.
    """

    x: Array
    nfe: Array
    frames: Array
    bad_step: Array


@dataclasses.dataclass(frozen=True)
class Sampler:
    """A function to samples, and how it counts its steps.

    Attributes:
      run: (keys (B,), score, samples of the prior (B, ...)) -> Samples. That of sampling.method =
        'pc' has two more arguments, by name: a `constraint` for its loop, and `exchange`, a
        function from its predictor to the one that it uses instead; the attribute `evaluations`
        of the latter states its score evaluations in a step, if these are not one. The samplers of `make_flow`
        have the arguments (score, states (B, ...)).
      steps: the number of steps that `Samples.bad_step` counts; None if they are adaptive.
      frame_levels: the noise levels std / alpha of `Samples.frames`; empty if they are unknown.
    """

    run: Callable[..., Samples]
    steps: int | None = None
    frame_levels: tuple[float, ...] = ()

    def __call__(self, *arguments: Any, **options: Any) -> Samples:
        """Return the samples."""
        return self.run(*arguments, **options)


# --- validation -----------------------------------------------------------------------------------


def validated(config: Config, num_devices: int, mode: str = "") -> Config:
    """Return the complete config, locked. Raise InputError, with all problems, if it is invalid.

    Args:
      config: any config; missing fields get their defaults.
      num_devices: devices that share each batch.
      mode: the mode whose own rules apply as well, such as "restore".
    """
    config = complete(config)
    validation.check(config, choices(), num_devices, mode)
    return config


def choices() -> validation.Choices:
    """Return the names that a config may use, from the registries."""
    return validation.Choices(
        names={
            "data.dataset": datasets.DATASETS,
            "model.name": NETWORKS,
            "model.nonlinearity": ACTIVATIONS,
            "training.sde": SDES,
            "optim.optimizer": train_state.OPTIMIZERS,
            "sampling.method": SAMPLERS,
            "sampling.predictor": sampling.PREDICTORS,
            "sampling.corrector": sampling.CORRECTORS,
            "sampling.solver": (*solvers.SOLVERS, ADAPTIVE),
            "sampling.schedule": solvers.SCHEDULES,
            "eval.bpd_trace": likelihood.PROBES,
        },
        class_conditional=networks_supporting("class_conditional"),
        remat=networks_supporting("remat"),
        bfloat16=networks_supporting("bfloat16"),
        fourier=[name for name, each in NETWORKS.items() if "embedding_type" in each.fields],
        probability_flow=sampling.FLOW_PREDICTORS,
    )


# --- networks and SDEs ----------------------------------------------------------------------------


def make_sde(config: Config) -> SDE:
    """Return the SDE that config.training.sde names, with its fields from config.model."""
    sde = SDES[config.training.sde.lower()]
    names = [field.name for field in dataclasses.fields(sde)]
    return sde(**{name: config.model[name] for name in names if name in config.model})


def make_network(config: Config, rngs: Rngs) -> nnx.Module:
    """Return the network that config.model names, with random initial parameters."""
    network = NETWORKS[config.model.name]
    options = network.arguments(config.model)
    options["image_size"] = config.data.image_size
    options["num_channels"] = config.data.num_channels
    if config.data.num_classes:
        options["classes"] = config.data.num_classes
    if config.training.remat:
        options["remat"] = True
    return network.build(**options, rngs=rngs)


def make_classifier(config: Config, rngs: Rngs) -> WideResnet:
    """Return the noise-conditional classifier of config.classifier, with initial parameters."""
    return WideResnet(
        num_channels=config.data.num_channels,
        num_outputs=config.classifier.num_classes,
        blocks_per_group=config.classifier.blocks_per_group,
        channel_multiplier=config.classifier.channel_multiplier,
        rngs=rngs,
    )


def make_score_model(config: Config, sde: SDE, num_scales: int | None) -> ScoreModel:
    """Return the conventions between the network and the SDE of a config.

    `num_scales` is the number of noise levels of discrete-time training, or None.
    """
    model, sigmas = config.model, None
    # Fourier features of log(label): the label of such a network is the noise scale itself.
    options = NETWORKS[model.name].arguments(model)
    fourier = options.get("embedding_type", "").lower() == "fourier"
    if model.get("scale_by_sigma", False):
        ladder = VESDE(sigma_min=model.sigma_min, sigma_max=model.sigma_max)
        sigmas = () if fourier else tuple(ladder.sigmas(model.num_scales).tolist())
    score_model = ScoreModel(
        sde,
        num_scales,
        **conventions(config.training.sde.lower())._asdict(),
        centered=config.data.centered,
        sigmas=sigmas,
        num_classes=config.data.num_classes,
        dtype=jnp.dtype(model.dtype),
    )
    with jax.ensure_compile_time_eval():
        _, smallest_std = score_model.marginal(jnp.zeros(1))
        has_noise = bool(smallest_std[0] > 0)
    if num_scales is not None and not has_noise:
        raise InputError(
            f"training.sde = {config.training.sde!r} cannot be trained in discrete time: its first "
            "level has no noise. Set training.continuous = True."
        )
    return score_model


# --- samplers -------------------------------------------------------------------------------------


def make_sampler(config: Config, sde: SDE) -> Sampler:
    """Return the sampler that config.sampling describes."""
    return SAMPLERS[config.sampling.method.lower()](config, sde)


def _pc_sampler(config: Config, sde: SDE) -> Sampler:
    """Return predictor and corrector with config.model.num_scales steps."""
    options, steps = config.sampling, sde.discretize(config.model.num_scales)
    predictor = sampling.PREDICTORS[options.predictor.lower()]
    corrector = sampling.CORRECTORS[options.corrector.lower()]
    corrections = 0 if corrector is sampling.none else options.n_steps_each
    if options.probability_flow:
        predictor = functools.partial(predictor, probability_flow=True)
    run = functools.partial(
        sampling.predictor_corrector,
        corrector=corrector,
        snr=options.snr,
        n_steps_each=options.n_steps_each,
        denoise=options.noise_removal,
        num_frames=FRAMES if options.trajectory else 0,
    )

    def sample(
        keys: Array,
        score: Score,
        x: Array,
        *,
        constraint: sampling.Constraint | None = None,
        exchange: Callable[[sampling.Update], sampling.Update] = lambda predictor: predictor,
    ) -> Samples:
        chosen = exchange(predictor)
        evaluations = corrections + getattr(chosen, "evaluations", 1)
        if chosen is sampling.none:
            evaluations = corrections
        x, frames, bad_step = run(
            keys, score, sde, x, steps, predictor=chosen, constraint=constraint
        )
        return _samples(x, _nfe(score, steps.t, x, evaluations), frames, bad_step)

    return Sampler(sample, len(steps.t))


def _ode_sampler(config: Config, sde: SDE) -> Sampler:
    """Return the probability-flow ODE with adaptive steps."""
    steps = sde.discretize(config.model.num_scales)
    last = None
    if config.sampling.noise_removal:
        last = jax.tree.map(lambda leaf: leaf[-1], steps)

    def sample(keys: Array, score: Score, x: Array) -> Samples:
        y, calls = sampling.probability_flow_ode(score, sde, x, denoise_step=last)
        return _samples(y, calls * _most_evaluations(score, steps.t))

    return Sampler(sample)


def _solver_sampler(config: Config, sde: SDE) -> Sampler:
    """Return a few-step solver, or the adaptive solver of the reverse SDE."""
    options, name = config.sampling, config.sampling.solver.lower()
    if name == ADAPTIVE:
        return _adaptive_sampler(config, sde)
    levels = solvers.noise_levels(
        sde, options.schedule.lower(), options.num_steps, denoise=options.noise_removal
    )
    plan = make_plan(config, levels)
    noise_prediction = solvers.SOLVERS[name].noise_prediction
    shown = np.array([], int)
    if options.trajectory:
        shown = np.unique(np.linspace(0, len(plan.level) - 1, FRAMES).astype(int))

    def sample(keys: Array, score: Score, x: Array) -> Samples:
        x, states = solvers.few_step(
            keys, score, sde, x, plan, levels[-1], noise_prediction=noise_prediction
        )
        times = sde.time_at(jnp.asarray(plan.level))
        return _samples(x, _nfe(score, times, x), states[shown], first_bad(states))

    return Sampler(sample, len(plan.level))


def _adaptive_sampler(config: Config, sde: SDE) -> Sampler:
    """Return the solver of the reverse SDE that chooses steps for each image."""
    options = config.sampling
    grey_level = (2 if config.data.centered else 1) / 256

    def sample(keys: Array, score: Score, x: Array) -> Samples:
        y, calls = solvers.adaptive_sde(
            keys,
            score,
            sde,
            x,
            tolerance=options.tolerance,
            absolute=grey_level,
            denoise=options.noise_removal,
        )
        most = _most_evaluations(score, sde.sampling_times(1000))
        return _samples(y, calls * most)

    return Sampler(sample)


SAMPLERS: dict[str, Callable[[Config, SDE], Sampler]] = {
    "ode": _ode_sampler,
    "pc": _pc_sampler,
    "solver": _solver_sampler,
}
"""By `config.sampling.method`."""


def _nfe(score: Score, times: Array, x: Array, calls: int = 1) -> Array:
    """Return the network evaluations (B,) of `calls` calls at each of the times (n,)."""
    return jnp.full(x.shape[0], calls * guidance.evaluations(score, times).sum(), jnp.int32)


def _most_evaluations(score: Score, times: Array) -> Array:
    """Return the most network evaluations of a call at any of the times."""
    return guidance.evaluations(score, times).max().astype(jnp.int32)


def _samples(
    x: Array, nfe: Array, frames: Array | None = None, bad_step: Array | None = None
) -> Samples:
    """Return the samples; without `bad_step`, failures count as those of step 1."""
    frames = x[None][:0] if frames is None else frames
    bad_step = jnp.zeros(len(x), jnp.int32) if bad_step is None else bad_step
    return Samples(x, nfe, frames, jnp.where(is_finite(x), 0, jnp.maximum(bad_step, 1)))


def make_plan(config: Config, levels: np.ndarray) -> solvers.Plan:
    """Return the solver of config.sampling, written out for the noise levels (n + 1,)."""
    options = config.sampling
    solver = choose(solvers.SOLVERS, options.solver.lower(), "sampling.solver")
    return solver.plan(levels, **{field: options[field] for field in solver.options})


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
    def run(score: Score, x: Array) -> Samples:
        return _samples(*sampling.integrate_flow(score, sde, x, start, end))

    return Sampler(run)


def _solver_flow(config: Config, sde: SDE, levels: np.ndarray) -> Sampler:
    plan = make_plan(config, levels)
    noise_prediction = solvers.SOLVERS[config.sampling.solver.lower()].noise_prediction

    def run(score: Score, x: Array) -> Samples:
        y, states = solvers.few_step(
            None, score, sde, x, plan, levels[-1], noise_prediction=noise_prediction
        )
        return _samples(y, jnp.full(x.shape[0], len(plan.level)), bad_step=first_bad(states))

    return Sampler(run, len(plan.level))
