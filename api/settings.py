"""The options of the Python API's samplers and methods, by the names and domains of the config.

Defaults and valid values have one home, `configs.fields`; this module selects the fields that the
API takes as keyword arguments, and builds samplers from them.
"""

from __future__ import annotations

import functools
from collections import namedtuple
from collections.abc import Mapping
from typing import Any

import factory
import sampling
import solvers
from api.arguments import converted
from configs import rules, validation
from configs.default import Config, get_default_config
from configs.fields import FIELDS
from errors import InputError, choose
from factory import Sampler
from sde_lib import SDE

_DEFAULTS = get_default_config()
METHOD_DEFAULTS = {
    name: _DEFAULTS.restore[name]
    for name in ("iterations", "prior_std", "scale", "eta", "eta_b", "flow_steps", "langevin_steps")
} | {"official": False}
MethodOptions = namedtuple("MethodOptions", sorted(METHOD_DEFAULTS))
"""Options of `controllable.methods`; fields of `config.restore`."""


def samplers() -> tuple[str, ...]:
    """Return the names of all samplers.

    They are the few-step solvers, also those that a user has entered in `solvers.SOLVERS`, the
    adaptive solver of the reverse SDE, the probability-flow ODE, and predictor and corrector.
    """
    return (*sorted(solvers.SOLVERS), factory.ADAPTIVE, "ode", "pc")


def method_options(options: Mapping[str, Any]) -> MethodOptions:
    """Return the options of a method for inverse problems, completed with the defaults.

    Raises InputError for an unknown option, and a value outside of its domain.
    """
    return MethodOptions(**METHOD_DEFAULTS | _checked("restore", options, METHOD_DEFAULTS))


def sampler(
    base: Config,
    sde: SDE,
    data_std: float,
    name: str | None,
    steps: int | None,
    options: Mapping[str, Any],
) -> Sampler:
    """Return the sampler of this name; the same arguments give the same object.

    Args:
      base: a complete config, whose values are the defaults.
      sde, data_std: as in `factory.make_sampler`.
      name: one of `samplers()`; None for `base.sampling.solver`.
      steps: the number of steps; None for that of `base`.
      options: other fields of `config.sampling`.

    Raises InputError for an unknown name or option, and a value outside of its domain.
    """
    name = str(base.sampling.solver) if name is None else name
    choose(dict.fromkeys(samplers()), name, "sampler")
    changed: dict[str, Any] = (
        {"method": name} if name in ("ode", "pc") else {"method": "solver", "solver": name}
    )
    adaptive = name in ("ode", factory.ADAPTIVE)
    if steps is not None and adaptive:
        raise InputError(
            f"steps = {steps}: the sampler {name!r} chooses its steps. Leave steps out, or choose "
            "another sampler."
        )
    if steps is not None:
        changed["num_scales" if name == "pc" else "num_steps"] = steps
    reserved = ("method", "solver", "num_steps", "trajectory", "temperature")
    known = {key: value for key, value in base.sampling.items() if key not in reserved}
    options = _checked("sampling", options, known)
    values = {**base.sampling.to_dict(), "trajectory": False, **changed, **options}
    _check_read(Config(values), options, name)
    values.setdefault("num_scales", base.model.get("num_scales", 1000))
    for key, value in values.items():
        values[key] = tuple(value) if isinstance(value, list) else value  # `_build` hashes them.
    entries = (
        solvers.SOLVERS.get(str(values["solver"]).lower()),
        sampling.PREDICTORS.get(str(values["predictor"]).lower()),
        sampling.CORRECTORS.get(str(values["corrector"]).lower()),
    )
    return _build(sde, data_std, tuple(sorted(values.items())), entries)


def _check_read(values: Config, options: Mapping[str, Any], name: str) -> None:
    """Raise InputError for an option that the sampler does not read."""
    read = factory.fields_read(values)
    for option in options:
        if option not in read:
            known = ", ".join(sorted(read - {"method", "solver", "num_steps", "trajectory"}))
            raise InputError(
                f"the option {option!r} has no effect on the sampler {name!r}, whose options are "
                f"{known}. Leave it out, or choose another sampler."
            )


@functools.lru_cache(maxsize=256)
def _build(
    sde: SDE, data_std: float, values: tuple[tuple[str, Any], ...], entries: tuple[Any, ...]
) -> Sampler:
    """Return the sampler of these values. A registry may get other `entries` under old names."""
    del entries
    config = get_default_config()
    fields = dict(values)
    config.model.num_scales = fields.pop("num_scales")
    config.sampling.update(fields)
    problems = [*validation.check_domains(config, factory.choices().names)]
    problems = problems or [*rules.check_sampling(config, factory.choices())]
    if problems:
        raise InputError(" ".join(problems))
    return factory.make_sampler(config, sde, data_std)


def _checked(section: str, options: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as plain values.

    Raises InputError for one that is not in `known`, or not in the domain of its field.
    """
    values = {}
    for name, value in options.items():
        choose(known, name, "the option")
        field = f"{section}.{name}"
        values[name] = converted(field, value, FIELDS[field].domain)
    names = factory.choices().names
    problems = [*validation.check_domains(Config({section: values}), names)] if values else []
    if problems:
        raise InputError(" ".join(problems))
    return values
