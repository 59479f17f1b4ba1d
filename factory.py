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
from solvers import stability
from solvers.finite import is_finite

FRAMES = 16  # states of a trajectory, at most
ADAPTIVE = "adaptive_sde"
MOST_STD = 2.0  # of the states of Gaussian data, relative to the exact one; official samplers: 1.02


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
    """A loop to samples, and how it counts its steps.

    Attributes:
      loop: (keys (B,), score) -> Loop from samples of the prior (B, ...) to Samples. That of
        sampling.method = 'pc' has two more arguments, by name: a `constraint` for its loop, and
        `exchange`, a function from its predictor to the one that it uses instead; the attribute
        `evaluations` of the latter states its score evaluations in a step, if these are not one.
        The samplers of `make_flow` have the argument (score), and start from any states.
      steps: the number of steps, which `Samples.bad_step` counts; None if they are adaptive.
      stds: the std of the states of Gaussian data after each step, relative to the exact one; see
        `solvers.stability`. None if it is not known.
      advice: what to change if that is too large.
      frame_levels: the noise levels std / alpha of `Samples.frames`; empty if they are unknown.
    """

    loop: Callable[..., solvers.Loop]
    steps: int | None = None
    stds: Callable[[], np.ndarray] | None = None
    advice: str = ""
    frame_levels: tuple[float, ...] = ()

    def __call__(self, *arguments: Any, **options: Any) -> Samples:
        """Return the samples: the arguments are those of `loop`, and the states to start from."""
        *inputs, x = arguments
        return self.loop(*inputs, **options).run(x)

    def check_stable(self) -> None:
        """Raise InputError if the steps are too long for the SDE. Nothing is computed twice."""
        stds = self._stds
        if np.all(stds <= MOST_STD):
            return
        step = int(np.argmin(stds <= MOST_STD)) + 1
        raise InputError(
            f"step {step} of {len(stds)} of the sampler is unstable: the states of Gaussian data "
            f"then have {stds[step - 1]:.3g} times their standard deviation, of which {MOST_STD:g} "
            f"times are allowed. {self.advice}"
        )

    @functools.cached_property
    def _stds(self) -> np.ndarray:
        return np.array([]) if self.stds is None else self.stds()


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
        nfe = _nfe(score, steps.t, evaluations)
        return make_loop(keys, score, sde, steps, predictor=chosen, constraint=constraint).then(
            lambda result: _samples(result[0], nfe, *result[1:])
        )

    advice = (
        f"Raise model.num_scales = {len(steps.t)}, choose another sampling.predictor than "
        f"{options.predictor!r}, such as 'ancestral_sampling', or set sampling.method = 'solver'."
    )
    stds = functools.partial(stability.predictor_stds, sde, predictor, steps, _data_std(config))
    stds = None if predictor is sampling.none else stds
    return Sampler(loop, len(steps.t), stds, advice, tuple(levels[shown].tolist()))


def _ode_sampler(config: Config, sde: SDE) -> Sampler:
    """Return the probability-flow ODE with adaptive steps."""
    steps = sde.discretize(config.model.num_scales)
    last = None
    if config.sampling.noise_removal:
        last = jax.tree.map(lambda leaf: leaf[-1], steps)

    def loop(keys: Array, score: Score) -> solvers.Loop:
        del keys  # The flow draws no noise.

        def solve(x: Array) -> Samples:
            y, calls = sampling.probability_flow_ode(score, sde, x, denoise_step=last)
            return _samples(y, calls * _most_evaluations(score, steps.t))

        return solvers.single(solve)

    return Sampler(loop)


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
    shown, following = np.array([], int), np.append(plan.level[1:], levels[-1])
    if options.trajectory:
        shown = solvers.frame_indices(following, FRAMES)

    def loop(keys: Array, score: Score) -> solvers.Loop:
        nfe = _nfe(score, sde.time_at(jnp.asarray(plan.level)))
        return solvers.few_step_loop(
            keys, score, sde, plan, levels[-1], noise_prediction=noise_prediction, shown=shown
        ).then(lambda result: _samples(result[0], nfe, *result[1:]))

    advice = (
        f"Raise sampling.num_steps = {options.num_steps}, or choose another sampling.solver than "
        f"{options.solver!r} or sampling.schedule than {options.schedule!r}."
    )
    stds = functools.partial(
        stability.plan_stds, plan, _data_std(config), noise_prediction=noise_prediction
    )
    return Sampler(loop, len(plan.level), stds, advice, tuple(following[shown].tolist()))


def _data_std(config: Config) -> float:
    """Return a typical std of images in the model's range: a quarter of its length."""
    return 0.5 if config.data.centered else 0.25


def _adaptive_sampler(config: Config, sde: SDE) -> Sampler:
    """Return the solver of the reverse SDE that chooses steps for each image."""
    options = config.sampling
    grey_level = (2 if config.data.centered else 1) / 256

    def loop(keys: Array, score: Score) -> solvers.Loop:
        def solve(x: Array) -> Samples:
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

        return solvers.single(solve)

    return Sampler(loop)


SAMPLERS: dict[str, Callable[[Config, SDE], Sampler]] = {
    "ode": _ode_sampler,
    "pc": _pc_sampler,
    "solver": _solver_sampler,
}
"""By `config.sampling.method`."""


def _nfe(score: Score, times: Array, calls: int = 1) -> Array:
    """Return the network evaluations () of `calls` calls at each of the times (n,)."""
    return (calls * guidance.evaluations(score, times).sum()).astype(jnp.int32)


def _most_evaluations(score: Score, times: Array) -> Array:
    """Return the most network evaluations of a call at any of the times."""
    return guidance.evaluations(score, times).max().astype(jnp.int32)


def _samples(
    x: Array, nfe: Array, frames: Array | None = None, bad_step: Array | None = None
) -> Samples:
    """Return the samples; without `bad_step`, failures count as those of step 1."""
    nfe = jnp.broadcast_to(nfe, len(x))
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
    def loop(score: Score) -> solvers.Loop:
        return solvers.single(
            lambda x: _samples(*sampling.integrate_flow(score, sde, x, start, end))
        )

    return Sampler(loop)


def _solver_flow(config: Config, sde: SDE, levels: np.ndarray) -> Sampler:
    plan = make_plan(config, levels)
    noise_prediction = solvers.SOLVERS[config.sampling.solver.lower()].noise_prediction
    nfe = jnp.int32(len(plan.level))

    def loop(score: Score) -> solvers.Loop:
        return solvers.few_step_loop(
            None, score, sde, plan, levels[-1], noise_prediction=noise_prediction
        ).then(lambda result: _samples(result[0], nfe, *result[1:]))

    return Sampler(loop, len(plan.level))
