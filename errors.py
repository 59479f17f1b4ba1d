"""What a user can put right: `main.py` prints the sentence and exits with code 1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

Value = TypeVar("Value")


class InputError(ValueError):
    """A bad value from outside: a config field, a file, a data set. The message names it and says what would be right."""


def choose(table: Mapping[str, Value], name: str, field: str) -> Value:
    """table[name]; if absent, raises InputError with the known names and the config field that the name came from."""
    if name not in table:
        raise InputError(f"{field} = {name!r} is unknown; known: {', '.join(sorted(table))}.")
    return table[name]
