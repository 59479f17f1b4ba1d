"""What a user can put right: `main.py` prints the sentence and exits with code 1."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

Value = TypeVar("Value")


class InputError(ValueError):
    """A bad value from outside: a config field, a file, a data set; the message names it and says what is right."""


def check_name(name: str, known: Iterable[str], field: str) -> None:
    """Raises InputError with the known names if `name`, the value of a config field, is not among them."""
    if name not in known:
        raise InputError(f"{field} = {name!r} is unknown; known: {', '.join(sorted(known))}.")


def choose(table: Mapping[str, Value], name: str, field: str) -> Value:
    """table[name], after `check_name`."""
    check_name(name, table, field)
    return table[name]


def brief(error: Exception) -> str:
    """The first line of what an exception says, for use inside a sentence."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
