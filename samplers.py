"""Samplers by name, built from plain arguments: a loop from noise to samples, and its options.

A sampler is one of the few-step solvers of `solvers.SOLVERS`, the adaptive solver of the reverse
SDE ('adaptive_sde'), the probability-flow ODE with adaptive steps ('ode'), or predictor and
corrector ('pc', Algorithm 1 of arXiv:2011.13456). `make` returns one, and `make_flow` the
probability flow as a map between data and latent codes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax import Array

import options
import sampling
import solvers
from errors import InputError, choose
from options import FLAG, TOLERANCE, Integer, Name, Option, Options
from sde_lib import SDE, Score
from solvers import stability
from solvers.finite import is_finite

ADAPTIVE = "adaptive_sde"
DEFAULT = "dpm++_2m_sde"
FRAMES = 16  # states of a trajectory, at most
MOST_STEPS = 10**5
MOST_ERROR = 30.0  # the growth of errors; with 20 steps on the schedule log_snr, at most 6
MOST_STD = 3.0  # of the states of Gaussian data, relative to the exact one; official samplers: 1.02


class Samples(NamedTuple):
    """The result of a sampler.

    Attributes:
      x: samples (B, ...).
      nfe: evaluations of the network for each of them (B,). It is exact for fixed steps, and an
        upper bound where classifier-free guidance meets adaptive steps. Evaluations of a
        classifier are not counted.
      frames: states on the way to x, in order (F, B, ...), F <= FRAMES; F = 0 unless requested.
      bad_step: the step (B,), from 1, after which the state was first not finite, or the evaluation
        (`Sampler.unit`); 0 if x is finite. Adaptive steps are not counted: 1 if x is not finite.
    """

    x: Array
    nfe: Array
    frames: Array
    bad_step: Array


@dataclasses.dataclass(frozen=True)
class Sampler:
    """A loop to samples, and how it counts its steps.

    Attributes:
      loop: (keys (B,), score) -> Loop from samples of the prior (B, ...) to Samples. That of 'pc'
        has two more arguments, by name: a `constraint` for its loop, and `wrap_predictor`, a
        function from its predictor to the one that it uses instead; the attribute `evaluations` of
        the latter states its score evaluations in a step, if these are not one. The samplers of
        `make_flow` ignore the keys, and start from any states.
      steps: the number of steps, or of evaluations, see `unit`; None if steps are adaptive.
      title: the sampler in words.
      growth: the growth of its states and of errors, `solvers.stability`; None if it is not known.
      advice: what to change if that is too large, or if samples are not finite.
      frame_levels: the noise levels std / alpha of `Samples.frames`; empty if they are unknown.
      unit: what `steps` and `Samples.bad_step` count: "step", or "evaluation" for a few-step solver
        that has several in a step.
    """

    loop: Callable[..., solvers.Loop]
    steps: int | None = None
    title: str = ""
    growth: Callable[[], stability.Growth] | None = None
    advice: str = "choose another sampler"
    frame_levels: tuple[float, ...] = ()
    unit: str = "step"

    def __call__(self, keys: Array | None, score: Score, x: Array, **changes: Any) -> Samples:
        """Return the samples from the initial states x (B, ...); see `loop`."""
        return self.loop(keys, score, **changes).run(x)

    def check_stable(self) -> None:
        """Raise InputError if a step is unstable; warn, once, if it multiplies network errors."""
        return self._checked

    @functools.cached_property
    def _checked(self) -> None:
        stds, errors = (np.array([]),) * 2 if self.growth is None else self.growth()
        if not np.all(stds <= MOST_STD):
            step = int(np.argmin(stds <= MOST_STD))
            raise InputError(
                f"{self.unit} {step + 1} of {self.steps} of the sampler is unstable: the states of "
                f"Gaussian data then have {stds[step]:.3g} times their standard deviation, of "
                f"which {MOST_STD:g} times are allowed. To correct it, {self.advice}."
            )
        if np.any(errors > MOST_ERROR):
            step = int(np.argmax(errors > MOST_ERROR))
            logging.warning(
                "%s %d of %d of the sampler multiplies errors of the network by %.3g; samples may "
                "be noise. To correct it, %s.",
                *(self.unit, step + 1, self.steps, errors[step], self.advice),
            )


# --- the kinds of samplers ------------------------------------------------------------------------


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


class Defaults(NamedTuple):
    """What replaces the defaults of samplers for one prior, such as by the config of a network.

    Attributes:
      sampler: the name of the sampler.
      steps: the number of steps of samplers that are not adaptive, or None for that of the kind.
      levels: the levels of the chain that the network was trained on, or as many steps of the time:
        the steps of 'pc', and the grid whose last step denoises in 'ode'.
      options: values of options; those that a sampler does not have are ignored.
    """

    sampler: str = DEFAULT
    steps: int | None = None
    levels: int = 1000
    options: Mapping[str, Any] = MappingProxyType({})


NO_DEFAULTS = Defaults()


DENOISE = {"noise_removal": Option(True, FLAG, "Drop the noise of the last step.")}
TRAJECTORY = {"trajectory": Option(False, FLAG, "Draw states on the path from noise to images.")}
SCHEDULE = {
    "schedule": Option("log_snr", Name(solvers.SCHEDULES), "Noise levels of a few-step solver.")
}
PC = {
    "predictor": Option("reverse_diffusion", Name(sampling.PREDICTORS), "Predictor of pc."),
    "corrector": Option("langevin", Name(sampling.CORRECTORS), "Corrector of pc."),
    "n_steps_each": Option(1, Integer(1, 10**6), "Corrections of a step."),
    "snr": Option(0.16, options.POSITIVE, "Signal-to-noise ratio of the corrector."),
    "probability_flow": Option(
        False, FLAG, "Let the predictor follow the probability-flow ODE, Eq. (13)."
    ),
}
SDE_TOLERANCE = {
    "tolerance": Option(0.02, TOLERANCE, "Relative error of a step of 'adaptive_sde'.")
}


def _pc(setting: Setting, *, trajectory: bool, noise_removal: bool, **chosen: Any) -> Sampler:
    """Return predictor and corrector."""
    sde, steps = setting.sde, setting.sde.discretize(setting.steps)
    predictor = sampling.PREDICTORS[chosen["predictor"].lower()]
    corrector = sampling.CORRECTORS[chosen["corrector"].lower()]
    corrections = 0 if corrector is sampling.none else chosen["n_steps_each"]
    if chosen["probability_flow"]:
        if chosen["predictor"].lower() not in sampling.FLOW_PREDICTORS:
            raise InputError(
                f"probability_flow = True: predictor = {chosen['predictor']!r} has no such form; "
                f"choose one of {', '.join(sampling.FLOW_PREDICTORS)}."
            )
        predictor = functools.partial(predictor, probability_flow=True)
    levels = np.append(sde.noise_to_signal(jnp.asarray(steps.t))[1:], 0.0)
    shown = solvers.frame_indices(levels, FRAMES) if trajectory else np.array([], int)

    def loop(
        keys: Array,
        score: Score,
        *,
        constraint: sampling.Constraint | None = None,
        wrap_predictor: Callable[[sampling.Update], sampling.Update] = lambda predictor: predictor,
    ) -> solvers.Loop:
        used = wrap_predictor(predictor)
        predictions = 0 if used is sampling.none else getattr(used, "evaluations", 1)
        nfe = total_nfe(score, steps.t, corrections + predictions)
        return sampling.predictor_corrector_loop(
            keys,
            score,
            sde,
            steps,
            predictor=used,
            corrector=corrector,
            snr=chosen["snr"],
            n_steps_each=chosen["n_steps_each"],
            denoise=noise_removal,
            constraint=constraint,
            shown=shown,
        ).then(lambda result: to_samples(result[0], nfe, *result[1:]))

    growth = functools.partial(stability.predictor_growth, sde, predictor, steps, setting.data_std)
    return Sampler(
        loop,
        setting.steps,
        f"predictor {chosen['predictor']!r} and corrector {chosen['corrector']!r}, "
        f"{setting.steps} steps",
        None if predictor is sampling.none else growth,
        f"raise the number of steps, now {setting.steps}, lower snr = {chosen['snr']}, or choose "
        f"another predictor than {chosen['predictor']!r}, such as 'ancestral_sampling'",
        tuple(levels[shown].tolist()),
    )


def _ode(setting: Setting, *, noise_removal: bool) -> Sampler:
    """Return the probability-flow ODE with adaptive steps and the official tolerances."""
    sde, steps = setting.sde, setting.sde.discretize(setting.steps)
    last = jax.tree.map(lambda leaf: leaf[-1], steps) if noise_removal else None

    def solve(score: Score, x: Array) -> Samples:
        y, calls = sampling.probability_flow_ode(score, sde, x, denoise_step=last)
        return to_samples(y, calls * most_evaluations(score, steps.t))

    return Sampler(_single(solve), title="the probability-flow ODE with adaptive steps")


def _adaptive(setting: Setting, *, noise_removal: bool, tolerance: float) -> Sampler:
    """Return the solver of the reverse SDE that chooses steps for each image."""
    sde, absolute = setting.sde, setting.data_std / 64  # one of 256 grey levels, for images

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
    )


def _few_step(
    setting: Setting, *, schedule: str, noise_removal: bool, trajectory: bool, **chosen: Any
) -> Sampler:
    """Return a few-step solver."""
    name, sde, solver = setting.name, setting.sde, solvers.SOLVERS[setting.name]
    levels = solvers.noise_levels(sde, schedule.lower(), setting.steps, denoise=noise_removal)
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
        f"{name!r}, {setting.steps} steps on the schedule {schedule!r}",
        functools.partial(
            stability.plan_growth,
            plan,
            setting.data_std,
            noise_prediction=solver.noise_prediction,
        ),
        f"raise the number of steps, now {setting.steps}, or choose another solver than {name!r} "
        f"or schedule than {schedule!r}",
        tuple(following[shown].tolist()),
        _unit(plan, setting.steps),
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


# --- construction ---------------------------------------------------------------------------------


def make(
    name: str | None,
    sde: SDE,
    steps: int | None = None,
    *,
    data_std: float = 0.5,
    defaults: Defaults = NO_DEFAULTS,
    **given: Any,
) -> Sampler:
    """Return a sampler; the same arguments return the same object.

    Args:
      name: one of `kinds()`; None for that of `defaults`.
      sde: the SDE.
      steps: the number of steps; None for that of `defaults`, or else of the kind.
      data_std: see `Setting`.
      defaults: values in place of those of the kind.
      given: options of the sampler.

    Raises InputError for an unknown name or option, and a value outside of its domain.
    """
    setting, values = _resolve(name, sde, steps, data_std, defaults, given)
    return _make(setting, tuple(values.items()), _entries(setting.name, values))


@functools.lru_cache(maxsize=256)
def _make(
    setting: Setting, values: tuple[tuple[str, Any], ...], entries: tuple[Any, ...]
) -> Sampler:
    """Return the sampler. Compiled programs are found by its identity."""
    del entries
    return kinds()[setting.name].make(setting, **dict(values))


def _resolve(
    name: str | None,
    sde: SDE,
    steps: int | None,
    data_std: float,
    defaults: Defaults,
    given: Mapping[str, Any],
) -> tuple[Setting, dict[str, Any]]:
    """Return what a sampler is made from; see `make`."""
    name = name or defaults.sampler
    kind = choose(kinds(), name, "sampler")
    if kind.adaptive and steps is not None:
        raise InputError(
            f"steps = {steps}: the sampler {name!r} chooses its steps. Leave steps out, or choose "
            "another sampler."
        )
    if steps is not None:
        options.check("steps", steps, Integer(1, MOST_STEPS))
    count = steps or (None if kind.adaptive else defaults.steps) or kind.steps or defaults.levels
    own = {key: value for key, value in defaults.options.items() if key in kind.options}
    values = options.resolve(kind.options, {**own, **given}, f"the sampler {name!r}")
    return Setting(name, sde, int(count), data_std), values


def _entries(name: str, values: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what the registries hold, because a user may replace an entry under its name."""
    solver = solvers.SOLVERS.get(name)
    return (
        solver and (solver.plan, solver.noise_prediction, solver.stochastic),
        sampling.PREDICTORS.get(str(values.get("predictor")).lower()),
        sampling.CORRECTORS.get(str(values.get("corrector")).lower()),
    )


