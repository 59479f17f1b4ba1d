"""Options: their defaults, valid values and meanings, declared where the code reads them.

Config fields, keyword arguments of the Python API, checks and documentation follow from them.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from errors import SHORT, InputError, nearest, unknown_option

Value = TypeVar("Value")
GIVEN = "given"
"""The name of networks and data sets that are arguments of `score_sde.train`, in no file."""


def listed(names: Collection[str]) -> str:
    """Return the names for a message, without GIVEN, which no user sets."""
    return ", ".join(sorted({*names} - {GIVEN}))


class Domain(Protocol):
    """The values that an option may have. `describe` completes "NAME = VALUE must be ..."."""

    def allows(self, value: Any) -> bool:
        """Return whether `value` lies in the domain."""
        ...

    def describe(self) -> str:
        """Describe the domain in a few words."""
        ...


class Option(NamedTuple):
    """A default, the values that are allowed, and what it is."""

    default: Any
    domain: Domain
    meaning: str


Options = Mapping[str, Option]
"""Options by their names."""


def resolve(options: Options, given: Mapping[str, Any], owner: str) -> dict[str, Any]:
    """Return the values of all `options`: those `given`, else the defaults.

    `owner` is named in errors. Raises InputError for an unknown name and a value out of its domain.
    """
    for name, value in given.items():
        if name not in options:
            raise unknown_option(name, value, owner, [*options])
        check(name, value, options[name].domain)
    return {name: plain(given.get(name, option.default)) for name, option in options.items()}


def check(name: str, value: Any, domain: Domain) -> None:
    """Raise InputError unless the value lies in the domain."""
    if not domain.allows(plain(value)):
        raise InputError(outside(name, value, domain))


def outside(name: str, value: Any, domain: Domain) -> str:
    """Return the message about a value that is not in the domain."""
    hint = nearest(value, {*_names(domain)} - {GIVEN})
    return f"{name} = {SHORT.repr(value)} must be {domain.describe()}.{hint}"


def _names(domain: Domain) -> list[str]:
    """Return the names in the domain."""
    if isinstance(domain, AnyOf):
        return [name for each in domain.domains for name in _names(each)]
    return [*domain.known] if isinstance(domain, Name) else []


def choose(table: Mapping[str, Value], name: str, field: str) -> Value:
    """Return table[name]. Raises InputError if the value `name` of `field` is not in the table."""
    check(field, name, Name(table, exact=True))
    return table[name]


def plain(value: Any) -> Any:
    """Return a NumPy scalar as a number of Python, and a list as a tuple, which can be hashed."""
    if isinstance(value, np.generic):
        return value.item()
    return tuple(map(plain, value)) if isinstance(value, list) else value


@dataclasses.dataclass(frozen=True)
class Flag:
    """True or False."""

    def allows(self, value: Any) -> bool:
        return isinstance(value, bool)

    def describe(self) -> str:
        return "True or False"


@dataclasses.dataclass(frozen=True)
class Integer:
    """Whole numbers from `low` to `high`, both included."""

    low: int
    high: int

    def allows(self, value: Any) -> bool:
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        return is_integer and self.low <= value <= self.high

    def describe(self) -> str:
        return f"an integer from {self.low} to {self.high}"


@dataclasses.dataclass(frozen=True)
class Real:
    """Finite numbers from `low` to `high`; an end is excluded where `open_low` or `open_high` is
    set."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def allows(self, value: Any) -> bool:
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            return False
        if isinstance(value, float) and not math.isfinite(value):
            return False
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below

    def describe(self) -> str:
        limits = []
        if self.low > -math.inf:
            limits.append(f"{'above' if self.open_low else 'at least'} {self.low:g}")
        if self.high < math.inf:
            limits.append(f"{'below' if self.open_high else 'at most'} {self.high:g}")
        return "a finite number" + (f", {' and '.join(limits)}" if limits else "")


@dataclasses.dataclass(frozen=True)
class Word:
    """Up to 100 letters, digits, _ and -, which name neither a file elsewhere nor code."""

    def allows(self, value: Any) -> bool:
        return isinstance(value, str) and re.fullmatch("[A-Za-z0-9_-]{0,100}", value) is not None

    def describe(self) -> str:
        return "a word of up to 100 letters, digits, _ and -"


