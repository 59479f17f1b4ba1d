"""Errors that a user can correct: `main.py` prints their message and exits with code 1."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

Value = TypeVar("Value")


class InputError(ValueError):
    """Bad input: a config field, a file or a data set.

    The message names the input, its value, what is allowed, and how to correct it.
    """


class NotFiniteError(InputError):
    """Values that are not finite, in training or in samples.

    The message states where they occurred first, and which config fields to change.

    Attributes:
      summary: what is not finite, and where.
      step: the training step, counted from 1; 0 for samples.
    """

    def __init__(self, summary: str, advice: str = "", step: int = 0) -> None:
        super().__init__(f"{summary} {advice}".strip())
        self.summary = summary
        self.step = step


def check_name(name: str, known: Iterable[str], field: str) -> None:
    """Raise InputError, listing the known names, if the value `name` of `field` is not one."""
    if name not in known:
        raise InputError(f"{field} = {name!r} is unknown; known: {', '.join(sorted(known))}.")


def choose(table: Mapping[str, Value], name: str, field: str) -> Value:
    """Return table[name], after `check_name`."""
    check_name(name, table, field)
    return table[name]


def brief(error: Exception) -> str:
    """Return the first line of an exception's message, or its type's name, for use in a message."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