class Flow(NamedTuple):
    """The probability flow from data to latent codes, and back."""

    encoder: Sampler
    decoder: Sampler


def make_flow(
    name: str,
    sde: SDE,
    steps: int | None = None,
    *,
    defaults: Defaults = NO_DEFAULTS,
    **given: Any,
) -> Flow:
    """Return the probability flow between the times sde.t_end and T (Section 4.3).

    Data are states at t_end, and no last step denoises. It is integrated with adaptive steps by
    'ode', and otherwise by a few-step solver that draws no noise. The arguments are those of
    `make`. Raises InputError as `make` does, and for another sampler.
    """
    deterministic = [each for each, solver in solvers.SOLVERS.items() if not solver.stochastic]
    if name not in ("ode", *deterministic):
        raise InputError(
            f"sampler = {name!r} does not follow the probability flow, as latent codes require; "
            f"choose one of ode, {', '.join(sorted(deterministic))}."
        )
    setting, values = _resolve(name, sde, steps, 0.5, defaults, given)
    return _make_flow(setting, tuple(values.items()), _entries(name, values))


@functools.lru_cache(maxsize=64)
def _make_flow(
    setting: Setting, values: tuple[tuple[str, Any], ...], entries: tuple[Any, ...]
) -> Flow:
    del entries
    sde = setting.sde
    if setting.name == "ode":
        return Flow(_adaptive_flow(sde, sde.t_end, sde.T), _adaptive_flow(sde, sde.T, sde.t_end))
    chosen = dict(values)
    levels = solvers.noise_levels(sde, chosen["schedule"].lower(), setting.steps, denoise=False)
    return Flow(_solver_flow(setting, chosen, levels[::-1]), _solver_flow(setting, chosen, levels))


