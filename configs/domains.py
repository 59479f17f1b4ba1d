"""Domains: the values that a config field may have.

A domain checks one value and describes what it allows. `configs/fields.py` gives each field its
domain, and `configs/validation.py` reports every value that lies outside of it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from typing import Any, Protocol


class Domain(Protocol):
    """The values that a field may have. `describe` completes "FIELD = VALUE must be ..."."""

    def allows(self, value: Any) -> bool:
        """Return whether `value` lies in the domain."""
        ...

    def describe(self) -> str:
        """Describe the domain in a few words."""
        ...


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
        if (
            not isinstance(value, (int, float))
            or isinstance(value, bool)
            or not -1e308 < value < 1e308  # Integers may be larger than any float.
        ):
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
class Text:
    """Strings without null characters, which no file name has."""

    def allows(self, value: Any) -> bool:
        return isinstance(value, str) and "\0" not in value

    def describe(self) -> str:
        return "a string without null characters"


@dataclasses.dataclass(frozen=True)
class Name:
    """One of the names in `known`, or of the field's registry if `known` is empty.

    Case counts only if `exact` is set: the official code ignores it in most names.
    """

    known: tuple[str, ...] = ()
    exact: bool = False

    def allows(self, value: Any) -> bool:
        return isinstance(value, str)

    def describe(self) -> str:
        return "a string"

    def knows(self, value: str, registry: Collection[str] = ()) -> bool:
        """Return whether `value` is among the known names, or those of `registry`."""
        names = self.known or registry
        return value in names if self.exact else value.lower() in {each.lower() for each in names}


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
