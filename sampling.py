"""Samplers, and the probability flow as a map, by name and plain arguments.

A sampler is predictor and corrector ('pc', Algorithm 1 of arXiv:2011.13456), the probability-flow
ODE with adaptive steps ('ode'), the adaptive solver of the reverse SDE ('adaptive_sde'), or a
few-step solver of `solvers.SOLVERS`. `make` returns one, and `make_flow` the probability flow
between data and latent codes. `solvers/` has their steps and loops; `PREDICTORS` and `CORRECTORS`
are those of `solvers/predictor_corrector.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

import options
from errors import InputError
from options import FLAG, Integer, Option, Options, choose, listed
from sde_lib import SDE
from solvers import SOLVERS
from solvers.adaptive import (
    ADAPTIVE,
    SDE_TOLERANCE,
    adaptive_sampler,
    flow_sampler,
    ode_sampler,
    probability_flow_ode,
)
from solvers.loop import (
    Sampler,
    Samples,
    Setting,
    fold_in,
    image_keys,
    prior_sample,
    standard_normal,
    uniform,
)
from solvers.plan import SCHEDULE, few_step_sampler
from solvers.predictor_corrector import (
    CORRECTORS,
    PC,
    PREDICTORS,
    Metropolis,
    ancestral_sampling,
    annealed_langevin,
    langevin,
    none,
    pc_sampler,
    predictor_corrector,
    reverse_diffusion,
)

__all__ = [
    "ADAPTIVE",
    "CORRECTORS",
    "DEFAULT",
    "MOST_STEPS",
    "PREDICTORS",
    "Defaults",
    "Flow",
    "Metropolis",
    "Sampler",
    "Samples",
    "ancestral_sampling",
    "annealed_langevin",
    "fold_in",
    "image_keys",
    "kinds",
    "langevin",
    "make",
    "make_flow",
    "none",
    "predictor_corrector",
    "prior_sample",
    "probability_flow_ode",
    "reverse_diffusion",
    "standard_normal",
    "uniform",
]

DEFAULT = "dpm++_2m_sde"
MOST_STEPS = 10**5

DENOISE = {"noise_removal": Option(True, FLAG, "Drop the noise of the last step.")}
TRAJECTORY = {"trajectory": Option(False, FLAG, "Draw states on the path from noise to images.")}


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


KINDS: dict[str, Kind] = {
    ADAPTIVE: Kind(adaptive_sampler, {**DENOISE, **SDE_TOLERANCE}, adaptive=True),
    "ode": Kind(ode_sampler, DENOISE, adaptive=True),
    "pc": Kind(pc_sampler, {**PC, **DENOISE, **TRAJECTORY}),
}
"""The samplers that are not few-step solvers, by name."""


def kinds() -> dict[str, Kind]:
    """Return all samplers by name, with the solvers that a user has entered."""
    shared = {**SCHEDULE, **DENOISE, **TRAJECTORY}
    few_step = {
        name: Kind(functools.partial(few_step_sampler, solver), {**solver.options, **shared}, 20)
        for name, solver in sorted(SOLVERS.items())
    }
    return {**few_step, **KINDS}


class Fitted(NamedTuple):
    """The noise levels (steps + 1,) that were fitted to one score for a few-step solver."""

    sampler: str
    levels: tuple[float, ...]

    @property
    def steps(self) -> int:
        return len(self.levels) - 1


class Defaults(NamedTuple):
    """What replaces the defaults of samplers for one prior, such as by the config of a network.

    Attributes:
      sampler: the name of the sampler.
      steps: the number of steps of samplers that are not adaptive, or None for that of the kind.
      levels: the levels of the chain that the network was trained on, or as many steps of the time:
        the steps of 'pc', and the grid whose last step denoises in 'ode'.
      options: values of options; those that a sampler does not have are ignored.
      fitted: levels in place of the schedule, of solvers and numbers of steps.
    """

    sampler: str = DEFAULT
    steps: int | None = None
    levels: int = 1000
    options: Mapping[str, Any] = MappingProxyType({})
    fitted: tuple[Fitted, ...] = ()


NO_DEFAULTS = Defaults()


def make(
    name: str | None,
    sde: SDE,
    steps: int | None = None,
    *,
    data_std: float = 0.5,
    defaults: Defaults = NO_DEFAULTS,
    halved: bool = False,
    **given: Any,
) -> Sampler:
    """Return a sampler; the same arguments return the same object.

    Args:
      name: one of `kinds()`; None for that of `defaults`.
      sde: the SDE.
      steps: the number of steps; None for that of `defaults`, or else of the kind.
      data_std: see `Setting`.
      defaults: values in place of those of the kind.
      halved: whether to take half as many steps, whose samples differ by their error.
      given: options of the sampler.

    Raises InputError for an unknown name or option, a value outside of its domain, and for a halved
    sampler that draws noise or chooses its steps.
    """
    setting, values = _resolve(name, sde, steps, data_std, defaults, given)
    if isinstance(values.get("schedule"), str) and values["noise_removal"]:
        for each in () if "schedule" in given else defaults.fitted:
            if (each.sampler, each.steps) == (setting.name, setting.steps):
                values["schedule"] = each.levels
    if halved:
        _check_flow(setting.name, "has no error that another number of steps shows", set())
        setting = setting._replace(steps=-(-setting.steps // 2))
        if isinstance(levels := values["schedule"], tuple):
            values["schedule"] = levels[:-1:2] + levels[-1:]
    return _make(setting, tuple(values.items()), _entries(setting.name, values))


@functools.lru_cache(maxsize=256)
def _make(
    setting: Setting, values: tuple[tuple[str, Any], ...], entries: tuple[Any, ...]
) -> Sampler:
    """Return the sampler. Compiled programs are found by its identity."""
    del entries
    with jax.ensure_compile_time_eval():  # A tracer of a user's program must not stay in the cache.
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
    if isinstance(levels := values.get("schedule"), tuple):
        count = len(levels) - 1
        if steps not in (None, count):
            raise InputError(
                f"steps = {steps}, but the {count + 1} noise levels of schedule have {count} steps "
                "between them. Leave steps out."
            )
    return Setting(name, sde, int(count), data_std), values


def _entries(name: str, values: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what the registries hold, because a user may replace an entry under its name."""
    solver = SOLVERS.get(name)
    return (
        solver and (solver.plan, solver.noise_prediction, solver.stochastic),
        PREDICTORS.get(str(values.get("predictor")).lower()),
        CORRECTORS.get(str(values.get("corrector")).lower()),
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
    _check_flow(name, "does not follow the probability flow, as latent codes require", {"ode"})
    setting, values = _resolve(name, sde, steps, 0.5, defaults, given)
    return _make_flow(setting, tuple(values.items()), _entries(name, values))


def _check_flow(name: str, problem: str, others: set[str]) -> None:
    """Raise InputError unless it is a few-step solver without noise, or one of `others`."""
    known = {each for each, solver in SOLVERS.items() if not solver.stochastic} | others
    if name not in known:
        raise InputError(f"sampler = {name!r} {problem}; choose one of {listed(known)}.")


@functools.lru_cache(maxsize=64)
def _make_flow(
    setting: Setting, values: tuple[tuple[str, Any], ...], entries: tuple[Any, ...]
) -> Flow:
    del entries
    sde = setting.sde
    chosen = {**dict(values), "noise_removal": False, "trajectory": False}
    with jax.ensure_compile_time_eval():  # As above.
        if setting.name == "ode":
            return Flow(flow_sampler(sde, sde.t_end, sde.T), flow_sampler(sde, sde.T, sde.t_end))
        make = kinds()[setting.name].make
        return Flow(make(setting, **chosen, ascending=True), make(setting, **chosen))