def _adaptive_flow(sde: SDE, start: float, end: float) -> Sampler:
    def solve(score: Score, x: Array) -> Samples:
        return to_samples(*sampling.integrate_flow(score, sde, x, start, end))

    return Sampler(_single(solve), title="the probability-flow ODE with adaptive steps")


def _solver_flow(setting: Setting, chosen: Mapping[str, Any], levels: np.ndarray) -> Sampler:
    solver = solvers.SOLVERS[setting.name]
    plan = solver.plan(levels, **{name: chosen[name] for name in solver.options})

    def loop(keys: Array | None, score: Score) -> solvers.Loop:
        del keys
        return solvers.few_step_loop(
            *(None, score, setting.sde, plan, levels[-1]),
            noise_prediction=solver.noise_prediction,
        ).then(lambda result: to_samples(result[0], jnp.int32(len(plan.level)), *result[1:]))

    title = f"{setting.name!r}, {setting.steps} steps on the schedule {chosen['schedule']!r}"
    return Sampler(loop, len(plan.level), title, unit=_unit(plan, setting.steps))


# --- results --------------------------------------------------------------------------------------


def _single(solve: Callable[[Score, Array], Samples]) -> Callable[..., solvers.Loop]:
    """Return the loop of a sampler that draws no noise and has one adaptive step."""

    def loop(keys: Array | None, score: Score) -> solvers.Loop:
        del keys
        return solvers.single(functools.partial(solve, score))

    return loop