@dataclasses.dataclass(frozen=True)
class FilePath:
    """Paths, which have no null characters; or a value in `special`, which is none."""

    special: tuple[str, ...] = ("",)

    def allows(self, value: Any) -> bool:
        return isinstance(value, str) and "\0" not in value

    def describe(self) -> str:
        return f"{', '.join(filter(None, (*self.special, 'a path')))} without null characters"


@dataclasses.dataclass(frozen=True)
class Code:
    """The names in `special`, or module:function, which is imported and called."""

    special: tuple[str, ...]

    def allows(self, value: Any) -> bool:
        return isinstance(value, str)

    def describe(self) -> str:
        return f"a string: {', '.join(self.special)} or module:function"


@dataclasses.dataclass(frozen=True)
class Name:
    """One of the names in `known`, which may be a registry that users extend.

    Case counts only if `exact` is set: the official code ignores it in most names.
    """

    known: Collection[str]
    exact: bool = False

    def allows(self, value: Any) -> bool:
        if not isinstance(value, str):
            return False
        if self.exact:
            return value in self.known
        return value.lower() in {each.lower() for each in self.known}

    def describe(self) -> str:
        return f"one of {listed(self.known)}"


@dataclasses.dataclass(frozen=True)
class Sequence:
    """Tuples of `low` to `high` entries, all in the domain `entry`."""

    entry: Domain
    low: int
    high: int

    def allows(self, value: Any) -> bool:
        if not isinstance(value, (tuple, list)) or not self.low <= len(value) <= self.high:
            return False
        return all(self.entry.allows(each) for each in value)

    def describe(self) -> str:
        return f"a tuple of {self.low} to {self.high} entries, each {self.entry.describe()}"


@dataclasses.dataclass(frozen=True)
class Entries:
    """Tuples with as many entries as there are domains, each entry in its domain; or (), if
    `optional`."""

    domains: tuple[Domain, ...]
    optional: bool = False

    def allows(self, value: Any) -> bool:
        if not isinstance(value, (tuple, list)):
            return False
        if self.optional and not value:
            return True
        if len(value) != len(self.domains):
            return False
        return all(domain.allows(each) for domain, each in zip(self.domains, value))

    def describe(self) -> str:
        entries = "; ".join(domain.describe() for domain in self.domains)
        return f"a tuple of {len(self.domains)} ({entries})" + (" or ()" if self.optional else "")


@dataclasses.dataclass(frozen=True)
class AnyOf:
    """The union of several domains, whose values may have different types."""

    domains: tuple[Domain, ...]

    def allows(self, value: Any) -> bool:
        return any(domain.allows(value) for domain in self.domains)

    def describe(self) -> str:
        return ", or ".join(domain.describe() for domain in self.domains)


def is_data(domain: Domain, value: Any) -> bool:
    """Return whether a config that was read from a file may have a value of the domain.

    Numbers and names in a closed list are data. Paths, code and all else are not.
    """
    match domain:
        case Flag() | Integer() | Real() | Name() | Word():
            return True
        case Sequence():
            return all(is_data(domain.entry, each) for each in value)
        case Entries():
            return all(is_data(entry, each) for entry, each in zip(domain.domains, value))
        case AnyOf():
            return all(is_data(each, value) for each in domain.domains if each.allows(value))
        case FilePath() | Code():
            return value in domain.special
    return False


# --- domains that many options have ---------------------------------------------------------------

FLAG = Flag()
COUNT = Integer(1, 10**9)
SMALLEST, LARGEST = 1e-30, 1e30  # float32, the type of all computations, holds their reciprocals.
FINITE = Real(-LARGEST, LARGEST)
POSITIVE = Real(SMALLEST, LARGEST)
NOT_NEGATIVE = Real(0, LARGEST)
TOLERANCE = Real(1e-8, 1e3)  # float32 rounds at 1e-7; a solver would reach its largest count.
NOISE_SCALE = Real(1e-10, 1e10)  # Its square is computed as well.
SHARE = Real(0, 1)