def _unit(plan: solvers.Plan, steps: int) -> str:
    """Return what a plan's rows are: solvers of second order have two evaluations in most steps."""
    return "step" if len(plan.level) == steps else "evaluation"


def evaluations(score: Score, t: Array) -> Array:
    """Return the network evaluations in one call of a score at times t: 1 if it is not guided."""
    return getattr(score, "evaluations", jnp.ones_like)(t)


def total_nfe(score: Score, times: Array, calls: int = 1) -> Array:
    """Return the network evaluations () of `calls` calls at each of the times (n,)."""
    return (calls * evaluations(score, times).sum()).astype(jnp.int32)


def most_evaluations(score: Score, times: Array) -> Array:
    """Return the most network evaluations of a call at any of the times."""
    return evaluations(score, times).max().astype(jnp.int32)


def to_samples(
    x: Array, nfe: Array, frames: Array | None = None, bad_step: Array | None = None
) -> Samples:
    """Return the samples; without `bad_step`, failures count as those of step 1."""
    nfe = jnp.broadcast_to(nfe, len(x))
    frames = x[None][:0] if frames is None else frames
    bad_step = jnp.zeros(len(x), jnp.int32) if bad_step is None else bad_step
    return Samples(x, nfe, frames, jnp.where(is_finite(x), 0, jnp.maximum(bad_step, 1)))
